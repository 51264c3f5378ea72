"""Playing episodes with a population."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from worldrl.data.actions import from_unit
from worldrl.envs import make
from worldrl.errors import EnvironmentSetupError
from worldrl.evaluation.returns import BLOCK, episode_seed, evaluate_returns

LOW, HIGH = np.array([-2.0], np.float32), np.array([2.0], np.float32)


class Countdown(gymnasium.Env):
    """Ends after a number of steps drawn at reset; the reward is the action taken."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-1.0, 3.0, (1,))
    resets: list[int]

    def __init__(self, log: list[Any] | None = None) -> None:
        self.log, self.left = [] if log is None else log, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 30))
        self.log.append(seed)
        return np.array([self.left, 0.0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.left > 0, "a finished environment was stepped on"
        self.left -= 1
        done = self.left == 0
        truncated = done and self.log[-1] % 2 == 0
        return np.array([self.left, 0.0]), float(action[0]), done and not truncated, truncated, {}


def constant(values: list[float]) -> Any:
    """Each member always takes its own action."""

    def act(observation: Tensor, noise: Tensor | None) -> Tensor:
        assert noise is None
        assert observation.shape[1:] == (BLOCK, 2)
        return torch.tensor(values)[:, None, None].expand(-1, BLOCK, 1)

    return act


def networks(population: int, observation_size: int, action_size: int) -> Any:
    generator = torch.Generator().manual_seed(0)
    shapes = ((observation_size, 64), (64, 64), (64, action_size))
    weights = [0.2 * torch.randn(population, *shape, generator=generator) for shape in shapes]

    def act(observation: Tensor, noise: Tensor | None, members: Any = slice(None)) -> Tensor:
        hidden = observation
        for weight in weights:
            hidden = torch.tanh(hidden @ weight[members])
        return hidden

    return act


def test_returns_lengths_and_seeds_are_those_of_each_episode() -> None:
    log: list[Any] = []
    played = evaluate_returns(
        partial(Countdown, log), constant([0.0, 1.0]), 7, 3, 2,
        action_low=np.array([-1.0]), action_high=np.array([3.0]), num_envs=3,
    )  # fmt: skip
    expected = []
    for episode in range(7):
        env = Countdown()
        env.reset(seed=episode_seed(3, episode))
        expected.append(env.left)
    assert played.lengths.tolist() == [expected, expected]  # members meet the same episodes
    assert played.returns[0].tolist() == pytest.approx(expected)  # 0 is 1 in environment units
    assert played.returns[1].tolist() == pytest.approx([3 * n for n in expected])
    assert sorted(log) == sorted(2 * [episode_seed(3, episode) for episode in range(7)])


def test_policies_are_scored_by_their_deterministic_actions() -> None:
    """The trap of scoring a stochastic policy by its samples."""
    drawn = []

    def act(observation: Tensor, noise: Tensor | None) -> Tensor:
        drawn.append(noise)
        return torch.zeros(1, BLOCK, 1)

    evaluate_returns(Countdown, act, 3, 0, 1, action_low=LOW, action_high=HIGH)
    assert drawn
    assert all(noise is None for noise in drawn)


def test_episode_seeds_differ_and_do_not_depend_on_their_number() -> None:
    seeds = {episode_seed(s, e) for s in range(20) for e in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Pendulum-v1"])
def test_results_do_not_depend_on_how_many_environments_run(env_id: str) -> None:
    env = make(env_id)
    low, high = env.action_space.low, env.action_space.high
    policy = networks(2, env.observation_space.shape[0], len(low))
    play = partial(
        evaluate_returns, partial(make, env_id), policy, seed=0, population=2,
        action_low=low, action_high=high,
    )  # fmt: skip
    together = play(episodes=6)
    for num_envs in (1, 2, 5):
        apart = play(episodes=6, num_envs=num_envs)
        assert np.array_equal(apart.returns, together.returns)
        assert np.array_equal(apart.lengths, together.lengths)
    fewer = play(episodes=2)
    assert np.array_equal(fewer.returns, together.returns[:, :2])


def test_a_member_is_its_lone_run() -> None:
    env = make("Hopper-v5")
    low, high = env.action_space.low, env.action_space.high
    policy = networks(3, 11, 3)
    play = partial(
        evaluate_returns, partial(make, "Hopper-v5"), episodes=4, seed=0,
        action_low=low, action_high=high,
    )  # fmt: skip
    together = play(policy, population=3)
    alone = play(partial(policy, members=slice(1, 2)), population=1)
    np.testing.assert_allclose(alone.returns[0], together.returns[1], rtol=1e-3)


def test_actions_are_mapped_to_the_datas_bounds_and_clipped_to_the_environments() -> None:
    mapped = from_unit(np.array([[-1.0, 0.0], [1.0, 0.5]]), np.array([-2, 0]), np.array([2, 4]))
    assert mapped.tolist() == [[-2.0, 2.0], [2.0, 3.0]]
    wide = evaluate_returns(
        Countdown, constant([1.0]), 1, 0, 1, action_low=np.array([-9.0]),
        action_high=np.array([9.0]),
    )  # fmt: skip
    assert wide.returns[0, 0] == pytest.approx(3 * wide.lengths[0, 0])


def test_environments_are_closed_also_after_an_error() -> None:
    closed = []

    class Broken(Countdown):
        def step(self, action: Any) -> Any:
            raise ValueError("broken")

        def close(self) -> None:
            closed.append(self)

    with pytest.raises(ValueError, match="broken"):
        evaluate_returns(Broken, constant([0.0]), 3, 0, 1, action_low=LOW, action_high=HIGH)
    assert len(closed) == 3


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPole-v1", "acts in Discrete"),
        ("HalfCheetah-v5", "acts in Box.*gives 1 continuous"),
        ("MountainCarContinuous-v0", r"environment observes \(2 numbers\)"),
        ("FrozenLake-v1", "observes Discrete"),
    ],
)
def test_environments_that_do_not_fit_are_refused(env_id: str, message: str) -> None:
    with pytest.raises(EnvironmentSetupError, match=message):
        evaluate_returns(
            partial(make, env_id), networks(1, 3, 1), 1, 0, 1, action_low=LOW, action_high=HIGH
        )


def test_counts_are_checked() -> None:
    for episodes, num_envs in ((0, 1), (1, 0), (1, BLOCK + 1)):
        with pytest.raises(ValueError, match="must be positive"):
            evaluate_returns(
                Countdown, constant([0.0]), episodes, 0, 1,
                action_low=LOW, action_high=HIGH, num_envs=num_envs,
            )  # fmt: skip
