"""Recording episodes from an environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from worldrl.data.dataset import Dataset, Metadata
from worldrl.data.episodes import arrays_sha256
from worldrl.errors import DataError

if TYPE_CHECKING:
    import gymnasium


class ActingPolicy(Protocol):
    """Chooses actions in environment units."""

    def act(self, observations: NDArray[Any]) -> NDArray[Any]:
        """``(B, *S) -> (B, A)``, or ``(B,)`` integers for discrete actions."""
        ...


#: Called with the number of steps recorded so far.
Report = Callable[[int], None]


def collect(
    make_environment: Callable[[], gymnasium.Env[Any, Any]],
    steps: int,
    *,
    policy: ActingPolicy | None = None,
    noise: float = 0.0,
    seed: int = 0,
    behaviour: str | None = None,
    report: Report | None = None,
) -> Dataset:
    """Record exactly ``steps`` transitions; the last episode is marked as truncated.

    The same environment, policy and seed record the same data.

    Args:
        policy: None acts at random, uniformly over the action space.
        noise: standard deviation of Gaussian noise on every action, in units of half the action
            range (so in [-1, 1] space); noisy actions are clipped to the bounds.
        behaviour: what to call the policy in the metadata.

    Raises:
        DataError: the environment's spaces cannot be stored, the policy's actions do not fit, or
            an observation or reward is not finite.
    """
    if steps < 1:
        raise DataError(f"steps is {steps}; record at least one")
    if not noise >= 0:
        raise DataError(f"noise is {noise}; a standard deviation is at least 0")
    environment = make_environment()
    try:
        return _record(environment, steps, policy, noise, seed, behaviour, report)
    finally:
        environment.close()


def _record(
    environment: gymnasium.Env[Any, Any],
    steps: int,
    policy: ActingPolicy | None,
    noise: float,
    seed: int,
    behaviour: str | None,
    report: Report | None,
) -> Dataset:
    name = environment.spec.id if environment.spec is not None else type(environment).__name__
    space = environment.action_space
    bounds = action_bounds(environment)
    if noise and bounds is None:
        raise DataError(f"{name}: noise needs continuous actions with finite bounds")
    image = _observation_type(environment, name) == np.uint8
    discrete = space.shape == ()
    space.seed(seed)
    generator = np.random.default_rng(seed)
    observations: list[NDArray[Any]] = []
    actions: list[Any] = []
    rewards: list[float] = []
    lengths: list[int] = []
    ended: list[bool] = []

    def stored(observation: Any) -> NDArray[Any]:
        array = np.array(observation, np.uint8 if image else np.float32)  # a copy: buffers change
        if not np.isfinite(array).all():
            raise DataError(f"{name}: the observation at step {len(rewards)} is not finite")
        return array

    observation = stored(environment.reset(seed=seed)[0])
    observations.append(observation)
    length = 0
    while len(rewards) < steps:
        if policy is None:
            action = np.asarray(space.sample())
        else:
            action = np.asarray(policy.act(observation[None]))[0]
        if not discrete:
            action = action.astype(np.float32)
        if action.shape != space.shape or not np.isfinite(action).all():
            raise DataError(
                f"{name}: the policy's action at step {len(rewards)} has shape {action.shape} "
                f"and must be finite with shape {space.shape}"
            )
        if noise and bounds is not None:
            half = (bounds[1] - bounds[0]) / 2
            action = action + noise * half * generator.standard_normal(half.shape, np.float32)
            action = np.clip(action, *bounds)
        following, reward, terminated, truncated, info = environment.step(
            int(action) if discrete else action
        )
        # An environment that restarts by itself returns the next episode's first observation and
        # keeps the true last one here.
        own = next((info[k] for k in ("final_obs", "final_observation") if k in info), None)
        done = terminated or truncated
        restarted = done and own is not None
        observation = stored(own if restarted else following)
        if not np.isfinite(reward):
            raise DataError(f"{name}: the reward at step {len(rewards)} is {reward}")
        observations.append(observation)
        actions.append(action)
        rewards.append(float(reward))
        length += 1
        if done or len(rewards) == steps:
            lengths.append(length)
            ended.append(bool(terminated))
            length = 0
            if len(rewards) < steps:
                observation = stored(following if restarted else environment.reset()[0])
                observations.append(observation)
        if report is not None:
            report(len(rewards))
    return _dataset(
        observations, actions, rewards, lengths, ended, discrete, name, bounds, behaviour, policy
    )


def action_bounds(
    environment: gymnasium.Env[Any, Any],
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """``(low, high)``, each ``(A,)``; None for discrete actions and infinite bounds."""
    low = getattr(environment.action_space, "low", None)
    high = getattr(environment.action_space, "high", None)
    if low is None or high is None or not (np.isfinite(low).all() and np.isfinite(high).all()):
        return None
    return np.asarray(low, np.float32), np.asarray(high, np.float32)


def _observation_type(environment: gymnasium.Env[Any, Any], name: str) -> np.dtype[Any]:
    """Refuse spaces that a dataset cannot hold."""
    observed, acted = environment.observation_space, environment.action_space
    if not observed.shape or not hasattr(observed, "low") or observed.dtype is None:
        raise DataError(
            f"{name}: observations of {observed} cannot be stored; wrap the environment with "
            "gymnasium.wrappers.FlattenObservation"
        )
    if acted.shape is None or len(acted.shape) > 1 or not (hasattr(acted, "n") or acted.shape):
        raise DataError(f"{name}: actions of {acted} cannot be stored; use Box (A,) or Discrete")
    if getattr(acted, "start", 0) != 0:
        raise DataError(f"{name}: discrete actions must count from 0, not {acted}")
    image = observed.dtype == np.uint8 and len(observed.shape) >= 2
    return np.dtype(np.uint8 if image else np.float32)


def _dataset(
    observations: list[NDArray[Any]],
    actions: list[Any],
    rewards: list[float],
    lengths: list[int],
    ended: list[bool],
    discrete: bool,
    name: str,
    bounds: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
    behaviour: str | None,
    policy: ActingPolicy | None,
) -> Dataset:
    terminated = np.array(ended)
    arrays = (
        np.stack(observations),
        np.array(actions, np.int64 if discrete else np.float32),
        np.array(rewards, np.float32),
        np.array(lengths, np.int64),
        terminated,
    )
    metadata = Metadata(
        f"collected from {name}",
        arrays_sha256(arrays),
        name,
        *(bounds or (None, None)),
        behaviour or ("random" if policy is None else type(policy).__name__),
        len(rewards),
    )
    return Dataset(*arrays, ~terminated, np.ones(len(lengths), bool), metadata)
