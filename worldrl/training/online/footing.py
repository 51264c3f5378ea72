"""Does fine-tuning keep what the offline run had learned?

Values and returns often collapse at first: the critics meet actions that no logged one is near, and
forget. What is looked at is mean Q on the warm-up's transitions and the episodes' return, both
against what they were before the first update.
"""

from __future__ import annotations

import math

from worldrl.config.schema import FinetuneConfig

#: Episodes from which their mean return is looked at.
FEWEST = 3


def change(now: float | None, before: float | None) -> float:
    """As a share of the size before; nan where one is not known."""
    if now is None or before is None:
        return math.nan
    return (now - before) / max(abs(before), 1e-8)


def mean_return(returns: list[float], fewest: int = FEWEST) -> float | None:
    """Of episodes; None of too few."""
    return sum(returns) / len(returns) if len(returns) >= fewest else None


def advice(config: FinetuneConfig, value_change: float, return_change: float) -> str | None:
    """What to say of such changes; None where they are within the limits."""
    limits = config.footing
    found = []
    if abs(value_change) > limits.max_value_shift:
        found.append(f"mean Q on the warm-up's transitions changed by {value_change:+.0%}")
    if return_change < -limits.max_return_drop:
        found.append(f"the return changed by {return_change:+.0%}")
    if not found:
        return None
    instead = "--recipe rlpd weights=run, which learns from the data too"
    if config.offline_ratio:
        instead = "a lower learner.actor_learning_rate or updates_per_step"
    return (
        f"{' and '.join(found)} since the first update: what the offline run had learned may be "
        f"on its way out. Should returns stay low, start again with {instead}"
    )
