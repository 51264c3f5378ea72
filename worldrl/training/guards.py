"""Guards: stop a member before its policy is ruined, and say what to change.

A learned model invites exploitation: the policy finds states where the model promises what the
world does not hold, values run away, and everything after that is waste. The guards read metrics
that every run logs anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from worldrl.config.schema import GuardSettings

REMEDY = (
    "raise imagination.penalty.weight, lower imagination.horizon, raise imagination.real_ratio, "
    "or train the model longer (model.max_epochs, model.patience)"
)

#: Updates over which growth is measured, and for which it must last.
WINDOW = 1_000

#: Share of the growth that trips below which a policy counts as good.
CALM = 0.25


class Trip(NamedTuple):
    """Why a member was stopped."""

    reason: str
    step: int


class Scale(NamedTuple):
    """What values can be, given the data and the learner."""

    reward_max: float
    """The largest logged reward, in size."""
    reward_rms: float
    discount: float
    value_lag: float
    """Updates that the target network takes to follow the critic."""


class Memory(NamedTuple):
    """What a guard remembers of one member between reports; JSON-able."""

    reference_loss: float | None = None
    """The critic loss right after the warm-up; None before."""
    values: tuple[tuple[int, float], ...] = ()
    """``(step, mean Q)`` of the reports of the last window, and of the one before it."""
    fast_since: int | None = None
    """The report since which mean Q has grown too fast."""

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Memory:
        """Undo ``_asdict`` after JSON made lists of the tuples."""
        values = tuple((int(step), float(value)) for step, value in plain["values"])
        return cls(plain["reference_loss"], values, plain["fast_since"])


class Verdict(NamedTuple):
    """What the guard makes of one report."""

    trip: Trip | None
    calm: bool
    """This policy is worth going back to, should a later one trip."""
    memory: Memory


def check(
    guard: GuardSettings,
    metrics: Mapping[str, float],
    finite: bool,
    step: int,
    scale: Scale,
    memory: Memory,
) -> Verdict:
    """Look at one member's metrics.

    The sign that comes first is the pace of mean Q. While a critic learns the return of a policy,
    one target-network lag adds about ``r + discount V(s') - Q(s, a)``: at first the reward, and
    less and less as Q comes near its fixed point. Growth by more than a reward a lag means that
    the next states' values outrun the values themselves, which feed on them.

    Args:
        metrics: of the last interval.
        finite: every tensor of the learner is finite.
    """
    if not finite or not all(math.isfinite(value) for value in metrics.values()):
        broken = Trip(f"a weight or a metric is not finite; {REMEDY}", step)
        return Verdict(broken, False, memory)
    value = metrics.get("value_mean", 0.0)
    loss = metrics.get("critic_loss", 0.0)
    if memory.reference_loss is None and step >= guard.warmup:
        memory = memory._replace(reference_loss=loss)
    # A soft value also counts the entropy to come: where rewards are small that is most of it.
    bonus = metrics.get("temperature", 0.0) * metrics.get("entropy", 0.0)
    growth = _growth(memory.values, step, value) * scale.value_lag
    pace = guard.value_growth * (scale.reward_rms + max(bonus, 0.0))
    fast = step >= guard.warmup and growth > pace
    memory = memory._replace(
        values=_recent(memory.values, step, value),
        fast_since=(memory.fast_since or step) if fast else None,
    )
    trip = _trip(guard, step, value, loss, growth, pace, bonus, metrics, scale, memory)
    return Verdict(trip, trip is None and growth <= CALM * pace, memory)


def _trip(
    guard: GuardSettings,
    step: int,
    value: float,
    loss: float,
    growth: float,
    pace: float,
    bonus: float,
    metrics: Mapping[str, float],
    scale: Scale,
    memory: Memory,
) -> Trip | None:
    # Intended pessimism lowers values, and is no reason to stop.
    cost = metrics.get("imagined_penalty_cost", 0.0) if value < 0 else 0.0
    limit = (scale.reward_max + abs(bonus) + cost) / (1 - scale.discount)
    if abs(value) > guard.value_bound * limit:
        return Trip(
            f"mean Q is {value:.4g}, beyond {guard.value_bound:g} times what the logged rewards "
            f"and the policy's entropy allow ({limit:.4g}): the critic is diverging; {REMEDY}",
            step,
        )
    if memory.fast_since is not None and step - memory.fast_since >= WINDOW:
        return Trip(
            f"mean Q is {value:.4g} and has grown since update {memory.fast_since} faster than "
            f"rewards can carry it (by {growth:.3g} while the target network follows once, where "
            f"{pace:.3g} is the most to expect): the critic feeds on its own optimism; {REMEDY}",
            step,
        )
    reference = None if memory.reference_loss is None else max(memory.reference_loss, 1e-8)
    if reference is not None and loss > guard.critic_loss_growth * reference:
        return Trip(
            f"the critic loss is {loss:.4g}, {loss / reference:.0f} times its value after "
            f"the warm-up ({reference:.4g}): the critic is diverging; {REMEDY}",
            step,
        )
    return None


def _growth(values: tuple[tuple[int, float], ...], step: int, value: float) -> float:
    """Growth of mean Q an update, over at least a window; 0 before there is one."""
    before = [known for known in values if step - known[0] >= WINDOW]
    return (value - before[-1][1]) / (step - before[-1][0]) if before else 0.0


def _recent(
    values: tuple[tuple[int, float], ...], step: int, value: float
) -> tuple[tuple[int, float], ...]:
    """Reports that a later growth may be measured from, this one included."""
    known = (*values, (step, value))
    needed = [index for index, (when, _) in enumerate(known) if step - when >= WINDOW]
    return known[needed[-1] if needed else 0 :]
