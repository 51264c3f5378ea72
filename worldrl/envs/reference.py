"""D4RL's reference scores: 0 is a random policy, 100 an expert (Fu et al. 2020, arXiv 2004.07219).

The table is ``d4rl/infos.py`` of Farama-Foundation/D4RL. It is extended by one rule: HalfCheetah,
Hopper, Walker2d and Ant of gymnasium, in any version, take the scores of D4RL's datasets of that
robot (which are the same for all its datasets). Those were measured in the v2 environments, so a
normalised score in v4 or v5 compares with published ones only roughly: v5 changed the reward of
unhealthy states and Ant's contact cost.
"""

from __future__ import annotations

import csv
from functools import lru_cache
from importlib.resources import files

from worldrl.tasks import parse

_EXTENDED = ("halfcheetah", "hopper", "walker2d", "ant")


@lru_cache(maxsize=1)
def _table() -> dict[str, tuple[float, float]]:
    text = (files("worldrl.envs") / "d4rl_reference_scores.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return {row["env"]: (float(row["min_score"]), float(row["max_score"])) for row in rows}


def reference_scores(name: str | None) -> tuple[float, float] | None:
    """Returns of the random and the expert policy, or None where there are none.

    Args:
        name: of a D4RL dataset or a gymnasium environment; None for an unknown environment.
    """
    if name is None:
        return None
    if name in _table():
        return _table()[name]
    task = parse(name)
    if task and task.suite == "gymnasium" and task.robot in _EXTENDED:
        return _table()[f"{task.robot}-medium-v2"]
    return None
