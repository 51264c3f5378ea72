"""From flat rows to episodes: where episodes end, and which successors the file does not hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldrl.data.dataset import Dataset, Metadata
from worldrl.data.rows import close_rows
from worldrl.data.validation import Rows, checked_bounds, warnings_of
from worldrl.errors import DataError


class Ends(NamedTuple):
    """The last row of every episode."""

    last: NDArray[np.int64]  # (E,)
    terminated: NDArray[np.bool_]  # (E,)
    known: NDArray[np.bool_]  # (E,) next_observations[last] is the true successor
    warnings: tuple[str, ...]


def assemble(
    rows: Rows,
    metadata: Metadata,
    *,
    bounds: tuple[ArrayLike | None, ArrayLike | None] = (None, None),
    max_episode_steps: int | None = None,
) -> Dataset:
    """Episodes from checked rows.

    A terminal row without its successor keeps its action; the last observation is repeated and
    marked unknown. A cut episode without its last successor loses its last action instead, because
    a learner would bootstrap from a state that never followed. An empty ``metadata.sha256`` is
    filled with the hash of the arrays.

    Raises:
        DataError: nothing is left, or the bounds do not fit the actions.
    """
    ends = find_ends(rows, max_episode_steps)
    checked = checked_bounds(*bounds, rows.actions, metadata.source)
    low, high = checked if checked is not None else (None, None)
    n, last = len(rows.rewards), ends.last
    dropped = ~ends.known & ~ends.terminated
    keep = np.ones(n, bool)
    keep[last[dropped]] = False
    lengths = np.diff(last, prepend=-1) - dropped
    survives = lengths > 0
    if not survives.any():
        raise DataError(
            f"{metadata.source}: no transition is left: the rows are single steps cut off from "
            "their successors; store 'next_observations'"
        )
    # The final observation: the true successor; where the last action was dropped, the state it
    # was taken in; after a terminal row without successor, a repeat.
    final = rows.observations[last]
    if rows.next_observations is not None:
        final[ends.known] = rows.next_observations[last[ends.known]]
    return Dataset(
        _interleave(rows.observations[keep], final[survives], lengths[survives]),
        rows.actions[keep],
        rows.rewards[keep],
        lengths[survives],
        ends.terminated[survives],
        ~ends.terminated[survives],
        (ends.known | dropped)[survives],
        replace(
            metadata,
            sha256=metadata.sha256 or arrays_sha256(r for r in rows if r is not None),
            action_low=low,
            action_high=high,
            source_rows=n,
            warnings=(*metadata.warnings, *ends.warnings, *warnings_of(rows, checked)),
        ),
    )


def find_ends(rows: Rows, max_episode_steps: int | None) -> Ends:
    """Where episodes end and whether the row after the last action is known.

    Marked ends count always. Without marked timeouts, episodes are cut every
    ``max_episode_steps`` rows. Wherever a stored next observation is not the following
    observation, the episode ends too, whatever the marks say.

    The successor of an episode's last row is unknown where the file says so; else where it is
    missing, is the first observation of the next episode, or repeats the last observation.
    """
    n = len(rows.rewards)
    end = rows.terminated.copy()
    end[-1] = True
    if rows.truncated is not None:
        end |= rows.truncated
    warnings = []
    follows = np.zeros(n, bool)  # the stored successor is the next row's observation
    if rows.next_observations is not None:
        follows[:-1] = close_rows(rows.next_observations[:-1], rows.observations[1:])
        breaks = ~follows & ~end
        end |= breaks
        if breaks.any() and rows.truncated is not None:
            warnings.append(
                "rows inside episodes that are not followed by their next observation, where the "
                f"episodes were cut: {int(breaks.sum())}, the first is row {int(breaks.argmax())}"
            )
    if rows.truncated is None:
        if max_episode_steps is not None:
            start = np.flatnonzero(np.concatenate(([True], end[:-1])))
            position = np.arange(n) - np.repeat(start, np.diff(start, append=n))
            end |= (position + 1) % max_episode_steps == 0
        elif rows.next_observations is None:
            warnings.append(
                "the file marks no timeouts and holds no next observations, so only terminal rows "
                "end episodes; give max_episode_steps if episodes were cut"
            )
    last = np.flatnonzero(end)
    terminated = rows.terminated[last]
    known = np.zeros(len(last), bool)
    if rows.next_observations is not None and rows.next_known is not None:
        known = rows.next_known[last]
    elif rows.next_observations is not None:
        known = ~follows[last] & ~_repeats(rows.observations, rows.next_observations, last)
    return Ends(last, terminated, known, (*warnings, *_lost(terminated, known)))


def arrays_sha256(arrays: Iterable[NDArray[Any]]) -> str:
    """Hash of shapes, types and values, for data that no single file holds."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def _repeats(
    observations: NDArray[Any], following: NDArray[Any], last: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Episode ends whose successor merely repeats the observation.

    Only where no row inside an episode does so: some environments do stand still.
    """
    at_end = close_rows(following[last], observations[last])
    if not at_end.any():
        return at_end
    inside = np.ones(len(observations), bool)
    inside[last] = False
    stands_still = close_rows(following[inside], observations[inside]).any()
    return at_end & (bool(inside.any()) and not stands_still)


def _lost(terminated: NDArray[np.bool_], known: NDArray[np.bool_]) -> Iterable[str]:
    repeated, dropped = int((terminated & ~known).sum()), int((~terminated & ~known).sum())
    if repeated:
        yield (
            "terminal rows without their true next observation, kept for learning values and left "
            f"out of model learning: {repeated}"
        )
    if dropped:
        yield (
            "cut episodes without their last next observation, whose last action was dropped: "
            f"{dropped}"
        )


def _interleave(
    observations: NDArray[Any], final: NDArray[Any], lengths: NDArray[np.int64]
) -> NDArray[Any]:
    """Each episode's observations followed by its final one: ``(N + E, *S)``."""
    n, e = len(observations), len(lengths)
    result = np.empty((n + e, *observations.shape[1:]), observations.dtype)
    result[np.arange(n) + np.repeat(np.arange(e), lengths)] = observations
    result[np.cumsum(lengths) + np.arange(e)] = final
    return result
