"""Which environment scores a policy, given the one that recorded its data.

A version is part of an environment: v2 and v3 ran on mujoco-py, v4 kept their rewards on today's
mujoco, v5 changed rewards and models. Scoring elsewhere than the data was recorded is therefore
refused unless asked for, and then marked in the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from worldrl.envs.build import make
from worldrl.errors import EnvironmentSetupError
from worldrl.tasks import Task, gymnasium_id, parse

if TYPE_CHECKING:
    import gymnasium

#: The environment that recorded D4RL's datasets, by robot. Robots that are not here have no
#: environment in gymnasium: mazes, hands, the kitchen and other simulators.
D4RL_RECORDED_IN: dict[str, str] = {
    "halfcheetah": "HalfCheetah-v2",
    "hopper": "Hopper-v2",
    "walker2d": "Walker2d-v2",
    "ant": "Ant-v2",
}

#: The version that comes nearest to one that is not installed.
_SUCCESSOR = {0: 1, 2: 4, 3: 4, 4: 5}


@dataclass(frozen=True)
class Scoring:
    """The environment that scores, and how it relates to the data."""

    env_id: str
    recorded_env_id: str | None
    """The environment that recorded the data; None where the data does not say."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the environment's constructor."""

    @property
    def other_environment(self) -> bool:
        """The data comes from another environment than the one that scores."""
        return self.recorded_env_id is not None and self.recorded_env_id != self.env_id

    @property
    def factory(self) -> Callable[[], gymnasium.Env]:
        """Builds one environment a call."""
        return partial(make, self.env_id, self.settings)


def scoring_environment(
    recorded: str | None, requested: str | None = None, allow_other: bool = False
) -> Scoring:
    """Decide where a policy is scored.

    Args:
        recorded: what the data says: a gymnasium id or the name of a D4RL dataset.
        requested: the gymnasium id that the user wants, if any.
        allow_other: accept another environment than the recorded one.

    Raises:
        EnvironmentSetupError: no environment is named, the recorded one is not installed, or
            the requested one is another and ``allow_other`` is false.
    """
    task = parse(recorded) if recorded else None
    origin = _recorded_in(recorded, task)
    if requested is not None:
        if origin is not None and requested != origin and not allow_other:
            raise EnvironmentSetupError(
                f"the data was recorded in '{origin}' but evaluation.env_id is '{requested}', and "
                "scores of unlike environments do not compare. Set "
                "evaluation.allow_other_environment=true to score there; the result is marked."
            )
        return Scoring(requested, origin, _settings(requested, task))
    if origin is None:
        raise EnvironmentSetupError(
            "the data does not name the environment that recorded it, so there is nothing to "
            "score in. Set evaluation.env_id (train) or pass --env-id (evaluate)."
        )
    reason = _why_not(origin, task)
    if reason is None:
        return Scoring(origin, origin)
    successor = _successor(origin)
    if successor is None:
        raise EnvironmentSetupError(
            f"the environment of '{recorded}' cannot be built here: {reason}"
        )
    settings = _settings(successor, task)
    make(successor, settings).close()
    if not allow_other:
        raise EnvironmentSetupError(
            f"the data of '{recorded}' was recorded in '{origin}', which cannot be built here: "
            f"{reason} The nearest is '{successor}': set evaluation.allow_other_environment=true, "
            f"or pass --env-id {successor} to evaluate, to score there; the result is marked."
        )
    return Scoring(successor, origin, settings)


def _recorded_in(recorded: str | None, task: Task | None) -> str | None:
    if task is None or task.suite == "gymnasium":
        return recorded
    if task.suite == "d4rl":
        return D4RL_RECORDED_IN.get(task.robot, recorded)
    return recorded


def _why_not(origin: str, task: Task | None) -> str | None:
    """Why the recorded environment cannot be built; None where it can."""
    if task and task.suite != "gymnasium" and origin not in D4RL_RECORDED_IN.values():
        return (
            f"gymnasium has no environment for {task.suite}'s {task.robot}. Pass the id of an "
            "environment of your own, as 'package:Id-v0', with --env-id."
        )
    if ":" in origin:
        return (
            "it would import a Python module that a data file names. If you trust it, pass it "
            "with --env-id."
        )
    try:
        make(origin).close()
    except EnvironmentSetupError as error:
        return str(error)
    return None


def _successor(origin: str) -> str | None:
    task = parse(origin)
    if task is None or task.suite != "gymnasium" or task.version not in _SUCCESSOR:
        return None
    return gymnasium_id(task.robot, _SUCCESSOR[task.version])


def _settings(env_id: str, recorded: Task | None) -> dict[str, Any]:
    """Ant up to v3 observed contact forces; v4 does so only when told."""
    old_ant = recorded is not None and (
        recorded[:2] == ("d4rl", "ant")
        or (recorded[:2] == ("gymnasium", "ant") and recorded.version in (2, 3))
    )
    return {"use_contact_forces": True} if old_ant and env_id == "Ant-v4" else {}
