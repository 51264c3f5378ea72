"""Aggregates of scores with intervals (Agarwal et al. 2021, arXiv 2108.13264).

Scores are ``(N, M)``: N runs (training seeds, each already averaged over its episodes) on M tasks.
The M = 1 case is one task with a population of N members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
#: ``(..., N, M) -> (...)``
Statistic = Callable[[Scores], Scores]


def normalized_score(
    returns: NDArray[np.float64] | float, reference: tuple[float, float]
) -> NDArray[np.float64]:
    """``100 (returns - min) / (max - min)``, elementwise, with ``reference`` = (min, max)."""
    low, high = reference
    return np.asarray(100 * (np.asarray(returns, np.float64) - low) / (high - low))


def normalized_std(
    std: NDArray[np.float64] | float, reference: tuple[float, float]
) -> NDArray[np.float64]:
    """``100 std / (max - min)``: a deviation scales with the unit but does not shift."""
    low, high = reference
    return np.asarray(100 * np.asarray(std, np.float64) / (high - low))


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float


def mean(scores: Scores) -> Scores:
    """``(..., N, M) -> (...)``, over runs and tasks."""
    return np.asarray(scores.mean((-2, -1)))


def median(scores: Scores) -> Scores:
    """``(..., N, M) -> (...)``, median over tasks of the mean over runs."""
    return np.asarray(np.median(scores.mean(-2), -1))


def interquartile_mean(scores: Scores) -> Scores:
    """``(..., N, M) -> (...)``, mean of the middle half of all N M scores.

    A quarter of them, rounded down, is dropped at each end: with fewer than four scores this is
    their mean.
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), -1)
    cut = flat.shape[-1] // 4
    return np.asarray(flat[..., cut : flat.shape[-1] - cut].mean(-1))


def optimality_gap(scores: Scores) -> Scores:
    """``(..., N, M) -> (...)``, mean shortfall below 1 of normalised scores; lower is better."""
    return np.asarray(1 - np.minimum(scores, 1).mean((-2, -1)))


def stratified_bootstrap(
    scores: Scores,
    statistic: Statistic,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """Percentile interval of ``statistic``; runs are drawn anew for each task.

    With few runs such intervals are too narrow: of three runs there are 27 resamples, and the
    interval of a mean covers the truth in about three cases of four.

    Args:
        scores: ``(N, M)``.
        statistic: one of this module's functions.

    Returns:
        None for fewer than two runs (episodes of one run say nothing about other seeds), or where
        a score is not finite.
    """
    runs, tasks = scores.shape
    if runs < 2 or not np.isfinite(scores).all():
        return None
    chosen = np.random.default_rng(seed).integers(runs, size=(resamples, runs, tasks))
    values = statistic(np.take_along_axis(scores[None], chosen, 1))
    tail = 50 * (1 - level)
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))


def probability_of_improvement(first: Scores, second: Scores) -> float:
    """How often a run of ``first`` beats one of ``second``, mean over tasks; a tie counts half.

    Args:
        first: ``(N, M)``.
        second: ``(K, M)`` on the same tasks.
    """
    difference = first[:, None] - second[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())
