"""The record of one evaluation: the protocol beside the number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldrl.evaluation.returns import EpisodeReturns
from worldrl.evaluation.statistics import (
    Interval,
    interquartile_mean,
    mean,
    normalized_score,
    normalized_std,
    stratified_bootstrap,
)
from worldrl.strict_json import finite


@dataclass(frozen=True)
class Summary:
    """Aggregates over members, each averaged over its episodes first."""

    mean: float
    std: float
    """Over members (ddof 1); over the episodes (ddof 1) where there is one member."""
    iqm: float
    mean_interval: Interval | None
    """95 % stratified bootstrap over members; None for one member."""
    iqm_interval: Interval | None


@dataclass(frozen=True)
class Result:
    """Scores of a population in one environment."""

    env_id: str
    recorded_env_id: str | None
    """The environment that the data came from; None where the data does not say."""
    seed: int
    """Of the episodes' starts."""
    returns: tuple[tuple[float, ...], ...]
    """Per member and episode, undiscounted."""
    lengths: tuple[tuple[int, ...], ...]
    """Per member and episode, steps."""
    raw: Summary
    normalized: Summary | None
    """None where the environment has no reference scores."""
    reference: tuple[float, float] | None
    """Returns that 0 and 100 stand for."""
    steps: tuple[int, ...] | None = None
    """Per member, updates that its policy had seen; None where the caller does not know."""
    stopped_by_guard: tuple[bool, ...] | None = None
    """Per member: it plays its last good policy, not its last; None: not known."""

    shared_model: bool = False
    """All members learned in one world model: intervals over them are too narrow."""
    environment_steps: int | None = None
    """Of every member that fine-tuned its policy online; None where none did."""

    @property
    def members(self) -> int:
        """Size of the population."""
        return len(self.returns)

    @property
    def episodes(self) -> int:
        """Episodes per member."""
        return len(self.returns[0])

    @property
    def other_environment(self) -> bool:
        """The data came from another environment: compare with nothing but its like."""
        return self.recorded_env_id is not None and self.recorded_env_id != self.env_id

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not a finite number is None."""
        value: dict[str, Any] = {
            "return_mean": self.raw.mean,
            "return_std": self.raw.std,
            "std_over": "members" if self.members > 1 else "episodes",
            "return_iqm": self.raw.iqm,
            "return_mean_interval": self.raw.mean_interval,
            "return_iqm_interval": self.raw.iqm_interval,
            "normalized_score": None,
            "normalized_std": None,
            "normalized_iqm": None,
            "normalized_mean_interval": None,
            "normalized_iqm_interval": None,
            "reference": self.reference,
            "env_id": self.env_id,
            "recorded_env_id": self.recorded_env_id,
            "other_environment": self.other_environment,
            "seed": self.seed,
            "members": self.members,
            "episodes": self.episodes,
            "deterministic": True,
            "shared_model": self.shared_model,
            "returns": self.returns,
            "lengths": self.lengths,
        }
        if self.steps is not None:
            value["step"] = max(self.steps)
            value["steps"] = self.steps
        if self.environment_steps is not None:
            steps = self.environment_steps
            value |= {"online": True, "step": steps, "environment_steps": steps}
        if self.stopped_by_guard is not None:
            value["stopped_by_guard"] = self.stopped_by_guard
        if self.normalized:
            value |= {
                "normalized_score": self.normalized.mean,
                "normalized_std": self.normalized.std,
                "normalized_iqm": self.normalized.iqm,
                "normalized_mean_interval": self.normalized.mean_interval,
                "normalized_iqm_interval": self.normalized.iqm_interval,
            }
        plain: dict[str, Any] = finite(value)
        return plain

    def protocol(self) -> str:
        """One paragraph: the number and how it was made."""
        count = f"{self.members} members" if self.members > 1 else "1 member"
        which = "last policy"
        if self.steps is not None:
            numbers = " or ".join(f"{step:,}" for step in sorted(set(self.steps)))
            which = f"policy after {numbers} updates"
        lines = [
            f"return {_describe(self.raw)} in {self.env_id}: {count}, {self.episodes} "
            f"deterministic episodes each, episode seed {self.seed}, {which}."
        ]
        if self.normalized and self.reference:
            low, high = self.reference
            lines.append(
                f"normalised {_describe(self.normalized)} (0 is {low:g}, 100 is {high:g})."
            )
        if stopped := sum(self.stopped_by_guard or ()):
            lines.append(
                f"Marked: a guard stopped {stopped} of {count}; scored is the last good policy."
            )
        if self.shared_model:
            lines.append(
                "Marked: all members learned in one world model; the interval is too narrow."
            )
        if self.environment_steps is not None:
            lines.append(
                f"Marked: fine-tuned online, {self.environment_steps:,} steps in the environment "
                "a member."
            )
        if self.other_environment:
            lines.append(
                f"Marked: the data was recorded in {self.recorded_env_id}, another environment."
            )
        return "\n".join(lines)


def summarize(scores: NDArray[np.float64], seed: int = 0) -> Summary:
    """Aggregate ``(P, episodes)`` scores.

    Args:
        seed: of the bootstrap.
    """
    members = scores.mean(1, keepdims=True)  # (P, 1): runs on one task
    spread = members if len(members) > 1 else scores.reshape(-1, 1)
    return Summary(
        mean=float(mean(members)),
        std=float(spread.std(ddof=1)) if len(spread) > 1 else 0.0,
        iqm=float(interquartile_mean(members)),
        mean_interval=stratified_bootstrap(members, mean, seed=seed),
        iqm_interval=stratified_bootstrap(members, interquartile_mean, seed=seed),
    )


def evaluation_result(
    played: EpisodeReturns,
    *,
    env_id: str,
    seed: int,
    recorded_env_id: str | None = None,
    reference: tuple[float, float] | None = None,
) -> Result:
    """Aggregate what :func:`worldrl.evaluation.returns.evaluate_returns` gave.

    Args:
        reference: returns that the normalised 0 and 100 stand for.
    """
    raw = summarize(played.returns)
    return Result(
        env_id=env_id,
        recorded_env_id=recorded_env_id,
        seed=seed,
        returns=tuple(tuple(row) for row in played.returns.tolist()),
        lengths=tuple(tuple(row) for row in played.lengths.tolist()),
        raw=raw,
        normalized=None if reference is None else _normalized(raw, reference),
        reference=reference,
    )


def _normalized(raw: Summary, reference: tuple[float, float]) -> Summary:
    """The map is affine, so every aggregate can be mapped after the fact."""

    def interval(ends: Interval | None) -> Interval | None:
        return ends and Interval(*normalized_score(np.array(ends), reference).tolist())

    return Summary(
        mean=float(normalized_score(raw.mean, reference)),
        std=float(normalized_std(raw.std, reference)),
        iqm=float(normalized_score(raw.iqm, reference)),
        mean_interval=interval(raw.mean_interval),
        iqm_interval=interval(raw.iqm_interval),
    )


def _describe(summary: Summary) -> str:
    text = f"{summary.mean:.1f} ± {summary.std:.1f}"
    if summary.mean_interval:
        low, high = summary.mean_interval
        text += f" (95 % interval {low:.1f} to {high:.1f}), IQM {summary.iqm:.1f}"
    return text
