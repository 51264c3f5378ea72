"""Guards: stop a member before its policy is ruined, and say what to change.

A learned model invites exploitation: the policy finds states where the model promises what the
world does not hold, values run away, and everything after that is waste. The guards read metrics
that every run logs anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from worldrl.config.schema import FinetuneConfig, GuardSettings, TrainConfig

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
    reward_best: float = 0.0
    """Mean reward of the logged episode that has the most: what a good policy earns may grow by."""


class Memory(NamedTuple):
    """What a guard remembers of one member between reports; JSON-able."""

    reference_loss: float | None = None
    """The critic loss right after the warm-up; None before."""
    values: tuple[tuple[int, float], ...] = ()
    """``(step, mean Q)`` of the reports of the last window, and of the one before it."""
    fast_since: int | None = None
    """The report since which mean Q has grown too fast."""
    good_step: int = 0
    """The update whose policy is kept, should a later one trip."""

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Memory:
        """Undo ``_asdict`` after JSON made lists of the tuples."""
        values = tuple((int(step), float(value)) for step, value in plain["values"])
        return cls(plain["reference_loss"], values, plain["fast_since"], plain["good_step"])


class Reading(NamedTuple):
    """Mean Q beside what it may be; the last three are logged."""

    value: float
    value_limit: float
    """What mean Q could be at most: the largest reward for ever."""
    value_growth: float
    """Of mean Q, while the target network follows once."""
    value_pace: float
    """The most growth to expect: a reward."""


class Verdict(NamedTuple):
    """What the guard makes of one report."""

    trip: Trip | None
    memory: Memory
    reading: Reading


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
    reading = read(metrics, step, scale, memory)
    if not finite or not all(math.isfinite(value) for value in metrics.values()):
        broken = Trip("a weight or a metric is not finite", step)
        return Verdict(broken, memory, reading)
    loss = metrics.get("critic_loss", 0.0)
    if memory.reference_loss is None and step >= guard.warmup:
        memory = memory._replace(reference_loss=loss)
    most = guard.value_growth * reading.value_pace
    fast = step >= guard.warmup and reading.value_growth > most
    memory = memory._replace(
        values=_recent(memory.values, step, reading.value),
        fast_since=(memory.fast_since or step) if fast else None,
    )
    trip = _trip(guard, step, loss, reading, memory, scale)
    if trip is None and reading.value_growth <= CALM * most:
        memory = memory._replace(good_step=step)
    return Verdict(trip, memory, reading)


def remedy(config: TrainConfig | FinetuneConfig) -> str:
    """The settings to change when a member was stopped."""
    if config.learner.kind == "bc":
        return "lower learner.learning_rate"
    if isinstance(config, FinetuneConfig):
        data = "" if config.offline_ratio else ", or learn from the data too (--recipe rlpd)"
        return f"lower learner.critic_learning_rate or updates_per_step{data}"
    if config.imagination.kind == "none":
        norm = "" if config.learner.layer_norm else "set learner.layer_norm=true, "
        return (
            f"lower learner.critic_learning_rate or learner.target_rate, {norm}"
            "or raise learner.num_critics"
        )
    if config.imagination.kind == "simulator":
        weight = "raise learner.conservative_weight, " if config.learner.kind == "h2o" else ""
        return f"{weight}lower imagination.horizon, or raise imagination.real_ratio"
    which = "the" if config.model.source is None else "another"
    return (
        f"{_more_pessimism(config)}, lower imagination.horizon, raise imagination.real_ratio, or "
        f"train {which} model longer (model.max_epochs, model.patience)"
    )


def _more_pessimism(config: TrainConfig) -> str:
    """How this run's imagination, or its learner, is told to trust the model less."""
    imagination = config.imagination
    if imagination.kind != "branched":
        return "raise imagination.adversarial_weight"
    stop = "set" if imagination.stop.kind == "none" else "lower"
    stop = f"{stop} imagination.stop.{'kind' if stop == 'set' else 'quantile'}"
    if imagination.filter.kind != "none":
        stop = "raise imagination.filter.limit"
    if config.learner.kind == "mobile":
        return f"raise learner.inconsistency_weight, {stop}"
    weight = "set" if imagination.penalty.kind == "none" else "raise"
    return f"{weight} imagination.penalty.{'kind' if weight == 'set' else 'weight'}, {stop}"


def read(metrics: Mapping[str, float], step: int, scale: Scale, memory: Memory) -> Reading:
    """What mean Q is and may be."""
    value = metrics.get("value_mean", 0.0)
    # A soft value also counts the entropy to come: where rewards are small that is most of it.
    bonus = metrics.get("temperature", 0.0) * metrics.get("entropy", 0.0)
    # Intended pessimism lowers values, and is no reason to stop.
    costs = "imagined_penalty_cost", "inconsistency_cost"
    cost = sum(metrics.get(name, 0.0) for name in costs) if value < 0 else 0.0
    # A policy better than its data earns more than the data, within what was ever logged.
    earned = min(metrics.get("imagined_reward_mean", 0.0), scale.reward_max)
    return Reading(
        value,
        (scale.reward_max + abs(bonus) + cost) / (1 - scale.discount),
        _growth(memory.values, step, value) * scale.value_lag,
        max(scale.reward_rms, scale.reward_best, earned) + max(bonus, 0.0),
    )


def _trip(
    guard: GuardSettings, step: int, loss: float, reading: Reading, memory: Memory, scale: Scale
) -> Trip | None:
    value, limit, growth, pace = reading
    if abs(value) > guard.value_bound * limit:
        return Trip(
            f"mean Q is {value:.4g}, beyond {guard.value_bound:g} times what the logged rewards "
            f"and the policy's entropy allow ({limit:.4g}): the critic is diverging",
            step,
        )
    if memory.fast_since is not None and step - memory.fast_since >= WINDOW:
        return Trip(
            f"mean Q is {value:.4g} and has grown since update {memory.fast_since} faster than "
            f"rewards can carry it (by {growth:.3g} while the target network follows once, where "
            f"{guard.value_growth * pace:.3g} is the most to expect): the critic feeds on its own "
            f"optimism",
            step,
        )
    if memory.reference_loss is None:
        return None
    # Where rewards are rare there is hardly a loss at first: to be wrong by a reward is healthy.
    reference = max(memory.reference_loss, scale.reward_rms**2, 1e-8)
    if loss > guard.critic_loss_growth * reference:
        return Trip(
            f"the critic loss is {loss:.4g}, {loss / reference:.0f} times its value after "
            f"the warm-up, or the squared reward ({reference:.4g}): the critic is diverging",
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
