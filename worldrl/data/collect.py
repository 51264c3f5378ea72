"""Recording episodes from an environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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


#: ``(low, high)``, each ``(A,)``.
Bounds = tuple[NDArray[np.float32], NDArray[np.float32]]

#: Called with the number of steps recorded so far.
Report = Callable[[int], None]


def collect(
    make_environment: Callable[[], gymnasium.Env[Any, Any]],
    steps: int,
    *,
    policy: ActingPolicy | None = None,
    noise: float = 0.0,
    seed: int = 0,
    behaviour: str = "random",
    report: Report | None = None,
) -> Dataset:
    """Record exactly ``steps`` transitions; the last episode is marked as truncated.

    The same environment, policy and seed record the same data.

    Args:
        policy: None samples the action space.
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
        environment.action_space.seed(seed)
        acting = policy or _Random(environment.action_space)
        return _record(environment, steps, acting, noise, seed, behaviour, report)
    finally:
        environment.close()


@dataclass(frozen=True)
class _Random:
    """Samples the action space."""

    space: gymnasium.Space[Any]

    def act(self, observations: NDArray[Any]) -> NDArray[Any]:
        return np.stack([self.space.sample() for _ in observations])


@dataclass
class _Recording:
    """Episodes as they grow, in the layout of :class:`worldrl.data.Dataset`."""

    observations: list[NDArray[Any]] = field(default_factory=list)
    actions: list[NDArray[Any]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    terminated: list[bool] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.rewards)

    def end_episode(self, terminated: bool) -> None:
        self.lengths.append(self.steps - sum(self.lengths))
        self.terminated.append(terminated)

    def dataset(self, name: str, bounds: Bounds | None, behaviour: str) -> Dataset:
        terminated = np.array(self.terminated)
        arrays = (
            np.stack(self.observations),
            np.stack(self.actions),
            np.array(self.rewards, np.float32),
            np.array(self.lengths, np.int64),
            terminated,
        )
        low, high = bounds if bounds is not None else (None, None)
        metadata = Metadata(
            f"collected from {name}", arrays_sha256(arrays), name, low, high, behaviour, self.steps
        )
        return Dataset(*arrays, ~terminated, np.ones(len(terminated), bool), metadata)


def _record(
    environment: gymnasium.Env[Any, Any],
    steps: int,
    policy: ActingPolicy,
    noise: float,
    seed: int,
    behaviour: str,
    report: Report | None,
) -> Dataset:
    name, space = _name(environment), environment.action_space
    kind, action_kind = _types(environment, name)
    bounds = action_bounds(environment)
    if noise and bounds is None:
        raise DataError(f"{name}: noise needs continuous actions with finite bounds")
    generator = np.random.default_rng(seed)
    recording = _Recording()

    def finite(value: Any, what: str, dtype: type[np.generic]) -> NDArray[Any]:
        array = np.array(value, dtype)  # a copy: environments may write into what they returned
        if not np.isfinite(array).all():
            raise DataError(f"{name}: the {what} at step {recording.steps} is not finite")
        return array

    def begin(first: Any) -> NDArray[Any]:
        recording.observations.append(finite(first, "observation", kind))
        return recording.observations[-1]

    observation = begin(environment.reset(seed=seed)[0])
    while recording.steps < steps:
        action = finite(np.asarray(policy.act(observation[None]))[0], "action", action_kind)
        if action.shape != space.shape:
            raise DataError(
                f"{name}: the policy's actions have shape {action.shape}, not {space.shape}"
            )
        if noise and bounds is not None:
            half = (bounds[1] - bounds[0]) / 2
            action = action + noise * half * generator.standard_normal(half.shape, np.float32)
            action = np.clip(action, *bounds)
        following, reward, terminated, truncated, info = environment.step(
            int(action) if action.ndim == 0 else action
        )
        # An environment that restarts by itself returns the next episode's first observation and
        # keeps the true last one here.
        own = next((info[k] for k in ("final_obs", "final_observation") if k in info), None)
        done = terminated or truncated
        restarted = done and own is not None
        observation = finite(own if restarted else following, "observation", kind)
        recording.observations.append(observation)
        recording.actions.append(action)
        recording.rewards.append(float(finite(reward, "reward", np.float32)))
        if done or recording.steps == steps:
            recording.end_episode(bool(terminated))
            if recording.steps < steps:
                observation = begin(following if restarted else environment.reset()[0])
        if report is not None:
            report(recording.steps)
    return recording.dataset(name, bounds, behaviour)


def _name(environment: gymnasium.Env[Any, Any]) -> str:
    spec = environment.spec
    return spec.id if spec is not None else type(environment.unwrapped).__name__


def _types(
    environment: gymnasium.Env[Any, Any], name: str
) -> tuple[type[np.generic], type[np.generic]]:
    """Stored types of observations and actions; refuses spaces that a dataset cannot hold."""
    observed, acted = environment.observation_space, environment.action_space
    if not observed.shape or not hasattr(observed, "low"):
        raise DataError(
            f"{name}: observations of {observed} cannot be stored; wrap the environment with "
            "gymnasium.wrappers.FlattenObservation"
        )
    image = observed.dtype == np.uint8 and len(observed.shape) >= 2
    kind = np.uint8 if image else np.float32
    if hasattr(acted, "n") and acted.shape == () and getattr(acted, "start", 0) == 0:
        return kind, np.int64
    if hasattr(acted, "low") and acted.shape is not None and len(acted.shape) == 1:
        return kind, np.float32
    raise DataError(
        f"{name}: actions of {acted} cannot be stored; they must be Box (A,) or Discrete from 0"
    )


def action_bounds(environment: gymnasium.Env[Any, Any]) -> Bounds | None:
    """``(low, high)``, each ``(A,)``; None for discrete actions and infinite bounds."""
    low = getattr(environment.action_space, "low", None)
    high = getattr(environment.action_space, "high", None)
    if low is None or high is None or not (np.isfinite(low).all() and np.isfinite(high).all()):
        return None
    return np.asarray(low, np.float32), np.asarray(high, np.float32)
