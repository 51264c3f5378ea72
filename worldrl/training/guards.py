"""Guards: stop a member before its policy is ruined, and say what to change.

A learned model invites exploitation: the policy finds states where the model promises what the
world does not hold, values run away, and everything after that is waste. The guards read metrics
that every run logs anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from worldrl.config.schema import GuardSettings

REMEDY = (
    "raise imagination.penalty.weight, lower imagination.horizon, raise imagination.real_ratio, "
    "or train the model longer (model.max_epochs, model.patience)"
)


class Trip(NamedTuple):
    """Why a member was stopped."""

    reason: str
    step: int


def check(
    guard: GuardSettings,
    metrics: Mapping[str, float],
    finite: bool,
    step: int,
    reward_limit: float,
    discount: float,
    reference_loss: float | None,
) -> Trip | None:
    """Look at one member's metrics.

    Args:
        metrics: of the last interval.
        finite: every tensor of the learner is finite.
        reward_limit: the largest logged reward, in size.
        discount: of the values.
        reference_loss: the critic loss right after the warm-up; None before.
    """
    if not finite or not all(math.isfinite(value) for value in metrics.values()):
        return Trip(f"a weight or a metric is not finite; {REMEDY}", step)
    value = metrics.get("value_mean", 0.0)
    # A soft value also counts the entropy to come: where rewards are small that is most of it.
    # Intended pessimism lowers values, and is no reason to stop.
    bonus = metrics.get("temperature", 0.0) * abs(metrics.get("entropy", 0.0))
    cost = metrics.get("imagined_penalty_cost", 0.0) if value < 0 else 0.0
    limit = (reward_limit + bonus + cost) / (1 - discount)
    if abs(value) > guard.value_bound * limit:
        return Trip(
            f"mean Q is {value:.4g}, beyond {guard.value_bound:g} times what the logged rewards "
            f"and the policy's entropy allow ({limit:.4g}): the critic is diverging; {REMEDY}",
            step,
        )
    loss = metrics.get("critic_loss", 0.0)
    reference = None if reference_loss is None else max(reference_loss, 1e-8)
    if reference is not None and loss > guard.critic_loss_growth * reference:
        return Trip(
            f"the critic loss is {loss:.4g}, {loss / reference:.0f} times its value after "
            f"the warm-up ({reference:.4g}): the critic is diverging; {REMEDY}",
            step,
        )
    return None
