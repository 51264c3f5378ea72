"""Building gymnasium environments, with errors that say what to do."""

from __future__ import annotations

import difflib
import importlib
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from worldrl.errors import EnvironmentSetupError
from worldrl.tasks import parse

if TYPE_CHECKING:
    import gymnasium

_log = logging.getLogger(__name__)


def make(env_id: str, settings: Mapping[str, Any] | None = None) -> gymnasium.Env:
    """The environment of an exact gymnasium id, with its time limit.

    Args:
        env_id: e.g. ``HalfCheetah-v5`` or ``ALE/Pong-v5``; the version must be written out.
        settings: arguments of the environment's constructor.

    Raises:
        EnvironmentSetupError: the id is unknown, names no version, is that of a dataset, or needs
            something that is not installed.
    """
    import gymnasium

    if env_id.startswith("ALE/"):
        _register_atari()
    _check_id(env_id)
    _quiet_mujoco(env_id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions that are not the newest
            # The checker repeats what training already validated, at a cost in every step.
            return gymnasium.make(env_id, disable_env_checker=True, **dict(settings or {}))
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
        raise EnvironmentSetupError(_unknown(env_id)) from error
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise EnvironmentSetupError(_missing(env_id, error)) from error
    except (gymnasium.error.Error, TypeError, ValueError) as error:
        raise EnvironmentSetupError(
            f"environment '{env_id}' could not be built: {error}. Check the id and its settings."
        ) from error


def make_altered(
    build: Callable[[], gymnasium.Env], gravity: float, friction: float, damping: float
) -> gymnasium.Env:
    """An environment with physics of its own: each number times what MuJoCo's model has.

    Raises:
        EnvironmentSetupError: it has no such model, and a number is not 1.
    """
    environment = build()
    model: Any = getattr(environment.unwrapped, "model", None)
    if hasattr(model, "dof_damping"):
        model.opt.gravity *= gravity
        model.geom_friction *= friction
        model.dof_damping *= damping
    elif (gravity, friction, damping) != (1.0, 1.0, 1.0):
        raise EnvironmentSetupError(
            f"{type(environment.unwrapped).__name__} has no MuJoCo model whose gravity, friction "
            "or damping could be changed. Leave them at 1, or register an environment of your own "
            "with other physics and name it as 'package:Id-v0'."
        )
    return environment


def _check_id(env_id: str) -> None:
    task = parse(env_id)
    if task and task.suite != "gymnasium":
        raise EnvironmentSetupError(
            f"'{env_id}' is the name of a dataset, not of an environment. Give the id of the "
            "gymnasium environment to build, such as HalfCheetah-v5."
        )
    name = env_id.rpartition("/")[2].rpartition(":")[2]
    if "-v" not in name or not name.rpartition("-v")[2].isdigit():
        raise EnvironmentSetupError(
            f"environment id '{env_id}' names no version{_near(env_id)}. Versions differ in "
            "dynamics and reward: write it out, such as HalfCheetah-v5."
        )


def _near(env_id: str) -> str:
    """Similar registered ids, nearest first."""
    import gymnasium

    near = difflib.get_close_matches(env_id, list(gymnasium.registry), n=4, cutoff=0.6)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _unknown(env_id: str) -> str:
    return (
        f"no environment is registered as '{env_id}'{_near(env_id)}. Environments of another "
        "package are named 'package:Id-v0', which imports the package first."
    )


def _missing(env_id: str, error: Exception) -> str:
    task = parse(env_id)
    old = task is not None and task.suite == "gymnasium" and task.version in (2, 3)
    if old and "gymnasium-robotics" in str(error):
        return (
            f"environment '{env_id}' needs the discontinued mujoco-py and is not installed. Its "
            "successors of version v4 and v5 run on today's mujoco; they are similar, not equal."
        )
    if isinstance(error, ModuleNotFoundError) and error.name in ("mujoco", "imageio"):
        return (
            f"environment '{env_id}' needs the package '{error.name}', which is not installed. "
            "Run: pip install 'gymnasium[mujoco]'. Learning from logged data needs none."
        )
    return f"environment '{env_id}' needs something that is not installed: {error}"


def _register_atari() -> None:
    import gymnasium

    try:
        ale_py = importlib.import_module("ale_py")
    except ImportError as error:
        raise EnvironmentSetupError(
            "Atari environments need the package 'ale-py', which is not installed. "
            "Run: pip install ale-py"
        ) from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # else it greets on standard error
    gymnasium.register_envs(ale_py)


def _quiet_mujoco(env_id: str) -> None:
    """Send MuJoCo's messages to logging: it prints them and writes a file in the current folder."""
    task = parse(env_id)
    if task is None or task.robot in ("pendulum", "cartpole"):
        return
    try:
        mujoco = importlib.import_module("mujoco")
    except ImportError:
        return  # building the environment says what is missing
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_mujoco_message)


def _mujoco_message(message: str) -> None:
    _log.log(logging.DEBUG if "deprecated" in message else logging.WARNING, "mujoco: %s", message)
