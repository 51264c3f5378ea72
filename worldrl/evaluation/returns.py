"""Returns of a population of policies in an environment.

Protocol: deterministic policy, undiscounted return, exactly the asked number of episodes a member,
each started from a seed of its own that depends on (seed, episode) alone. So all members meet the
same starts, and a score does not depend on how many environments run side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from worldrl.data.actions import from_unit
from worldrl.errors import EnvironmentSetupError
from worldrl.random import stream_seed
from worldrl.types import Policy

#: Rows of every policy call. Matrix products of one row round otherwise than those of many, so
#: batches are padded to one size, whatever the number of environments.
BLOCK = 16


class Env(Protocol):
    """What is used of a ``gymnasium.Env``."""

    @property
    def observation_space(self) -> Any: ...

    @property
    def action_space(self) -> Any: ...

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]: ...

    def step(self, action: Any, /) -> tuple[Any, Any, bool, bool, dict[str, Any]]: ...

    def close(self) -> None: ...


class EpisodeReturns(NamedTuple):
    """One number per member and episode."""

    returns: NDArray[np.float64]  # (P, episodes), undiscounted sums of rewards
    lengths: NDArray[np.int64]  # (P, episodes), steps


def episode_seed(seed: int, episode: int) -> int:
    """What ``reset`` gets for one episode: 31 bits, which every simulator accepts."""
    return stream_seed(seed, "evaluation.episode", episode) & 0x7FFFFFFF


def evaluate_returns(
    env_factory: Callable[[], Env],
    policy: Policy,
    episodes: int,
    seed: int,
    population: int,
    *,
    action_low: NDArray[Any],
    action_high: NDArray[Any],
    num_envs: int = BLOCK,
    device: torch.device | str = "cpu",
) -> EpisodeReturns:
    """Play ``episodes`` episodes with every member.

    Environments are stepped in turn: one that is finished is given the next episode or is stepped
    no more. (Threads were measured: on two cores they halve the rate of light environments and
    gain a quarter on heavy ones.)

    Args:
        env_factory: builds an environment that ends or truncates its episodes by itself.
        policy: ``(P, B, S) -> (P, B, A)`` in [-1, 1]; called without noise.
        episodes: per member.
        seed: of the episodes' starts.
        population: P.
        action_low: ``(A,)``, what -1 stands for, in environment units.
        action_high: ``(A,)``, what 1 stands for. Actions are clipped to the environment's own
            bounds afterwards.
        num_envs: environments side by side per member, at most :data:`BLOCK`.
        device: where the policy computes.

    Raises:
        EnvironmentSetupError: the environment's spaces do not fit the policy.
        ValueError: a count is out of range.
    """
    if episodes < 1 or population < 1 or not 1 <= num_envs <= BLOCK:
        raise ValueError(
            f"episodes={episodes}, population={population}, num_envs={num_envs}: the first two "
            f"must be positive and the last in [1, {BLOCK}]"
        )
    slots = min(num_envs, episodes)
    envs = [[env_factory() for _ in range(slots)] for _ in range(population)]
    try:
        return _play(envs, policy, episodes, seed, action_low, action_high, device)
    finally:
        for row in envs:
            for env in row:
                env.close()


@torch.no_grad()
def _play(
    envs: list[list[Env]],
    policy: Policy,
    episodes: int,
    seed: int,
    action_low: NDArray[Any],
    action_high: NDArray[Any],
    device: torch.device | str,
) -> EpisodeReturns:
    population, slots = len(envs), len(envs[0])
    size = observation_size(envs[0][0])
    env_low, env_high = action_bounds(envs[0][0], len(action_low))
    returns = np.zeros((population, episodes))
    lengths = np.zeros((population, episodes), np.int64)
    observation = np.zeros((population, BLOCK, size), np.float32)
    playing = np.full((population, slots), -1)  # the episode that a slot plays; -1: none left
    waiting = [0] * population  # the next episode to start

    def start(member: int, slot: int) -> None:
        episode = waiting[member]
        playing[member, slot] = episode if episode < episodes else -1
        if episode < episodes:
            waiting[member] += 1
            first, _ = envs[member][slot].reset(seed=episode_seed(seed, episode))
            observation[member, slot] = np.ravel(first)

    for member in range(population):
        for slot in range(slots):
            start(member, slot)
    while True:
        live = np.argwhere(playing >= 0).tolist()
        if not live:
            return EpisodeReturns(returns, lengths)
        action = _act(policy, observation, device)
        if action.shape[-1] != len(action_low):
            raise EnvironmentSetupError(
                f"the policy gives actions of size {action.shape[-1]} but its bounds have "
                f"{len(action_low)} entries; the run it comes from is damaged."
            )
        scaled = np.clip(from_unit(action, action_low, action_high), env_low, env_high)
        scaled = scaled.astype(env_low.dtype, copy=False)
        for member, slot in live:
            outcome = envs[member][slot].step(scaled[member, slot])
            after, reward, terminated, truncated, _ = outcome
            episode = playing[member, slot]
            returns[member, episode] += reward
            lengths[member, episode] += 1
            if terminated or truncated:
                start(member, slot)
            else:
                observation[member, slot] = np.ravel(after)


def _act(
    policy: Policy, observation: NDArray[np.float32], device: torch.device | str
) -> NDArray[np.float32]:
    try:
        action = policy(torch.as_tensor(observation, device=device), None)
    except RuntimeError as error:  # how torch reports shapes that do not fit
        reason = str(error).splitlines()[0].rstrip(".")
        raise EnvironmentSetupError(
            f"the policy does not act on what the environment observes ({observation.shape[-1]} "
            f"numbers): {reason}. Score it in the environment of its data."
        ) from error
    return action.detach().to("cpu", torch.float32).numpy()


def observation_size(env: Env) -> int:
    """Numbers of an observation.

    Raises:
        EnvironmentSetupError: observations are no arrays.
    """
    shape = getattr(env.observation_space, "shape", None)
    if not shape:
        raise EnvironmentSetupError(
            f"the environment observes {env.observation_space}; the policy reads flat vectors "
            "(a Box space)."
        )
    return int(np.prod(shape))


def action_bounds(env: Env, action_size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The environment's own bounds, ``(A,)`` each.

    Raises:
        EnvironmentSetupError: its actions are not ``action_size`` continuous numbers.
    """
    low, high = (getattr(env.action_space, name, None) for name in ("low", "high"))
    if low is None or high is None or low.shape != (action_size,):
        raise EnvironmentSetupError(
            f"the environment acts in {env.action_space} but the policy gives {action_size} "
            "continuous numbers; score it in the environment of its data, or pass another "
            "--env-id."
        )
    return low, high
