"""Names of known tasks, parsed by explicit tables.

A name is matched whole: ``antmaze-umaze-v2`` is not an ant and ``pendulum`` is not a pen. What is
not in the tables is an unknown task, which is no error: it has no termination formula and no
reference score.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Task(NamedTuple):
    """A known task."""

    suite: str
    """``gymnasium``, ``d4rl`` or ``neorl``."""
    robot: str
    """Lower case, e.g. ``halfcheetah`` or ``antmaze-umaze``."""
    variant: str
    """What a dataset's name says beyond the robot, e.g. ``medium-replay``; else empty."""
    version: int


class _Family(NamedTuple):
    variants: tuple[str, ...]
    versions: tuple[int, ...]


#: Environment names of gymnasium (case matters there) -> robot, versions that ever existed.
GYMNASIUM: dict[str, tuple[str, tuple[int, ...]]] = {
    "HalfCheetah": ("halfcheetah", (2, 3, 4, 5)),
    "Hopper": ("hopper", (2, 3, 4, 5)),
    "Walker2d": ("walker2d", (2, 3, 4, 5)),
    "Ant": ("ant", (2, 3, 4, 5)),
    "Humanoid": ("humanoid", (2, 3, 4, 5)),
    "Swimmer": ("swimmer", (2, 3, 4, 5)),
    "HumanoidStandup": ("humanoidstandup", (2, 4, 5)),
    "InvertedPendulum": ("invertedpendulum", (2, 4, 5)),
    "InvertedDoublePendulum": ("inverteddoublependulum", (2, 4, 5)),
    "Reacher": ("reacher", (2, 4, 5)),
    "Pusher": ("pusher", (2, 4, 5)),
    "Pendulum": ("pendulum", (0, 1)),
    "CartPole": ("cartpole", (0, 1)),
}

_LOCOMOTION = _Family(
    ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert"), (0, 1, 2)
)
_HAND = _Family(("human", "cloned", "expert"), (0, 1))
_BULLET = _Family(("random", "medium", "expert", "medium-replay", "medium-expert"), (0,))
_MAZE = _Family(("", "dense"), (0, 1))

#: Robots of D4RL (Fu et al. 2020, arXiv 2004.07219) and their datasets.
D4RL: dict[str, _Family] = {
    "halfcheetah": _LOCOMOTION,
    "hopper": _LOCOMOTION,
    "walker2d": _LOCOMOTION,
    "ant": _Family((*_LOCOMOTION.variants, "random-expert"), (0, 1, 2)),
    "pen": _HAND,
    "hammer": _HAND,
    "door": _HAND,
    "relocate": _HAND,
    "maze2d-open": _MAZE,
    "maze2d-umaze": _MAZE,
    "maze2d-medium": _MAZE,
    "maze2d-large": _MAZE,
    "maze2d-eval-umaze": _MAZE,
    "maze2d-eval-medium": _MAZE,
    "maze2d-eval-large": _MAZE,
    "antmaze-umaze": _Family(("", "diverse"), (0, 1, 2)),
    "antmaze-medium": _Family(("play", "diverse"), (0, 1, 2)),
    "antmaze-large": _Family(("play", "diverse"), (0, 1, 2)),
    "kitchen": _Family(("complete", "partial", "mixed"), (0,)),
    "minigrid-fourrooms": _Family(("", "random"), (0,)),
    "bullet-halfcheetah": _BULLET,
    "bullet-hopper": _BULLET,
    "bullet-ant": _BULLET,
    "bullet-walker2d": _BULLET,
    "bullet-maze2d": _Family(("open", "umaze", "medium", "large"), (0,)),
    "flow-ring": _Family(("random", "controller"), (0,)),
    "flow-merge": _Family(("random", "controller"), (0,)),
    "carla-lane": _Family(("",), (0,)),
    "carla-town": _Family(("", "full"), (0,)),
}

#: NeoRL (Qin et al. 2022, arXiv 2102.00714) names environments as gymnasium does but keeps the
#: x position in the observation, so its names carry a prefix here: ``neorl/Hopper-v3``.
NEORL: dict[str, str] = {
    "HalfCheetah": "halfcheetah",
    "Hopper": "hopper",
    "Walker2d": "walker2d",
}
_NEORL_VARIANTS = ("", "low", "medium", "high")

_VERSIONED = re.compile(r"(?P<stem>.+)-v(?P<version>\d+)", re.ASCII)
_NEORL = re.compile(r"neorl/(?P<name>\w+)-v3(?:-(?P<variant>\w+))?", re.ASCII)

#: ``robot-variant -> (robot, variant)`` for every D4RL dataset, so that names are matched whole.
_D4RL_STEMS: dict[str, tuple[str, str]] = {
    f"{robot}-{variant}" if variant else robot: (robot, variant)
    for robot, family in D4RL.items()
    for variant in family.variants
}


def parse(name: str) -> Task | None:
    """The task that ``name`` stands for, or None where the name is not known.

    Args:
        name: a gymnasium id (``HalfCheetah-v5``), the name of a D4RL dataset
            (``halfcheetah-medium-replay-v2``) or a NeoRL name (``neorl/Hopper-v3`` or
            ``neorl/Hopper-v3-low``).
    """
    neorl = _NEORL.fullmatch(name)
    if neorl:
        variant = neorl["variant"] or ""
        if neorl["name"] in NEORL and variant in _NEORL_VARIANTS:
            return Task("neorl", NEORL[neorl["name"]], variant, 3)
        return None
    versioned = _VERSIONED.fullmatch(name)
    if not versioned:
        return None
    stem, version = versioned["stem"], int(versioned["version"])
    if stem in GYMNASIUM:
        robot, versions = GYMNASIUM[stem]
        return Task("gymnasium", robot, "", version) if version in versions else None
    if stem in _D4RL_STEMS:
        robot, variant = _D4RL_STEMS[stem]
        return Task("d4rl", robot, variant, version) if version in D4RL[robot].versions else None
    return None


def gymnasium_id(robot: str, version: int) -> str:
    """``("halfcheetah", 5) -> "HalfCheetah-v5"`` for robots of :data:`GYMNASIUM`."""
    names = {known: name for name, (known, _) in GYMNASIUM.items()}
    return f"{names[robot]}-v{version}"
