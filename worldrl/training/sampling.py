"""How the logged rows of batches are drawn: uniformly, or better episodes more often.

Weighted sampling (Hong et al. 2023, arXiv 2306.13085): an episode's score is its return, or what
its return exceeds the one expected from where it began; scores are brought to [0, 1], and a row
is drawn in proportion to ``exp(score / temperature)`` of its episode. So longer episodes are drawn
more often, as they are by uniform sampling. Scores are of the rewards that learners see.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldrl.config.sampling import (
    AdvantageWeightedSampling,
    Sampling,
    TopReturnsSampling,
    UniformSampling,
)
from worldrl.errors import DataError
from worldrl.training.logged import Logged


class RowSampler(NamedTuple):
    """Draws numbers of logged rows."""

    num_rows: int
    cumulative: Tensor | None  # (num_rows,) float64: running sum of the weights; None: all alike

    def draw(self, g: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """Row numbers of this shape, int64: a function of the generator's state."""
        if self.cumulative is None:
            return torch.randint(self.num_rows, shape, generator=g, device=g.device)
        # Below the total, also after rounding: a row is found, and it is one with weight.
        point = torch.rand(shape, generator=g, device=g.device, dtype=torch.float64)
        return torch.searchsorted(self.cumulative, point * self.cumulative[-1], right=True)

    def mean_square(self, values: Tensor) -> float:
        """Of ``(num_rows,)`` values of the rows, as batches will hold them."""
        if self.cumulative is None:
            return float(values.square().mean())
        weight = self.cumulative.diff(prepend=self.cumulative.new_zeros(1))
        return float((weight * values.square()).sum() / self.cumulative[-1])


def row_sampler(settings: Sampling, logged: Logged) -> RowSampler:
    """The sampler that the settings say.

    Raises:
        DataError: too few episodes to tell what return to expect.
    """
    rows = len(logged.rows)
    if isinstance(settings, UniformSampling):
        return RowSampler(rows, None)
    # Summed in order on the CPU: a GPU's running sum is not the same every time.
    cumulative = torch.from_numpy(np.cumsum(row_weights(settings, logged)))
    return RowSampler(rows, cumulative.to(logged.rows.device))


def row_weights(settings: Sampling, logged: Logged) -> NDArray[np.float64]:
    """``(num_rows,)``, not normalised; the largest is 1."""
    episode = logged.episode.cpu().numpy()
    first = np.flatnonzero(np.diff(episode, prepend=-1))
    lengths = np.diff(first, append=len(episode))
    reward = logged.transitions.reward.double().cpu().numpy()
    if isinstance(settings, UniformSampling):
        return np.ones(len(reward))
    if isinstance(settings, TopReturnsSampling):
        returns = discounted_returns(reward, lengths, settings.discount)
        return np.repeat(best(returns, settings.share).astype(np.float64), lengths)
    score = np.add.reduceat(reward, first)
    if isinstance(settings, AdvantageWeightedSampling) and not constant(score, score):
        starts = logged.transitions.observation[torch.from_numpy(first).to(logged.rows.device)]
        score = advantages(score, starts.double().cpu().numpy())
    # Of scores that are not brought to [0, 1] one episode would take all there is.
    weight = np.exp((min_max(score) - 1) / settings.temperature)
    return np.repeat(weight, lengths)


def discounted_returns(
    reward: NDArray[np.float64], lengths: NDArray[np.int64], discount: float
) -> NDArray[np.float64]:
    """``(E,)`` from rewards ``(N,)`` of episodes of these lengths."""
    first = np.cumsum(lengths) - lengths
    step = np.arange(len(reward)) - np.repeat(first, lengths)
    return np.add.reduceat(reward * np.power(discount, step), first)


def best(returns: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """``(E,)``: the share of episodes with the highest returns, at least one; earlier ones first
    where returns are equal."""
    count = max(int(share * len(returns) + 1e-9), 1)
    chosen = np.zeros(len(returns), bool)
    chosen[np.argsort(-returns, kind="stable")[:count]] = True
    return chosen


def advantages(returns: NDArray[np.float64], starts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns ``(E,)`` less what a linear regression on initial observations ``(E, S)`` expects.

    Raises:
        DataError: the regression can meet any returns.
    """
    # In units of their deviation, so that no dimension is lost to the others' size.
    spread = starts.std(0)
    centred = (starts - starts.mean(0)) / np.where(spread > 0, spread, 1)
    design = np.concatenate([centred, np.ones((len(starts), 1))], 1)
    solution, _, rank, _ = np.linalg.lstsq(design, returns, rcond=1e-9)
    if rank >= len(returns):
        raise DataError(
            f"sampling.kind=advantage_weighted fits returns linearly to where episodes begin, and "
            f"{len(returns)} episodes with initial observations of {starts.shape[1]} numbers are "
            "too few: any returns would fit. Use sampling.kind=return_weighted."
        )
    error: NDArray[np.float64] = returns - design @ solution
    # An exact fit leaves nothing but rounding, which must not be taken for a difference.
    return np.zeros_like(error) if constant(error, returns) else error


def min_max(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(E,)`` brought to [0, 1]; all 1 where there is no difference."""
    if constant(score, score):
        return np.ones_like(score)
    unit: NDArray[np.float64] = (score - score.min()) / (score.max() - score.min())
    return unit


def constant(score: NDArray[np.float64], scale: NDArray[np.float64]) -> bool:
    """Whether scores differ by no more than sums of rounded rewards of this size do."""
    return float(np.ptp(score)) <= 1e-6 * float(np.abs(scale).max())
