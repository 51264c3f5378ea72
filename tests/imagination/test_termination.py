"""Termination formulas against the simulators that define them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from worldrl.config.termination import TerminationTask
from worldrl.data.dataset import load
from worldrl.envs import make
from worldrl.errors import ConfigError
from worldrl.imagination.termination import RULES, find_formula, formula, rule_name
from worldrl.types import Termination

MUJOCO = [
    f"{name}-{version}"
    for name in (
        "HalfCheetah",
        "Hopper",
        "Walker2d",
        "Ant",
        "Humanoid",
        "InvertedPendulum",
        "InvertedDoublePendulum",
    )
    for version in ("v4", "v5")
]


class Recorded:
    """What the simulator answered: one row a step."""

    def __init__(self) -> None:
        self.rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.terminated: list[bool] = []

    def step(self, env, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        following, _, terminated, _, _ = env.step(action)
        self.rows.append((observation, np.atleast_1d(action), following))
        self.terminated.append(bool(terminated))
        return following

    def disagreements(self, rule: Termination) -> list[int]:
        """Rows, as float32, on which the formula and the simulator differ."""
        inputs = (
            torch.as_tensor(np.stack(c), dtype=torch.float32) for c in zip(*self.rows, strict=True)
        )
        return np.flatnonzero(rule(*inputs).numpy() != np.array(self.terminated)).tolist()


def rule_for(env_id: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    env = make(env_id)
    found = find_formula(env_id, env.observation_space.shape[0])
    env.close()
    assert found is not None
    return found[1]


def on_policy(env_id: str, episodes: int) -> Recorded:
    """Random actions until the simulator ends the episode."""
    env, seen = make(env_id).unwrapped, Recorded()
    env.action_space.seed(0)
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        for _ in range(100):
            observation = seen.step(env, observation, env.action_space.sample())
            if seen.terminated[-1]:
                break
    env.close()
    return seen


def extreme_states(env) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions and velocities on both sides of every limit, and far beyond."""
    random = np.random.default_rng(0)
    start, rest = env.init_qpos.copy(), np.zeros(env.model.nv)
    for index in range(env.model.nq):
        for value in (-150, -3, -1.05, -0.25, -0.15, 0.15, 0.25, 0.6, 1.05, 1.95, 2.05, 3, 150):
            position = start.copy()
            position[index] = value
            yield position, rest
    for spread in (0.05, 0.3, 1.0, 3.0):
        for _ in range(60):
            position = start + spread * random.normal(size=start.shape)
            yield position, spread * random.normal(size=rest.shape)


def injected(env_id: str) -> Recorded:
    env, seen = make(env_id).unwrapped, Recorded()
    env.action_space.seed(0)
    env.reset(seed=0)
    for position, velocity in extreme_states(env):
        env.set_state(position, velocity)
        seen.step(env, env._get_obs(), env.action_space.sample())
    env.close()
    return seen


@pytest.mark.parametrize("env_id", MUJOCO)
def test_formula_agrees_with_the_simulator_on_recorded_states(env_id: str) -> None:
    seen = on_policy(env_id, episodes=20)
    assert seen.disagreements(rule_for(env_id)) == []
    assert any(seen.terminated) or env_id.startswith(("HalfCheetah", "Ant"))


@pytest.mark.parametrize("env_id", MUJOCO)
def test_formula_agrees_with_the_simulator_on_extreme_states(env_id: str) -> None:
    seen = injected(env_id)
    finite = [np.isfinite(row[2]).all() for row in seen.rows]
    wrong = [index for index in seen.disagreements(rule_for(env_id)) if finite[index]]
    assert wrong == []
    if not env_id.startswith("HalfCheetah"):
        assert 20 < sum(seen.terminated) < len(seen.rows) - 20  # both sides were visited


@pytest.mark.parametrize("env_id", ["InvertedDoublePendulum-v4", "InvertedDoublePendulum-v5"])
def test_double_pendulum_geometry_is_the_simulators(env_id: str) -> None:
    env = make(env_id).unwrapped
    env.reset(seed=0)
    random = np.random.default_rng(0)
    for _ in range(200):
        env.set_state(random.uniform(-3, 3, size=3) * [0.3, 1, 1], np.zeros(3))
        first, second = env.data.qpos[1:]
        tip = env.data.site_xpos[0][2]
        assert 0.6 * (np.cos(first) + np.cos(first + second)) == pytest.approx(tip, abs=1e-12)
    env.close()


def test_cartpole_agrees_with_the_simulator_around_every_limit() -> None:
    env, seen = make("CartPole-v1").unwrapped, Recorded()
    env.reset(seed=0)
    random = np.random.default_rng(0)
    for _ in range(3000):
        state = random.normal(size=4) * [1.6, 0.5, 0.15, 0.5]
        env.state, env.steps_beyond_terminated = state.copy(), None
        seen.step(env, state, np.array(random.integers(2)))
    assert seen.disagreements(rule_for("CartPole-v1")) == []
    assert 300 < sum(seen.terminated) < 2700


def test_pendulum_never_ends() -> None:
    seen = on_policy("Pendulum-v1", episodes=5)
    assert seen.disagreements(rule_for("Pendulum-v1")) == []
    assert not any(seen.terminated)


