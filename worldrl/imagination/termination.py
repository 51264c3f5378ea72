"""Where imagined episodes end: formulas of known tasks, under exact names.

A formula is a pure function ``(observation, action, next_observation) -> done`` on ``(..., S),
(..., A), (..., S) -> (...) bool``, and reads the next observation. A next observation that is not
finite ends the episode in every task. The limits are those of gymnasium's and D4RL's environments;
tests compare them with the simulator's own ``terminated``.

Observations hide some of a simulator's state: it also ends Hopper where a velocity reaches 100,
but shows velocities clipped to 10.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from worldrl.errors import ConfigError
from worldrl.tasks import parse
from worldrl.types import Termination


class Rule(NamedTuple):
    """A formula and the observation sizes that its indices are right for."""

    ends: Termination
    sizes: frozenset[int] | None  # None: it reads no index


def never(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Only where the next observation is not finite: halfcheetah, pendulum, kitchen and others.

    Published code also cuts rollouts whose state exceeds 100; here the box of
    ``imagination.clip_range`` keeps them near the data.
    """
    return ~_finite(next_observation)


def hopper(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Height at most 0.7, pitch of 0.2 or more, or another entry of 100 or more, in size.

    Widely copied code takes the absolute value of the comparison instead of the state and so
    misses the lower bounds.
    """
    return _hopper(next_observation)


def walker2d(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Height outside (0.8, 2) or pitch outside (-1, 1)."""
    return _walker2d(next_observation)


def ant(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Height outside [0.2, 1]."""
    height = next_observation[..., 0]
    return ~(_finite(next_observation) & (height >= 0.2) & (height <= 1.0))


def humanoid(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Height outside (1, 2)."""
    height = next_observation[..., 0]
    return ~(_finite(next_observation) & (height > 1.0) & (height < 2.0))


def inverted_pendulum(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Pole angle above 0.2 in size."""
    return ~(_finite(next_observation) & (next_observation[..., 1].abs() <= 0.2))


def inverted_double_pendulum(
    observation: Tensor, action: Tensor, next_observation: Tensor
) -> Tensor:
    """Tip at most 1 high.

    Both poles are 0.6 long and the second angle is relative to the first, so the tip stands at
    ``0.6 (cos a + cos(a + b))``; the observation holds ``x, sin a, sin b, cos a, cos b, ...``.
    """
    sin_a, sin_b, cos_a, cos_b = next_observation[..., 1:5].unbind(-1)
    height = 0.6 * (cos_a + cos_a * cos_b - sin_a * sin_b)
    return ~(_finite(next_observation) & (height > 1.0))


def cartpole(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Cart farther than 2.4 from the centre or pole beyond 12 degrees."""
    position, angle = next_observation[..., 0], next_observation[..., 2]
    upright = (position.abs() <= 2.4) & (angle.abs() <= 12 * math.pi / 180)
    return ~(_finite(next_observation) & upright)


def adroit_pen(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """The pen is dropped: its height is below 0.075."""
    return ~(_finite(next_observation) & (next_observation[..., 26] >= 0.075))


def antmaze_umaze(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Within 0.25 of the mean goal (0.75, 8.75)."""
    return _reached(next_observation, 0.75, 8.75)


def antmaze_medium(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Within 0.25 of the mean goal (20.75, 20.75)."""
    return _reached(next_observation, 20.75, 20.75)


def antmaze_large(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Within 0.25 of the mean goal (32.75, 24.75)."""
    return _reached(next_observation, 32.75, 24.75)


def neorl_hopper(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Hopper with the x position in front of the observation."""
    return _hopper(next_observation[..., 1:])


def neorl_walker2d(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Walker2d with the x position in front of the observation."""
    return _walker2d(next_observation[..., 1:])


#: Sizes differ by version and settings (Ant and Humanoid with or without contact forces and other
#: blocks, InvertedDoublePendulum with three constraint forces or one) but indices do not. A size
#: that is missing here has the x position in front, or is of another task.
RULES: dict[str, Rule] = {
    "never": Rule(never, None),
    "halfcheetah": Rule(never, None),
    "hopper": Rule(hopper, frozenset({11})),
    "walker2d": Rule(walker2d, frozenset({17})),
    "ant": Rule(ant, frozenset({27, 105, 111})),
    "humanoid": Rule(humanoid, frozenset({45, 348, 376})),
    "swimmer": Rule(never, None),
    "humanoidstandup": Rule(never, None),
    "reacher": Rule(never, None),
    "pusher": Rule(never, None),
    "invertedpendulum": Rule(inverted_pendulum, frozenset({4})),
    "inverteddoublependulum": Rule(inverted_double_pendulum, frozenset({9, 11})),
    "pendulum": Rule(never, None),
    "cartpole": Rule(cartpole, frozenset({4})),
    "maze2d": Rule(never, None),
    "antmaze-umaze": Rule(antmaze_umaze, frozenset({29})),
    "antmaze-medium": Rule(antmaze_medium, frozenset({29})),
    "antmaze-large": Rule(antmaze_large, frozenset({29})),
    "adroit-pen": Rule(adroit_pen, frozenset({45})),
    "adroit-door": Rule(never, None),
    "adroit-hammer": Rule(never, None),
    "adroit-relocate": Rule(never, None),
    "kitchen": Rule(never, None),
    "neorl-halfcheetah": Rule(never, None),
    "neorl-hopper": Rule(neorl_hopper, frozenset({12})),
    "neorl-walker2d": Rule(neorl_walker2d, frozenset({18})),
}

#: D4RL's robots -> names above, where they differ. Robots of other simulators have no rule.
_D4RL = {
    **{robot: robot for robot in ("halfcheetah", "hopper", "walker2d", "ant", "kitchen")},
    **{f"antmaze-{size}": f"antmaze-{size}" for size in ("umaze", "medium", "large")},
    **{f"maze2d-{size}": "maze2d" for size in ("open", "umaze", "medium", "large")},
    **{f"maze2d-eval-{size}": "maze2d" for size in ("umaze", "medium", "large")},
    **{robot: f"adroit-{robot}" for robot in ("pen", "door", "hammer", "relocate")},
}


def rule_name(env_id: str | None) -> str | None:
    """The name in :data:`RULES` for an environment or dataset; None where the task is unknown."""
    task = parse(env_id) if env_id else None
    if task is None:
        return None
    if task.suite == "d4rl":
        return _D4RL.get(task.robot)
    return f"neorl-{task.robot}" if task.suite == "neorl" else task.robot


def find_formula(env_id: str | None, observation_size: int) -> tuple[str, Termination] | None:
    """Name and formula for an environment; None where the task or its observation is unknown."""
    name = rule_name(env_id)
    if name is None or not _fits(RULES[name], observation_size):
        return None
    return name, RULES[name].ends


def formula(name: str, observation_size: int) -> Termination:
    """The formula called ``name``.

    Raises:
        ConfigError: it does not read observations of this size.
    """
    rule = RULES[name]
    if not _fits(rule, observation_size):
        raise ConfigError(
            f"termination.task '{name}' reads observations of size "
            f"{' or '.join(map(str, sorted(rule.sizes or ())))}, but this data has "
            f"{observation_size}: its entries mean something else. Set termination.kind=learned "
            "or never."
        )
    return rule.ends


def _fits(rule: Rule, observation_size: int) -> bool:
    return rule.sizes is None or observation_size in rule.sizes


def _finite(next_observation: Tensor) -> Tensor:
    return next_observation.isfinite().all(-1)


def _hopper(state: Tensor) -> Tensor:
    bounded = (state[..., 1:].abs() < 100).all(-1)
    upright = (state[..., 0] > 0.7) & (state[..., 1].abs() < 0.2)
    return ~(_finite(state) & bounded & upright)


def _walker2d(state: Tensor) -> Tensor:
    height, pitch = state[..., 0], state[..., 1]
    upright = (height > 0.8) & (height < 2.0) & (pitch > -1.0) & (pitch < 1.0)
    return ~(_finite(state) & upright)


def _reached(next_observation: Tensor, x: float, y: float) -> Tensor:
    across, along = next_observation[..., 0] - x, next_observation[..., 1] - y
    return ~_finite(next_observation) | (across.square() + along.square() <= 0.25**2)
