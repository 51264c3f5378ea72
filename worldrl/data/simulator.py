"""Do the logged steps come from this simulator? Set its state, step, compare.

The state is recovered from the observation, which is possible where the observation holds all of
it: MuJoCo tasks that leave out only the root's position (their dynamics do not depend on it), and
the classic control tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldrl.data.dataset import Dataset, TransitionArrays
from worldrl.errors import DataError

if TYPE_CHECKING:
    import gymnasium

#: Puts an environment into the state that shows this observation; False where it cannot.
SetState = Callable[[NDArray[Any]], bool]

_TOLERANCE = 1e-3  # of the spread of one-step changes; float32 rounding reaches 4e-5
_AGREES = 0.95  # of the rows
VELOCITY_CLIP = 10.0  # gymnasium's Hopper and Walker2d observe velocities clipped to it


@dataclass(frozen=True)
class Agreement:
    """How far one-step predictions of a simulator match logged transitions."""

    agrees: bool | None  # None where the state cannot be set
    reason: str
    rows: int = 0  # compared
    skipped: int = 0  # of the rows drawn, those whose state cannot be recovered
    share: float | None = None  # of rows whose next observation and reward both match
    observation_share: float | None = None
    reward_share: float | None = None
    terminated_share: float | None = None
    observation_error_median: float | None = None  # largest over dimensions, a row
    observation_error_max: float | None = None
    reward_error_median: float | None = None
    reward_error_max: float | None = None


def check_agreement(
    dataset: Dataset, make_environment: Callable[[], gymnasium.Env[Any, Any]], rows: int = 1000
) -> Agreement:
    """Replay up to ``rows`` transitions, spread evenly over the data, one step each.

    A value matches within a thousandth of the standard deviation of its one-step change in the
    data (of the reward, for rewards). The simulator agrees where 95 % of the rows match in every
    dimension and in the reward.

    Raises:
        DataError: observations or actions do not fit the environment.
    """
    environment = make_environment()
    try:
        _check_spaces(dataset, environment)
        environment.reset(seed=0)
        bare = environment.unwrapped
        data = dataset.transitions()
        candidates = np.flatnonzero(data.next_known)
        if len(candidates) == 0:
            return Agreement(None, "no row has a known next observation")
        chosen = candidates[
            np.linspace(0, len(candidates) - 1, min(rows, len(candidates))).astype(int)
        ]
        set_state = state_setter(bare, data.observation[chosen])
        if set_state is None:
            return Agreement(
                None,
                f"the state of {type(bare).__name__} cannot be recovered from its observation",
            )
        return _compare(bare, set_state, data, chosen)
    finally:
        environment.close()


class _Replayed(NamedTuple):
    """What the simulator answered to one logged step."""

    observation: NDArray[np.float64]
    reward: float
    terminated: bool


def _replay(
    bare: gymnasium.Env[Any, Any],
    set_state: SetState,
    data: TransitionArrays,
    first: int,
    last: int,
) -> _Replayed | None:
    """Set the state of row ``first`` and repeat the actions up to row ``last``."""
    if not set_state(data.observation[first].astype(np.float64)):
        return None
    for row in range(first, last + 1):
        action = data.action[row]
        observation, reward, terminated, _, _ = bare.step(
            int(action) if action.ndim == 0 else action
        )
    return _Replayed(np.asarray(observation, np.float64), float(reward), bool(terminated))


def _compare(
    bare: gymnasium.Env[Any, Any],
    set_state: SetState,
    data: TransitionArrays,
    chosen: NDArray[np.int64],
) -> Agreement:
    # 1e-5 of the magnitude is what float32 keeps of a value that hardly changes
    change = (data.next_observation - data.observation)[data.next_known].astype(np.float64)
    tolerance = _TOLERANCE * change.std(0) + 1e-5 * (1 + np.abs(data.observation).max(0))
    reward_tolerance = _TOLERANCE * data.reward.std() + 1e-5 * (1 + np.abs(data.reward).max())
    errors, reward_errors, same_end = [], [], []
    for row in chosen.tolist():
        found = _replay(bare, set_state, data, row, row)
        if found is None:
            continue
        error = abs(found.reward - float(data.reward[row]))
        if error > reward_tolerance and row > 0 and data.episode[row - 1] == data.episode[row]:
            # Some rewards depend on what the step before left behind: Ant's speed is measured
            # from a position that MuJoCo had not updated yet.
            again = _replay(bare, set_state, data, row - 1, row)
            if again is not None:
                error = min(error, abs(again.reward - float(data.reward[row])))
        errors.append(np.abs(found.observation - data.next_observation[row]))
        reward_errors.append(error)
        same_end.append(found.terminated == bool(data.terminated[row]))
    if not errors:
        return Agreement(None, "no observation of the data shows a state of it", 0, len(chosen))
    matches = (np.array(errors) <= tolerance).all(1)
    reward_matches = np.array(reward_errors) <= reward_tolerance
    share = float((matches & reward_matches).mean())
    largest = np.array(errors).max(1)
    return Agreement(
        agrees=share >= _AGREES,
        reason=f"{share:.1%} of {len(errors)} replayed rows match",
        rows=len(errors),
        skipped=len(chosen) - len(errors),
        share=share,
        observation_share=float(matches.mean()),
        reward_share=float(reward_matches.mean()),
        terminated_share=float(np.mean(same_end)),
        observation_error_median=float(np.median(largest)),
        observation_error_max=float(largest.max()),
        reward_error_median=float(np.median(reward_errors)),
        reward_error_max=float(np.max(reward_errors)),
    )


def _check_spaces(dataset: Dataset, environment: gymnasium.Env[Any, Any]) -> None:
    pairs = (
        ("observations", dataset.observation_shape, environment.observation_space.shape),
        ("actions", dataset.action_shape, environment.action_space.shape),
    )
    for what, ours, theirs in pairs:
        if ours != theirs:
            raise DataError(
                f"{dataset.metadata.source}: its {what} have shape {ours} but those of the "
                f"simulator have {theirs}; name the environment (and version) that made the data"
            )


def state_setter(bare: gymnasium.Env[Any, Any], observations: NDArray[Any]) -> SetState | None:
    """How to set the state, proved by setting it and observing."""
    attempts = [_mujoco_setter(bare, hidden) for hidden in (0, 1, 2)]
    for attempt in (*attempts, _classic_setter(bare)):
        if attempt is not None and any(attempt(o.astype(np.float64)) for o in observations[:20]):
            return attempt
    return None


def _mujoco_setter(bare: Any, hidden: int) -> SetState | None:
    """For gymnasium's MuJoCo tasks whose observation starts with all but ``hidden`` positions,
    followed by all velocities; the root's position, which is hidden, becomes 0."""
    if not (hasattr(bare, "set_state") and hasattr(bare, "model") and hasattr(bare, "_get_obs")):
        return None
    positions, velocities = bare.model.nq, bare.model.nv
    size = positions + velocities - hidden
    if bare.observation_space.shape[0] < size:
        return None

    def set_state(observation: NDArray[Any]) -> bool:
        state = np.concatenate([np.zeros(hidden), observation[:size]])
        velocity = state[positions:]
        if (np.abs(velocity) == VELOCITY_CLIP).any():
            return False  # clipped: the true velocity is unknown
        bare.set_state(state[:positions], velocity)
        return bool(np.allclose(bare._get_obs()[:size], observation[:size], rtol=1e-6, atol=1e-6))

    return set_state


def _classic_setter(bare: Any) -> SetState | None:
    """For gymnasium's classic control tasks."""
    name = type(bare).__name__
    if not hasattr(bare, "state"):
        return None

    def set_state(observation: NDArray[Any]) -> bool:
        if name == "PendulumEnv":
            cosine, sine, speed = observation
            bare.state = np.array([np.arctan2(sine, cosine), speed])
            return bool(abs(cosine**2 + sine**2 - 1) < 1e-4)
        bare.state = np.array(observation)
        if hasattr(bare, "steps_beyond_terminated"):
            bare.steps_beyond_terminated = None
        return True

    known = ("PendulumEnv", "CartPoleEnv", "MountainCarEnv", "Continuous_MountainCarEnv")
    return set_state if name in known else None
