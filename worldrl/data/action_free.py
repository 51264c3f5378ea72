"""Trajectories whose actions are unknown: read here alone, and no Dataset before they have them.

A file has the layout of any other, without ``actions``; or with rows of NaN in them; or with
``action_known``, false where the action is not to be trusted. Rewards and ends are needed as ever.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldrl.data.dataset import Dataset, Metadata
from worldrl.data.episodes import arrays_sha256, assemble
from worldrl.data.readers.contents import Contents, metadata_of
from worldrl.data.validation import checked_rows, partial_actions
from worldrl.errors import DataError


@dataclass(frozen=True, eq=False)
class ActionFree:
    """Validated episodes some or all of whose N actions are unknown; stored as in a Dataset."""

    observations: NDArray[Any]  # (N + E, *S)
    actions: NDArray[np.float32] | None  # (N, A), NaN where unknown; None where all are
    rewards: NDArray[np.float32]  # (N,)
    lengths: NDArray[np.int64]  # (E,)
    terminated: NDArray[np.bool_]  # (E,)
    truncated: NDArray[np.bool_]  # (E,)
    final_known: NDArray[np.bool_]  # (E,)
    metadata: Metadata

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """``(N,)``: the file holds this action."""
        if self.actions is None:
            return np.zeros(len(self.rewards), bool)
        return ~np.isnan(self.actions[:, 0])

    def with_actions(self, actions: NDArray[np.float32]) -> Dataset:
        """The dataset with ``actions`` ``(N, A)`` where none is known."""
        if self.actions is not None:
            actions = np.where(self.known[:, None], self.actions, actions)
        return Dataset(
            self.observations,
            actions,
            self.rewards,
            self.lengths,
            self.terminated,
            self.truncated,
            self.final_known,
            self.metadata,
        )


def load_action_free(
    source: str | os.PathLike[str],
    *,
    env_id: str | None = None,
    max_episode_steps: int | None = None,
) -> ActionFree:
    """Read a file whose actions are missing, or missing in some rows.

    Args:
        source: a path that ends in ``.hdf5``, ``.h5`` or ``.npz``.

    Raises:
        DataError: the file cannot be read, holds what a dataset must not hold, or lacks no action.
    """
    contents = _contents(os.fspath(source))
    arrays, names = contents.arrays, contents.names
    n = len(arrays["observations"]) if arrays["observations"].ndim else 0
    rows = checked_rows(
        arrays["observations"],
        np.zeros((n, 1), np.float32),  # held open
        arrays["rewards"],
        arrays["terminated"],
        arrays.get("truncated"),
        arrays.get("next_observations"),
        names,
        arrays.get("next_known"),
    )
    given = "actions" in arrays
    if given:
        actions = partial_actions(arrays["actions"], arrays.get("action_known"), n, names)
        rows = rows._replace(actions=actions)
    elif "action_known" in arrays:
        raise DataError(
            f"{names.source} has '{names.action_known}' but no '{names.actions}'; it says which "
            "rows of the actions to trust, so leave it out or store them"
        )
    dataset = assemble(rows, metadata_of(contents, env_id), max_episode_steps=max_episode_steps)
    # Asked of what is left: the last row of a cut episode may have been the only one without.
    if given and not np.isnan(dataset.actions).any():
        raise DataError(
            f"{names.source} holds an action in every row that can be used, so there is nothing to "
            f"label; leave '{names.actions}' out, or mark rows without one by NaN or by a false "
            f"'{names.action_known}'"
        )
    return ActionFree(
        dataset.observations,
        dataset.actions if given else None,
        dataset.rewards,
        dataset.lengths,
        dataset.terminated,
        dataset.truncated,
        dataset.final_known,
        dataset.metadata,
    )


def concatenate(first: Dataset, second: Dataset) -> Dataset:
    """The episodes of both; bounds and environment are those that ``first`` states."""
    parts = first, second
    observations, actions, rewards = (
        np.concatenate(arrays)
        for arrays in zip(*((p.observations, p.actions, p.rewards) for p in parts), strict=True)
    )
    one, other = first.metadata, second.metadata
    metadata = replace(
        one,
        source=f"{Path(one.source).name} and {Path(other.source).name}",
        sha256=arrays_sha256((observations, actions, rewards)),
        env_id=one.env_id or other.env_id,
        behaviour="; ".join(dict.fromkeys(filter(None, (one.behaviour, other.behaviour)))) or None,
        source_rows=None,
        warnings=(*one.warnings, *other.warnings),
    )
    return Dataset(
        observations,
        actions,
        rewards,
        np.concatenate([p.lengths for p in parts]),
        np.concatenate([p.terminated for p in parts]),
        np.concatenate([p.truncated for p in parts]),
        np.concatenate([p.final_known for p in parts]),
        metadata,
    )


def context_rows(lengths: NDArray[np.int64], history: int) -> NDArray[np.int64]:
    """Rows of ``observations`` around every transition: ``(N, history + 2)``.

    Those of ``s[t - history], ..., s[t], s[t + 1]``; what would lie before an episode is its first
    observation.
    """
    episode = np.repeat(np.arange(len(lengths)), lengths)
    now = np.arange(len(episode)) + episode
    first = (np.cumsum(lengths) - lengths + np.arange(len(lengths)))[episode]
    rows: NDArray[np.int64] = np.maximum(now[:, None] + np.arange(-history, 2), first[:, None])
    return rows


def _contents(source: str) -> Contents:
    from worldrl.data.readers import SCHEMES, find_reader, hdf5, npz

    if source.partition(":")[0] in SCHEMES:
        raise DataError(
            f"{source}: what D4RL and Minari publish has actions; trajectories to label come as a "
            ".hdf5 or .npz file"
        )
    reader, location = find_reader(source)
    read = npz.contents if reader is npz.read else hdf5.contents
    return read(location, needs_actions=False)
