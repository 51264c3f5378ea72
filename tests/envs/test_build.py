"""Building environments and refusing what cannot be built."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType

import gymnasium
import pytest

from worldrl.envs import make
from worldrl.errors import EnvironmentSetupError


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "HalfCheetah-v4", "Hopper-v5", "Ant-v5"])
def test_known_environments_are_built_with_their_time_limit(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make(env_id)
    assert env.spec is not None
    assert env.spec.max_episode_steps in (200, 1000)
    env.close()


def test_atari_is_registered_for_the_user() -> None:
    env = make("ALE/Pong-v5")
    assert env.action_space.n == 6
    env.close()


def test_building_leaves_nothing_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """MuJoCo otherwise writes MUJOCO_LOG.TXT there and a warning to standard error."""
    monkeypatch.chdir(tmp_path)
    make("HalfCheetah-v5").close()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("HalfCheeta-v5", r"no environment is registered as 'HalfCheeta-v5' \(did you mean HalfCh"),
        ("HalfCheetah-v7", r"HalfCheetah-v7' \(did you mean HalfCheetah-v5"),
        ("HalfCheetah-v1", "no environment is registered"),
        ("HalfCheetah", "names no version"),
        ("", "names no version"),
        ("no good-v0", "could not be built"),
        ("nowhere/Thing-v0", "no environment is registered"),
        ("ALE/NoGame-v5", "no environment is registered"),
        ("HalfCheetah-v2", "discontinued mujoco-py"),
        ("Hopper-v3", "discontinued mujoco-py"),
        ("hopper-medium-v2", "is the name of a dataset"),
        ("no_such_package:Thing-v0", "not installed: No module named 'no_such_package'"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_paragraph(env_id: str, message: str) -> None:
    with pytest.raises(EnvironmentSetupError, match=message) as caught:
        make(env_id)
    assert "\n" not in str(caught.value)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(EnvironmentSetupError, match=r"could not be built.*gravitas"):
        make("Pendulum-v1", {"gravitas": 1.0})


@pytest.mark.parametrize("package", ["mujoco", "imageio"])
def test_missing_mujoco_is_explained(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    def missing(*_: object, **__: object) -> ModuleType:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    monkeypatch.setattr(gymnasium, "make", missing)
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(EnvironmentSetupError, match=rf"'{package}'.*pip install 'gymnasium\[muj"):
        make("Hopper-v5")
