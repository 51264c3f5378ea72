"""What policies are worth without the real system: estimates, their error, and when to accept one.

Model-based off-policy evaluation after Uni-O4 (Lei et al. 2023, arXiv 2311.03351). K judges, each a
world and critics of its own seed, look at one policy; that they differ is the error of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from worldrl.strict_json import finite


class Estimate(NamedTuple):
    """Of one policy by K judges; each ``(K,)``."""

    value: Tensor
    """J: mean over the steps of all walks of the critics' value; 0 after a walk has ended."""
    model_return: Tensor
    """Undiscounted rewards of a walk."""
    discounted_value: Tensor
    """Discounted rewards of a walk, and the state's value where it was cut."""
    penalty: Tensor
    """Mean uncertainty of the steps, in units of its 0.95 quantile on the data."""
    ended_share: Tensor
    """Walks that the world ended."""
    outside_share: Tensor
    """Steps beyond any logged observation or reward."""
    clipped_share: Tensor
    """Steps clipped to the box around the data."""
    broken_share: Tensor
    """Walks that met a prediction that is not finite."""
    length: Tensor
    """Mean steps of a walk."""


class Verdict(NamedTuple):
    """Whether a candidate replaces the policy that was accepted before it; JSON-able."""

    value: float
    """J of the candidate, mean over the judges."""
    gain: float | None
    """What its J exceeds the accepted one's by; None where none was accepted before."""
    error: float
    """Standard error over the judges: of the gain, or of J where there is no gain."""
    penalty: float
    accepted: bool


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of K independent values; None for one."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def judge(
    candidate: Sequence[float], penalty: Sequence[float], accepted: Sequence[float] | None
) -> Verdict:
    """Accept a gain in J of more than its standard error, of a policy that stays near the data.

    Judges compare both policies from the same starts with the same noise, so the error is that of
    their differences.

    Args:
        candidate: J by each of the judges, at least two.
        penalty: of the candidate by each, in units of its 0.95 quantile on the data; 1 is the most
            that is accepted on average.
        accepted: J of the policy accepted before; the first needs no gain.
    """
    value, cost = float(np.mean(candidate)), float(np.mean(penalty))
    within = math.isfinite(value) and cost <= 1
    if accepted is None:
        error = standard_error(candidate)
        assert error is not None
        return Verdict(value, None, error, cost, within)
    difference = np.subtract(candidate, accepted).tolist()
    error = standard_error(difference)
    assert error is not None
    gain = float(np.mean(difference))
    return Verdict(value, gain, error, cost, within and gain > error)


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float | None:
    """Spearman's, of two ``(n,)``; equal values share their mean rank.

    Returns:
        None for fewer than three pairs, or where one of the two does not vary.
    """
    one, other = (_ranks(np.asarray(values, np.float64)) for values in (first, second))
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: NDArray[np.float64] = (last - (count - 1) / 2)[place]
    return ranks


@dataclass(frozen=True)
class Judged:
    """One policy and what it is estimated to be worth."""

    path: str
    """Of its run or checkpoint."""
    member: int
    step: int
    """Updates that it had seen."""
    own_worlds: bool
    """It learned in the worlds that judge it, and knows their errors: the estimate is too high."""
    estimate: Estimate
    true_return: float | None = None
    """Mean undiscounted return of episodes in the environment, where they were asked for."""

    def to_json(self) -> dict[str, Any]:
        """Means over the judges; ``value_error`` is None where there is one."""
        values = self.estimate.value.tolist()
        means = {name: float(value.mean()) for name, value in self.estimate._asdict().items()}
        return {
            "path": self.path,
            "member": self.member,
            "step": self.step,
            **means,
            "value_error": standard_error(values),
            "value_by_judge": values,
            "within_data": means["penalty"] <= 1,
            "own_worlds": self.own_worlds,
            "true_return": self.true_return,
        }


@dataclass(frozen=True)
class OfflineResult:
    """Estimates of several policies by the same judges; never a score."""

    judges: Mapping[str, Any]
    """How they were made and what they did."""
    policies: tuple[Judged, ...]

    def rank_correlations(self) -> dict[str, float | None] | None:
        """Spearman's of each estimate with the true returns; None where none were asked for."""
        rows = [policy.to_json() for policy in self.policies]
        truth = [row["true_return"] for row in rows]
        if None in truth:
            return None
        names = "value", "model_return", "discounted_value"
        return {name: rank_correlation([row[name] for row in rows], truth) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not a finite number is None."""
        plain: dict[str, Any] = finite(
            {
                "offline": True,
                "judges": self.judges,
                "policies": [policy.to_json() for policy in self.policies],
                "spearman": self.rank_correlations(),
            }
        )
        return plain

    def protocol(self) -> str:
        """A line a policy, and how the numbers were made."""
        known, rows = self.judges, [policy.to_json() for policy in self.policies]
        lines = []
        for row in rows:
            error = "" if row["value_error"] is None else f" ± {row['value_error']:.2g}"
            true = row["true_return"]
            lines.append(
                f"J {row['value']:.4g}{error}, model return {row['model_return']:.4g}, "
                f"uncertainty {row['penalty']:.2f}"
                + ("" if true is None else f", true return {true:.1f}")
                + f": {row['path']} member {row['member']}, update {row['step']:,}"
            )
        lines.append(
            f"Estimates, no scores: the mean value along {known['num_starts']} walks of at most "
            f"{known['horizon']} steps in {len(known['seeds'])} world(s) of {known['model']}, from "
            f"logged starts, by critics of the data; ± is the standard error over the worlds, and "
            f"uncertainty is in units of its 0.95 quantile on the data."
        )
        if any(not row["within_data"] for row in rows):
            lines.append("Marked: where uncertainty is above 1 a policy leaves the data.")
        if any(row["own_worlds"] for row in rows):
            lines.append("Marked: policies that learned in these worlds are judged too well.")
        if known["shared_model"]:
            lines.append("Marked: the worlds are one; ± leaves out how much worlds differ.")
        for name, value in (self.rank_correlations() or {}).items():
            told = "none" if value is None else f"{value:.3f}"
            lines.append(f"Spearman of {name} with true returns: {told} ({len(rows)} policies)")
        return "\n".join(lines)
