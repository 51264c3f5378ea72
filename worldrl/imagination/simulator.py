"""Imagination of kind ``simulator``: a given simulator as the dynamics model, always sure.

States are recovered from observations as ``worldrl data info --simulator`` does it. What is hidden
there (the root's x position) does not change what follows, and is 0; an observation that shows no
single state (Hopper's velocities are clipped to 10) has no prediction: it is NaN, and rollouts drop
such rows and count them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldrl.config.imagination import SimulatorSettings, without_pessimism
from worldrl.data.actions import from_unit
from worldrl.data.simulator import VELOCITY_CLIP, SetState, state_setter
from worldrl.errors import EnvironmentSetupError
from worldrl.imagination.branched import branched_rollouts
from worldrl.imagination.setup import Setup
from worldrl.types import Imagination, Prediction

if TYPE_CHECKING:
    import gymnasium

Array = NDArray[np.float64]

#: ``(R, S), (R, A) -> (R, S), (R,)``: next observations and rewards; actions in environment units.
Stepper = Callable[[Array, Array], tuple[Array, Array]]

#: Rows that a batched stepper must step as the environment itself does before it is trusted.
PROOF_ROWS = 20


def simulator_rollouts(settings: SimulatorSettings, setup: Setup) -> list[Imagination]:
    """Rollouts in worlds whose dynamics are a :class:`SimulatorModel`, for every group of a run."""
    # No compiler sees through a simulator.
    plain = setup._replace(prepare=lambda step, calls: step)
    return branched_rollouts(without_pessimism(settings), plain)


class SimulatorModel(NamedTuple):
    """The simulator as an ensemble of one member without uncertainty."""

    elites: Tensor  # (P, 1) int64, zeros
    stepper: Stepper
    action_low: NDArray[np.float32]  # (A,), environment units of -1
    action_high: NDArray[np.float32]  # (A,), of 1

    def predict(self, observation: Tensor, action: Tensor) -> Prediction:
        """``(P, R, S), (P, R, A) -> Prediction``; NaN where the state cannot be set."""
        shape = observation.shape
        unit = action.reshape(-1, action.shape[-1]).cpu().numpy()
        scaled = from_unit(unit, self.action_low, self.action_high)
        state = observation.reshape(-1, shape[-1]).cpu().numpy().astype(np.float64)
        following, reward = self.stepper(state, scaled)
        joined = np.concatenate([following, reward[:, None]], 1).astype(np.float32)
        mean = torch.from_numpy(joined).to(observation.device)
        mean = mean.reshape(shape[0], 1, shape[1], -1)
        return Prediction(mean, torch.zeros_like(mean))

    @property
    def num_members(self) -> int:
        """One."""
        return 1

    def predict_each(self, observation: Tensor, action: Tensor) -> Prediction:
        """``(P, 1, R, S), (P, 1, R, A) -> Prediction``: the one member's rows are all rows."""
        return self.predict(observation[:, 0], action[:, 0])

    def of_elites(self) -> SimulatorModel:
        """The one member."""
        return self

    def of_members(self, chosen: Sequence[int]) -> SimulatorModel:
        """All alike."""
        return self._replace(elites=self.elites[list(chosen)])


def simulator_stepper(
    make_environment: Callable[[], gymnasium.Env[Any, Any]],
    observations: NDArray[Any],
    actions: NDArray[Any],
) -> Stepper:
    """Steps all rows at once where that agrees with the environment's ``step``, or one by one.

    Args:
        observations, actions: ``(n, S), (n, A)`` some logged rows, to prove it on.

    Raises:
        EnvironmentSetupError: the state cannot be set from an observation.
    """
    environment = make_environment()
    environment.reset(seed=0)
    bare: Any = environment.unwrapped
    name = type(bare).__name__
    ours = observations.shape[1:], actions.shape[1:]
    theirs = bare.observation_space.shape, bare.action_space.shape
    if ours != theirs:
        raise EnvironmentSetupError(
            f"{name} cannot be a model of this data: its observations and actions have shapes "
            f"{theirs[0]} and {theirs[1]}, and those of the data {ours[0]} and {ours[1]}. Name the "
            "environment, with its version, that the data is about."
        )
    set_state = state_setter(bare, observations)
    if set_state is None:
        raise EnvironmentSetupError(
            f"{name} cannot be a model of this data: its state cannot be set from its "
            "observations. HalfCheetah-v5, Hopper-v5, Walker2d-v5 and Pendulum-v1 can, among "
            "others."
        )
    plain = one_by_one(bare, set_state)
    batched = in_batches(bare)
    if batched is not None:
        low, high = bare.action_space.low, bare.action_space.high
        rows = observations[:PROOF_ROWS].astype(np.float64)
        tried = np.clip(actions[:PROOF_ROWS], low, high).astype(np.float64)
        if all(
            np.allclose(mine, true, rtol=1e-6, atol=1e-8, equal_nan=True)
            for mine, true in zip(batched(rows, tried), plain(rows, tried), strict=True)
        ):
            return batched
    return plain


