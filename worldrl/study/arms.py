"""Training one arm of a study and measuring it on the way."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from worldrl.config.schema import TrainConfig
from worldrl.imagination.experience import check_buffers, imagined_experience
from worldrl.training.compilation import should_compile
from worldrl.training.logged import Logged
from worldrl.training.policy import PolicyStage
from worldrl.training.policy_group import members_of
from worldrl.types import Imagination, Learner

#: Updates, of all groups, from which compiling repays: networks here are small, so that an update
#: that is not compiled is mostly overhead.
UPDATES_WORTH_COMPILING = 5_000

#: What is measured of the policies, one value a member.
Measured = Mapping[str, Sequence[float]]


class Curve(NamedTuple):
    """Numbers of one arm as it learned."""

    updates: list[int]
    values: dict[str, list[list[float]]]  # name -> (points, P)
    seconds: float

    def last(self, name: str) -> list[float]:
        """``(P,)`` at the end."""
        return self.values[name][-1]


def health(stage: PolicyStage, name: str) -> list[float]:
    """What the last refresh said of itself, a value a member; 0 before the first."""
    found: list[float] = []
    for group in stage.groups:
        known = {} if group.experience is None else group.experience.metrics
        found += known[name].tolist() if name in known else [0.0] * len(group.seeds)
    return found


def train_arm(
    name: str,
    config: TrainConfig,
    learner: Learner,
    groups: Sequence[Sequence[int]],
    logged: Logged,
    imaginations: Sequence[Imagination],
    measure: Callable[[PolicyStage], Measured],
    points: int,
    quiet: bool = False,
) -> tuple[PolicyStage, Curve]:
    """Learn to the end; measured before the first update and ``points`` times after."""
    check_buffers(config.imagination, config.population, logged.rows)
    started = time.monotonic()
    calls = config.num_updates * len(groups)
    device = logged.rows.device
    compile_update = should_compile(config.compile, calls, UPDATES_WORTH_COMPILING, device)
    experiences = imagined_experience(config.imagination, imaginations, groups, logged.rows)
    members = members_of(groups, logged.log, experiences)
    stage = PolicyStage(config, learner, members, logged, compile_update)
    curve = Curve([], {}, 0.0)

    def look() -> None:
        found = dict(measure(stage))
        curve.updates.append(stage.step)
        for key, value in found.items():
            curve.values.setdefault(key, []).append(list(value))
        if not quiet:
            line = "  ".join(f"{key} {sum(v) / len(v):.4g}" for key, v in found.items())
            print(f"{name}: update {stage.step:,}  {line}", file=sys.stderr)

    look()
    for point in range(1, points + 1):
        stage.advance(round(config.num_updates * point / points), lambda: False)
        look()
    return stage, curve._replace(seconds=time.monotonic() - started)
