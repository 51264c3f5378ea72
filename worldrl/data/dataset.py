"""The canonical form of logged experience: episodes of T actions and T + 1 observations.

Transitions and windows are derived from it, so a batch that crosses an episode border cannot be
written. How flat rows become episodes stands in :mod:`worldrl.data.episodes`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldrl.errors import DataError


class TransitionArrays(NamedTuple):
    """N rows of one-step experience in episode order; actions in environment units."""

    observation: NDArray[Any]  # (N, *S) float32, or uint8 for images
    action: NDArray[Any]  # (N, A) float32; discrete: (N,) int64
    reward: NDArray[np.float32]  # (N,)
    next_observation: NDArray[Any]  # (N, *S)
    terminated: NDArray[np.bool_]  # (N,)
    next_known: NDArray[np.bool_]  # (N,); False only on terminal rows whose successor is lost
    episode: NDArray[np.int64]  # (N,) episode number of each row


class Windows(NamedTuple):
    """W windows of ``length`` consecutive transitions, none of which crosses an episode border."""

    transition: NDArray[np.int64]  # (W,) first row of actions and rewards
    observation: NDArray[np.int64]  # (W,) first row of observations
    length: int

    def transitions(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of ``actions`` and ``rewards`` of the windows ``index`` (B,): ``(B, length)``."""
        return self.transition[index][:, None] + np.arange(self.length)

    def observations(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of ``observations`` of the windows ``index`` (B,): ``(B, length + 1)``."""
        return self.observation[index][:, None] + np.arange(self.length + 1)


class Episode(NamedTuple):
    """One episode of T steps; views, not copies."""

    observations: NDArray[Any]  # (T + 1, *S)
    actions: NDArray[Any]  # (T, A) or (T,)
    rewards: NDArray[np.float32]  # (T,)
    terminated: bool
    truncated: bool
    final_known: bool  # False: the last observation repeats the one before it


@dataclass(frozen=True)
class Metadata:
    """Where a dataset came from and what its maker said about it."""

    source: str
    sha256: str  # of the file, also of a part of it; of the arrays where there is no single file
    env_id: str | None = None
    action_low: NDArray[np.float32] | None = None  # (A,) the environment's stated bounds
    action_high: NDArray[np.float32] | None = None  # (A,)
    behaviour: str | None = None
    source_rows: int | None = None  # rows before those without a successor were dropped
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Validated episodes in flat storage.

    Transition ``k`` (counted over the whole dataset) of episode ``e`` uses the observation rows
    ``k + e`` and ``k + e + 1``. Arrays may be memory-mapped; they are never written to.
    """

    observations: NDArray[Any]  # (N + E, *S) float32, or uint8 for images
    actions: NDArray[Any]  # (N, A) float32; discrete: (N,) int64
    rewards: NDArray[np.float32]  # (N,)
    lengths: NDArray[np.int64]  # (E,) actions in each episode, at least 1
    terminated: NDArray[np.bool_]  # (E,) the environment ended it; its final value is zero
    truncated: NDArray[np.bool_]  # (E,) it was cut; exactly one of the two is true
    final_known: NDArray[np.bool_]  # (E,) False (terminated only): last observation is a repeat
    metadata: Metadata

    def __post_init__(self) -> None:
        n, e = int(self.lengths.sum()), len(self.lengths)
        if n == 0 or (self.lengths < 1).any():
            raise DataError(f"{self.metadata.source}: the dataset holds no transitions")
        sizes = (len(self.observations), len(self.actions), len(self.rewards))
        if sizes != (n + e, n, n):
            raise DataError(
                f"{self.metadata.source}: {e} episodes of {n} steps in all need {n + e} "
                f"observations, {n} actions and {n} rewards, but there are {sizes}"
            )
        flags = (self.terminated, self.truncated, self.final_known)
        if any(f.shape != (e,) for f in flags) or not (self.terminated ^ self.truncated).all():
            raise DataError(
                f"{self.metadata.source}: each of the {e} episodes must be either terminated or "
                "truncated, and not both"
            )
        if (~self.final_known & ~self.terminated).any():
            raise DataError(
                f"{self.metadata.source}: the final observation of a truncated episode is unknown; "
                "drop its last action instead"
            )

    def __repr__(self) -> str:
        return (
            f"Dataset({self.num_transitions} transitions in {self.num_episodes} episodes, "
            f"observation {self.observation_shape}, action {self.action_shape or 'discrete'}, "
            f"from {self.metadata.source})"
        )

    @classmethod
    def from_arrays(
        cls,
        observations: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike | None = None,
        next_observations: ArrayLike | None = None,
        *,
        env_id: str | None = None,
        action_low: ArrayLike | None = None,
        action_high: ArrayLike | None = None,
        max_episode_steps: int | None = None,
        behaviour: str | None = None,
        source: str = "arrays",
    ) -> Dataset:
        """Episodes from flat rows in time order, as D4RL stores them.

        Args:
            observations: ``(N, *S)`` numbers.
            actions: ``(N, A)`` in environment units, or ``(N,)`` integers.
            rewards: ``(N,)`` or ``(N, 1)``.
            terminated: ``(N,)`` or ``(N, 1)``, true or 1 where the environment ended the episode.
            truncated: ``(N,)`` or ``(N, 1)``, where the episode was cut; None finds the cuts where
                a next observation is not the following observation, and every
                ``max_episode_steps`` rows.
            next_observations: ``(N, *S)``; without it the last action of a cut episode is dropped,
                because its successor is unknown.
            action_low, action_high: scalar or ``(A,)``, the environment's bounds.

        Warns:
            UserWarning: of what ``metadata.warnings`` holds: dropped rows, actions out of bounds.

        Raises:
            DataError: NaN or infinity, a wrong rank or length, no rows; names the array and row.
        """
        from worldrl.data.episodes import assemble
        from worldrl.data.validation import Names, checked_rows

        rows = checked_rows(
            observations, actions, rewards, terminated, truncated, next_observations, Names(source)
        )
        dataset = assemble(
            rows,
            Metadata(source, "", env_id, behaviour=behaviour),
            bounds=(action_low, action_high),
            max_episode_steps=max_episode_steps,
        )
        for warning in dataset.metadata.warnings:
            warnings.warn(warning, stacklevel=2)
        return dataset

    @property
    def num_transitions(self) -> int:
        return len(self.actions)

    @property
    def num_episodes(self) -> int:
        return len(self.lengths)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return self.observations.shape[1:]

    @property
    def action_shape(self) -> tuple[int, ...]:
        """``(A,)``, or ``()`` for discrete actions."""
        return self.actions.shape[1:]

    @property
    def discrete(self) -> bool:
        """Whether actions are integers from 0."""
        return self.actions.ndim == 1

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """``(E,)`` row of each episode's first action."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def episode_of_row(self) -> NDArray[np.int64]:
        """``(N,)`` episode number of each transition."""
        return np.repeat(np.arange(self.num_episodes), self.lengths)

    @cached_property
    def observation_rows(self) -> NDArray[np.int64]:
        """``(N,)`` row in ``observations`` where each transition begins; it ends one row later."""
        return np.arange(self.num_transitions) + self.episode_of_row

    def returns(self) -> NDArray[np.float64]:
        """``(E,)`` undiscounted sum of each episode's rewards."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.starts)

    def transitions(self) -> TransitionArrays:
        """All transitions; observations are gathered, so this doubles the memory they take."""
        last = self.starts + self.lengths - 1
        terminated = np.zeros(self.num_transitions, bool)
        terminated[last] = self.terminated
        next_known = np.ones(self.num_transitions, bool)
        next_known[last] = self.final_known
        rows = self.observation_rows
        return TransitionArrays(
            self.observations[rows],
            self.actions,
            self.rewards,
            self.observations[rows + 1],
            terminated,
            next_known,
            self.episode_of_row,
        )

    def windows(self, length: int) -> Windows:
        """Every run of ``length`` transitions inside one episode; shorter episodes have none."""
        if length < 1:
            raise ValueError(f"a window needs at least one transition, not {length}")
        counts = np.maximum(self.lengths - length + 1, 0)
        episode = np.repeat(np.arange(self.num_episodes), counts)
        offset = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        first = self.starts[episode] + offset
        return Windows(first, first + episode, length)

    def episode(self, index: int) -> Episode:
        """Episode ``index``; negative counts from the end."""
        if not -self.num_episodes <= index < self.num_episodes:
            raise IndexError(f"episode {index} of {self.num_episodes}")
        index %= self.num_episodes
        start, length = int(self.starts[index]), int(self.lengths[index])
        first = start + index
        return Episode(
            self.observations[first : first + length + 1],
            self.actions[start : start + length],
            self.rewards[start : start + length],
            bool(self.terminated[index]),
            bool(self.truncated[index]),
            bool(self.final_known[index]),
        )

    def subset(self, episodes: Sequence[int] | NDArray[Any]) -> Dataset:
        """The given episodes (numbers or a mask of ``(E,)``), in the given order."""
        chosen = np.arange(self.num_episodes)[np.asarray(episodes)]
        if len(chosen) == 0:
            raise DataError(f"{self.metadata.source}: a subset needs at least one episode")
        lengths = self.lengths[chosen]
        rows = _ranges(self.starts[chosen], lengths)
        return Dataset(
            self.observations[_ranges(self.starts[chosen] + chosen, lengths + 1)],
            self.actions[rows],
            self.rewards[rows],
            lengths,
            self.terminated[chosen],
            self.truncated[chosen],
            self.final_known[chosen],
            replace(
                self.metadata,
                source=f"{self.metadata.source} ({len(chosen)} of {self.num_episodes} episodes)",
                source_rows=None,
            ),
        )

    def action_bounds(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``(low, high)``, each ``(A,)``: the stated bounds, else the data's range joined with
        [-1, 1].

        Raises:
            DataError: the actions are discrete.
        """
        if self.discrete:
            raise DataError(f"{self.metadata.source}: discrete actions have no bounds")
        if self.metadata.action_low is not None and self.metadata.action_high is not None:
            return self.metadata.action_low, self.metadata.action_high
        one = np.float32(1)
        return np.minimum(self.actions.min(0), -one), np.maximum(self.actions.max(0), one)


def load(
    source: str | os.PathLike[str],
    *,
    env_id: str | None = None,
    max_episode_steps: int | None = None,
) -> Dataset:
    """Read a dataset.

    Args:
        source: a path (``.hdf5``, ``.h5``, ``.npz``), ``d4rl:NAME`` or ``minari:ID``.
        env_id: the environment that the data is about, where the file does not say.
        max_episode_steps: splits episodes of files that mark no timeouts.

    Raises:
        DataError: the source cannot be read or holds what a dataset must not hold.
    """
    from worldrl.data.readers import find_reader

    reader, location = find_reader(os.fspath(source))
    return reader(location, env_id=env_id, max_episode_steps=max_episode_steps)


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The concatenation of ``arange(start, start + length)``."""
    offsets = np.cumsum(lengths) - lengths
    rows: NDArray[np.int64] = np.arange(int(lengths.sum())) + np.repeat(starts - offsets, lengths)
    return rows
