"""The gate through which policies must pass to become a run's result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from worldrl.evaluation.off_policy import Verdict, judge
from worldrl.training.judging.judge import Judge
from worldrl.types import Learner, Parameters


class Standing(NamedTuple):
    """What the gate remembers of one member."""

    accepted: tuple[float, ...] | None = None
    """J of the policy that is kept, by each judge; None: none was accepted yet."""
    times: int = 0
    """Policies accepted so far."""
    last: Verdict | None = None

    def metrics(self) -> dict[str, float]:
        """The last verdict, as a run logs it; NaN before there is one."""
        last = self.last

        def number(value: float | None) -> float:
            return math.nan if value is None else value

        return {
            "judged_value": number(last and last.value),
            "judged_gain": number(last and last.gain),
            "judged_error": number(last and last.error),
            "judged_penalty": number(last and last.penalty),
            "accepted_count": float(self.times),
        }

    def to_json(self) -> dict[str, Any]:
        """Undone by :meth:`from_json`."""
        return {**self._asdict(), "last": self.last and self.last._asdict()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Standing:
        """Undo :meth:`to_json` after JSON made lists of the tuples."""
        accepted, last = plain["accepted"], plain["last"]
        return cls(accepted and tuple(accepted), plain["times"], last and Verdict(**last))


class Gate(NamedTuple):
    """Judges candidates every so many updates."""

    judge: Judge
    every: int

    def due(self, step: int) -> bool:
        """Is the policy of this update a candidate?"""
        return step % self.every == 0

    def next(self, step: int) -> int:
        """The update whose policy is the next candidate."""
        return (step // self.every + 1) * self.every

    def consider(self, learner: Learner, policy: Parameters, standing: Standing) -> Standing:
        """Judge one member's policy ``(1, ...)``; the last verdict says whether to keep it."""
        found = self.judge.estimate(learner, policy)
        values = found.value.tolist()
        # Where a walk broke, no number tells how far from the data it went.
        penalty = found.penalty.where(found.broken_share == 0, math.inf)
        verdict = judge(values, penalty.tolist(), standing.accepted)
        if not verdict.accepted:
            return standing._replace(last=verdict)
        return Standing(tuple(values), standing.times + 1, verdict)