def one_by_one(bare: Any, set_state: SetState) -> Stepper:
    """Sets the state of every row and takes the environment's own step."""

    def steps(observation: Array, action: Array) -> tuple[Array, Array]:
        following = np.full_like(observation, np.nan)
        reward = np.full(len(observation), np.nan)
        low, high = bare.action_space.low, bare.action_space.high
        for row in range(len(observation)):
            if np.isfinite(observation[row]).all() and set_state(observation[row]):
                clipped = np.clip(action[row], low, high)
                following[row], reward[row] = bare.step(clipped)[:2]
        return following, reward

    return steps


def in_batches(bare: Any) -> Stepper | None:
    """All rows in one call of ``mujoco.rollout``, on all cores; None for tasks it does not know.

    Twice to four times the rows a second of :func:`one_by_one`, measured on two cores. Observations
    and rewards are those of gymnasium's v5 robots that run along x.
    """
    name = f"{type(bare).__module__}.{type(bare).__name__}"
    walker = {"half_cheetah": False, "hopper": True, "walker2d": True}
    robot = next(
        (robot for robot in walker if name.startswith(f"gymnasium.envs.mujoco.{robot}_v5.")), None
    )
    if robot is None or not bare._exclude_current_positions_from_observation:
        return None
    import mujoco
    from mujoco import rollout

    model, repeats = bare.model, bare.frame_skip
    positions, size = model.nq, model.nq + model.nv
    kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
    if mujoco.mj_stateSize(model, kind) != 1 + size:
        return None
    data = [mujoco.MjData(model) for _ in range(len(os.sched_getaffinity(0)))]

    def steps(observation: Array, action: Array) -> tuple[Array, Array]:
        state = np.zeros((len(observation), 1 + size))  # time, x, then what is observed
        state[:, 2:] = observation
        settable = np.isfinite(observation).all(1)
        settable &= (np.abs(state[:, 1 + positions :]) != VELOCITY_CLIP).all(1)
        state[~settable] = 0
        action = np.clip(action, bare.action_space.low, bare.action_space.high)
        control = np.repeat(action[:, None], repeats, 1)
        after = rollout.rollout(model, data, state, control)[0][:, -1, 1:]
        following = after[:, 1:].copy()
        speed = after[:, 0] / bare.dt  # from x = 0
        reward = bare._forward_reward_weight * speed
        reward -= bare._ctrl_cost_weight * np.square(action).sum(1)
        if walker[robot]:
            velocity = following[:, positions - 1 :]
            velocity[:] = velocity.clip(-VELOCITY_CLIP, VELOCITY_CLIP)
            reward += bare._healthy_reward * _healthy(bare, after)
        following[~settable] = np.nan
        reward[~settable] = np.nan
        return following, reward

    return steps


def _healthy(bare: Any, state: Array) -> NDArray[np.bool_]:
    """gymnasium's ``is_healthy`` of Hopper and Walker2d; positions and velocities ``(R, ...)``."""
    height, angle = state[:, 1], state[:, 2]
    low, high = bare._healthy_z_range
    left, right = bare._healthy_angle_range
    found = (low < height) & (height < high) & (left < angle) & (angle < right)
    if hasattr(bare, "_healthy_state_range"):
        least, most = bare._healthy_state_range
        found &= ((least < state[:, 2:]) & (state[:, 2:] < most)).all(1)
    return np.asarray(found, np.bool_)
