"""Which environment scores which data."""

from __future__ import annotations

import pytest

from worldrl.envs import scoring_environment
from worldrl.errors import EnvironmentSetupError


def test_the_recorded_environment_scores() -> None:
    scoring = scoring_environment("HalfCheetah-v5")
    assert (scoring.env_id, scoring.other_environment) == ("HalfCheetah-v5", False)
    env = scoring.factory()
    assert env.observation_space.shape == (17,)
    env.close()


@pytest.mark.parametrize(
    ("recorded", "origin", "successor"),
    [
        ("hopper-medium-v2", "Hopper-v2", "Hopper-v4"),
        ("walker2d-random-v0", "Walker2d-v2", "Walker2d-v4"),
        ("HalfCheetah-v3", "HalfCheetah-v3", "HalfCheetah-v4"),
        ("Pusher-v4", "Pusher-v4", "Pusher-v5"),
        ("Pendulum-v0", "Pendulum-v0", "Pendulum-v1"),
    ],
)
def test_another_version_is_refused_unless_asked_for_and_then_marked(
    recorded: str, origin: str, successor: str
) -> None:
    with pytest.raises(EnvironmentSetupError, match="allow_other_environment=true") as caught:
        scoring_environment(recorded)
    assert origin in str(caught.value)
    assert f"--env-id {successor}" in str(caught.value)
    scoring = scoring_environment(recorded, allow_other=True)
    assert (scoring.env_id, scoring.recorded_env_id) == (successor, origin)
    assert scoring.other_environment
    scoring.factory().close()


def test_a_requested_environment_must_be_the_recorded_one_or_allowed() -> None:
    assert not scoring_environment("Hopper-v5", "Hopper-v5").other_environment
    assert not scoring_environment("hopper-medium-v2", "Hopper-v2").other_environment
    with pytest.raises(EnvironmentSetupError, match=r"'Hopper-v5' but evaluation\.env_id is"):
        scoring_environment("Hopper-v5", "Hopper-v4")
    assert scoring_environment("Hopper-v5", "Hopper-v4", allow_other=True).other_environment


def test_data_of_unknown_origin_needs_a_name() -> None:
    with pytest.raises(EnvironmentSetupError, match="does not name the environment"):
        scoring_environment(None)
    scoring = scoring_environment(None, "Pendulum-v1")
    assert (scoring.recorded_env_id, scoring.other_environment) == (None, False)


@pytest.mark.parametrize("recorded", ["ant-medium-v2", "Ant-v3"])
def test_old_ants_are_scored_with_contact_forces(recorded: str) -> None:
    env = scoring_environment(recorded, allow_other=True).factory()
    assert env.observation_space.shape == (111,)
    env.close()
    plain = scoring_environment("Ant-v4").factory()
    assert plain.observation_space.shape == (27,)
    plain.close()


@pytest.mark.parametrize(
    "recorded", ["antmaze-umaze-v2", "kitchen-mixed-v0", "bullet-ant-medium-v0", "neorl/Hopper-v3"]
)
def test_tasks_without_an_environment_say_so(recorded: str) -> None:
    with pytest.raises(EnvironmentSetupError, match="cannot be built here"):
        scoring_environment(recorded, allow_other=True)


def test_a_data_file_cannot_make_python_import_a_module() -> None:
    with pytest.raises(EnvironmentSetupError, match="import a Python module"):
        scoring_environment("antigravity:Hopper-v5", allow_other=True)
