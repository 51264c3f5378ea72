import dataclasses
import warnings

import gymnasium
import numpy as np
import pytest

from worldrl.data import load
from worldrl.data.collect import collect
from worldrl.data.simulator import check_agreement
from worldrl.errors import DataError


def factory(name):
    def build():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions that are not the newest
            return gymnasium.make(name)

    return build


EXACT = ["Pendulum-v1", "CartPole-v1", "MountainCarContinuous-v0", "MountainCar-v0"]
MUJOCO = ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v4", "InvertedPendulum-v5"]


@pytest.mark.parametrize("name", [*EXACT, *MUJOCO, "Swimmer-v5"])
def test_own_data_agrees(name):
    dataset = collect(factory(name), 300)
    found = check_agreement(dataset, factory(name), rows=100)
    assert found.agrees, found
    assert found.rows + found.skipped == 100
    assert found.terminated_share == 1


@pytest.mark.parametrize("name", ["HalfCheetah-v5", "Pendulum-v1"])
@pytest.mark.parametrize("part", ["rewards", "actions", "observations"])
def test_altered_data_disagrees(name, part):
    dataset = collect(factory(name), 300)
    random = np.random.default_rng(0)
    values = getattr(dataset, part)
    altered = (values + 0.05 * values.std() * random.normal(size=values.shape)).astype(np.float32)
    if name == "Pendulum-v1" and part == "observations":
        altered[:, :2] /= np.linalg.norm(altered[:, :2], axis=1, keepdims=True)
    changed = dataclasses.replace(dataset, **{part: altered})
    found = check_agreement(changed, factory(name), rows=100)
    assert found.agrees is False
    assert found.share < 0.5
    if part == "rewards":
        assert found.observation_share > 0.95


def test_environments_whose_state_is_hidden():
    dataset = collect(factory("Acrobot-v1"), 50)
    found = check_agreement(dataset, factory("Acrobot-v1"))
    assert found.agrees is None
    assert "AcrobotEnv" in found.reason
    reacher = collect(factory("Reacher-v5"), 50)
    assert check_agreement(reacher, factory("Reacher-v5")).agrees is None


def test_another_environment_is_refused():
    dataset = collect(factory("Pendulum-v1"), 20)
    with pytest.raises(DataError, match=r"observations have shape \(3,\) but.*\(17,\)"):
        check_agreement(dataset, factory("HalfCheetah-v5"))


@pytest.mark.parametrize(
    ("file", "name", "agrees"),
    [
        ("demos/cs285/halfcheetah-expert-cs285.hdf5", "HalfCheetah-v4", True),
        ("demos/cs285/halfcheetah-expert-cs285.hdf5", "HalfCheetah-v5", True),
        ("demos/drex/halfcheetah-suboptimal.hdf5", "HalfCheetah-v4", False),
        ("demos/drex/halfcheetah-suboptimal.hdf5", "HalfCheetah-v5", False),
        ("demos/drex/hopper-suboptimal.hdf5", "Hopper-v5", False),
        ("mujoco/halfcheetah-mixed-sb3.hdf5", "HalfCheetah-v5", True),
        ("mujoco/hopper-replay-sb3.hdf5", "Hopper-v5", True),
    ],
)
def test_recorded_files(recorded, file, name, agrees):
    found = check_agreement(load(str(recorded(file))), factory(name), rows=300)
    assert found.agrees is agrees
    assert found.share > 0.99 if agrees else found.share < 0.05
