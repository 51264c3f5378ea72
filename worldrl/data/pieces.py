"""Parts of datasets, and datasets joined: episodes stay episodes where all their rows are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldrl.data.dataset import Dataset, Metadata
from worldrl.data.episodes import arrays_sha256
from worldrl.errors import DataError


def pieces(dataset: Dataset, keep: NDArray[np.bool_]) -> Dataset:
    """The rows ``keep`` ``(N,)``: consecutive ones of an episode are an episode of their own.

    A piece that ends before its episode did is truncated there, and its final observation is the
    one that was recorded; a piece with its episode's last row ends as that did. The sha256 stays
    that of the whole, which says where the rows are from.

    Raises:
        DataError: no row is kept.
    """
    if not keep.any():
        raise DataError(f"{dataset.metadata.source}: no transition is kept")
    episode = dataset.episode_of_row
    before = np.concatenate(([False], keep[:-1] & (episode[1:] == episode[:-1])))
    first = np.flatnonzero(keep & ~before)
    # One past a piece's last row: where the next row is not kept, or is of another episode.
    after = np.concatenate((keep[1:] & (episode[1:] == episode[:-1]), [False]))
    last = np.flatnonzero(keep & ~after)
    lengths = last - first + 1
    rows = np.flatnonzero(keep)
    observed = np.zeros(len(dataset.observations), bool)
    observed[dataset.observation_rows[rows]] = True
    observed[dataset.observation_rows[last] + 1] = True
    whole = last == (dataset.starts + dataset.lengths - 1)[episode[last]]
    terminated = whole & dataset.terminated[episode[last]]
    return Dataset(
        dataset.observations[observed],
        dataset.actions[rows],
        dataset.rewards[rows],
        lengths,
        terminated,
        ~terminated,
        ~whole | dataset.final_known[episode[last]],
        replace(
            dataset.metadata,
            source=f"{dataset.metadata.source} ({len(rows)} of {len(keep)} rows)",
            source_rows=None,
        ),
    )


def joined(datasets: Sequence[Dataset], env_id: str | None = None) -> Dataset:
    """All episodes of several datasets, one after another; the sha256 is of the arrays, since there
    is no single file.

    Args:
        env_id: what the whole is about; None: the environment that all name.

    Raises:
        DataError: observations, actions or stated bounds differ.
    """
    first = datasets[0]
    for other in datasets[1:]:
        _check_alike(first, other)
    named = {dataset.metadata.env_id for dataset in datasets}

    def all_of(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(dataset, name) for dataset in datasets])

    names = "observations", "actions", "rewards", "lengths", "terminated", "truncated"
    arrays = {name: all_of(name) for name in (*names, "final_known")}
    metadata = Metadata(
        " + ".join(Path(dataset.metadata.source).name for dataset in datasets),
        arrays_sha256(arrays.values()),
        env_id or (named.pop() if len(named) == 1 else None),
        first.metadata.action_low,
        first.metadata.action_high,
    )
    return Dataset(**arrays, metadata=metadata)


def _check_alike(first: Dataset, other: Dataset) -> None:
    names = f"{first.metadata.source} and {other.metadata.source}"
    for one, two in (first.observations, other.observations), (first.actions, other.actions):
        if one.shape[1:] != two.shape[1:] or one.dtype != two.dtype:
            raise DataError(
                f"{names} hold unlike things: {one.shape[1:]} {one.dtype} and {two.shape[1:]} "
                f"{two.dtype}; join data of one kind of system"
            )
    bounds = [(data.metadata.action_low, data.metadata.action_high) for data in (first, other)]
    if not all(_same(one, two) for one, two in zip(*bounds, strict=True)):
        raise DataError(
            f"{names} state other action bounds: the same action would mean two things; import "
            "both with the bounds of their environment"
        )


def _same(one: NDArray[np.float32] | None, two: NDArray[np.float32] | None) -> bool:
    if one is None or two is None:
        return one is two
    return np.array_equal(one, two)