def test_a_simulator_may_end_hopper_for_velocities_that_it_does_not_show() -> None:
    """The one known gap: qvel of 100 ends the episode but is observed as 10."""
    env = make("Hopper-v5").unwrapped
    env.reset(seed=0)
    env.set_state(env.init_qpos, np.array([0, 0, 0, 0, 0, 1e4]))
    following, _, terminated, _, _ = env.step(np.zeros(3))
    env.close()
    assert np.abs(following).max() < 100
    assert terminated


@pytest.mark.parametrize("tier", ["random", "medium", "expert", "mixed", "replay"])
def test_hopper_formula_is_exact_on_logged_data(recorded: Callable[[str], Path], tier: str) -> None:
    dataset = load(str(recorded(f"mujoco/hopper-{tier}-sb3.hdf5")))
    rows = dataset.transitions()
    name, rule = find_formula(dataset.metadata.env_id, dataset.observation_shape[0]) or ("", None)
    assert name == "hopper"
    assert rule is not None
    inputs = (rows.observation, rows.action, rows.next_observation)
    predicted = rule(*map(torch.from_numpy, inputs)).numpy()
    assert rows.terminated.sum() > 5
    assert (predicted == rows.terminated)[rows.next_known].all()  # precision and recall are 1


def test_hopper_formula_sees_lower_bounds() -> None:
    """The misplaced parenthesis of public code: abs(state < 100) instead of abs(state) < 100."""
    alive = torch.zeros(3, 11)
    alive[:, 0] = 1.25
    alive[1, 5] = -101.0
    alive[2, 1] = -0.3
    ends = formula("hopper", 11)(alive, torch.zeros(3, 3), alive)
    assert ends.tolist() == [False, True, True]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_ends(name: str, bad: float) -> None:
    size = max(RULES[name].sizes or {6})
    following = torch.zeros(2, 3, size)
    following[..., 0] = 1.2
    following[0, 1, -1] = bad
    ends = RULES[name].ends(following, torch.zeros(2, 3, 2), following)
    assert ends.shape == (2, 3)
    assert ends.dtype == torch.bool
    assert ends[0, 1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("HalfCheetah-v5", "halfcheetah"),
        ("Ant-v2", "ant"),
        ("hopper-medium-replay-v2", "hopper"),
        ("antmaze-umaze-diverse-v2", "antmaze-umaze"),
        ("antmaze-large-play-v0", "antmaze-large"),
        ("pen-human-v1", "adroit-pen"),
        ("Pendulum-v1", "pendulum"),
        ("InvertedPendulum-v4", "invertedpendulum"),
        ("maze2d-umaze-dense-v1", "maze2d"),
        ("kitchen-mixed-v0", "kitchen"),
        ("neorl/Hopper-v3-low", "neorl-hopper"),
        ("bullet-hopper-medium-v0", None),  # another simulator, other observations
        ("flow-ring-random-v0", None),
        ("MyRobot-v0", None),
        ("ant", None),
        (None, None),
    ],
)
def test_lookup_is_by_exact_family(name: str | None, expected: str | None) -> None:
    assert rule_name(name) == expected


def test_every_rule_that_a_name_leads_to_exists() -> None:
    from worldrl.tasks import D4RL, GYMNASIUM, NEORL, gymnasium_id

    names = [gymnasium_id(robot, versions[-1]) for robot, versions in GYMNASIUM.values()]
    names += [f"neorl/{name}-v3" for name in NEORL]
    names += [
        "-".join(filter(None, (robot, family.variants[0]))) + f"-v{family.versions[0]}"
        for robot, family in D4RL.items()
    ]
    assert len(names) == len(GYMNASIUM) + len(NEORL) + len(D4RL)
    assert {rule_name(name) for name in names} - {None} <= set(RULES)


def test_a_shifted_observation_is_not_read_with_the_wrong_indices() -> None:
    assert find_formula("Hopper-v5", 12) is None
    with pytest.raises(ConfigError, match="size 11, but this data has 12"):
        formula("hopper", 12)


def test_every_rule_can_be_named_in_the_settings() -> None:
    assert tuple(RULES) == get_args(TerminationTask)


def test_goals_and_dropped_pens() -> None:
    state = torch.zeros(3, 29)
    state[:, :2] = torch.tensor([[0.75, 8.75], [0.75, 8.51], [0.75, 8.49]])
    assert formula("antmaze-umaze", 29)(state, state, state).tolist() == [True, True, False]
    pen = torch.zeros(2, 45)
    pen[:, 26] = torch.tensor([0.08, 0.07])
    assert formula("adroit-pen", 45)(pen, pen, pen).tolist() == [False, True]


def test_neorl_reads_past_the_x_position() -> None:
    state = torch.zeros(3, 12)
    state[:, 0], state[:, 1] = 500.0, 1.2
    state[1, 2] = 0.25
    state[2, 7] = -120.0
    assert formula("neorl-hopper", 12)(state, state, state).tolist() == [False, True, True]
    walker = torch.zeros(2, 18)
    walker[:, 1] = torch.tensor([1.2, 0.7])
    assert formula("neorl-walker2d", 18)(walker, walker, walker).tolist() == [False, True]
