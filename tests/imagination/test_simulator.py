"""The simulator as a model: its steps are the environment's own."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from worldrl.data.simulator import state_setter
from worldrl.envs import make
from worldrl.errors import EnvironmentSetupError
from worldrl.imagination.simulator import SimulatorModel, in_batches, one_by_one, simulator_stepper

ENVIRONMENTS = ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"]


def played(env_id: str, steps: int = 60):
    """Observations, actions, next observations and rewards of a random policy."""
    environment = make(env_id)
    environment.action_space.seed(0)
    observation, _ = environment.reset(seed=0)
    rows = []
    for _ in range(steps):
        action = environment.action_space.sample()
        following, reward, terminated, truncated, _ = environment.step(action)
        rows.append((observation, action, following, reward))
        observation = environment.reset()[0] if terminated or truncated else following
    environment.close()
    return tuple(np.array(column) for column in zip(*rows, strict=True))


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_predictions_are_what_the_environment_did(env_id: str) -> None:
    observation, action, following, reward = played(env_id)
    stepper = simulator_stepper(partial(make, env_id), observation, action)
    bounds = make(env_id).action_space
    model = SimulatorModel(torch.zeros(2, 1, dtype=torch.int64), stepper, bounds.low, bounds.high)
    unit = 2 * (action - bounds.low) / (bounds.high - bounds.low) - 1
    given = torch.tensor(observation, dtype=torch.float32).reshape(2, 30, -1)
    found = model.predict(given, torch.tensor(unit, dtype=torch.float32).reshape(2, 30, -1))
    assert found.mean.shape == (2, 1, 30, observation.shape[1] + 1)
    assert (found.std == 0).all()
    mean = found.mean.reshape(60, -1).numpy()
    known = np.isfinite(mean).all(1)
    assert known.sum() >= 10  # where a velocity is clipped there is none
    assert np.median(np.abs(mean[known, :-1] - following[known])) < 1e-4
    # Observations are float32 here, and contacts make much of a little.
    assert np.quantile(np.abs(mean[known, :-1] - following[known]), 0.95) < 1e-2
    assert np.quantile(np.abs(mean[known, -1] - reward[known]), 0.95) < 1e-2


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_batches_step_as_the_environment_does(env_id: str) -> None:
    observation, action, *_ = played(env_id)
    observation[3, -1] = 10.0  # clipped: no state shows it
    observation[5, 2] = np.nan
    if env_id != "HalfCheetah-v5":
        observation[0, 0] = 0.1  # fallen
    bare = make(env_id).unwrapped
    bare.reset(seed=0)
    setter = state_setter(bare, observation)
    batched = in_batches(bare)
    assert setter is not None
    assert batched is not None
    mine, mine_reward = batched(observation, action)
    true, true_reward = one_by_one(bare, setter)(observation, action)
    np.testing.assert_allclose(mine, true, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(mine_reward, true_reward, rtol=1e-6, atol=1e-6)
    assert np.isnan(mine_reward[[3, 5]]).all()
    assert np.isfinite(mine_reward[0])


def test_other_environments_are_stepped_one_by_one() -> None:
    observation, action, following, reward = played("Pendulum-v1")
    assert in_batches(make("Pendulum-v1").unwrapped) is None
    stepper = simulator_stepper(partial(make, "Pendulum-v1"), observation, action)
    found, earned = stepper(observation.astype(np.float64), action.astype(np.float64))
    np.testing.assert_allclose(found, following, atol=1e-4)
    np.testing.assert_allclose(earned, reward, atol=1e-4)


def test_data_of_another_shape_is_refused() -> None:
    rows = np.zeros((5, 4), np.float32)
    with pytest.raises(EnvironmentSetupError, match="cannot be a model of this data"):
        simulator_stepper(partial(make, "Hopper-v5"), rows, np.zeros((5, 3), np.float32))
