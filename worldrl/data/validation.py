"""What a dataset must not hold, and what a user should be told about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldrl.data.rows import row_hashes
from worldrl.errors import DataError


class Names(NamedTuple):
    """What the source calls things, for messages."""

    source: str
    observations: str = "observations"
    actions: str = "actions"
    rewards: str = "rewards"
    terminated: str = "terminated"
    truncated: str = "truncated"
    next_observations: str = "next_observations"
    next_known: str = "next_known"
    action_known: str = "action_known"


class Rows(NamedTuple):
    """N checked rows in time order."""

    observations: NDArray[Any]  # (N, *S) float32 or uint8
    actions: NDArray[Any]  # (N, A) float32 or (N,) int64
    rewards: NDArray[np.float32]  # (N,)
    terminated: NDArray[np.bool_]  # (N,)
    truncated: NDArray[np.bool_] | None  # (N,)
    next_observations: NDArray[Any] | None  # (N, *S)
    next_known: NDArray[np.bool_] | None = None  # (N,) where the file itself says so


def checked_rows(
    observations: ArrayLike,
    actions: ArrayLike,
    rewards: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike | None,
    next_observations: ArrayLike | None,
    names: Names,
    next_known: ArrayLike | None = None,
) -> Rows:
    """Rows in their final types.

    Raises:
        DataError: an array is not numeric, has a wrong rank or length, is empty, or holds NaN or
            infinity; the message names source, array and row (counted from 0).
    """
    checked = _observations(observations, names.observations, names)
    n = len(checked)
    if n == 0:
        raise DataError(
            f"{names.source}: '{names.observations}' has no rows; a dataset needs at least one "
            "transition"
        )
    following = None
    if next_observations is not None:
        following = _observations(next_observations, names.next_observations, names)
        if following.shape[1:] != checked.shape[1:] or following.dtype != checked.dtype:
            raise DataError(
                f"{names.source}: '{names.next_observations}' has rows of shape "
                f"{following.shape[1:]} ({following.dtype}), but '{names.observations}' has "
                f"{checked.shape[1:]} ({checked.dtype}); both must describe the same observation"
            )
        check_length(following, n, names.next_observations, names)
    acted = _actions(actions, names)
    check_length(acted, n, names.actions, names)
    rewarded = _finite(_column(rewards, names.rewards, names), names.rewards, names)
    check_length(rewarded, n, names.rewards, names)
    ended = flags(terminated, names.terminated, names)
    check_length(ended, n, names.terminated, names)
    cut, known = (
        None if values is None else flags(values, key, names)
        for values, key in ((truncated, names.truncated), (next_known, names.next_known))
    )
    if cut is not None:
        check_length(cut, n, names.truncated, names)
    if known is not None:
        check_length(known, n, names.next_known, names)
    return Rows(checked, acted, rewarded, ended, cut, following, known)


def partial_actions(
    actions: ArrayLike, known: ArrayLike | None, n: int, names: Names
) -> NDArray[np.float32]:
    """``(n, A)`` with rows of NaN where the action is unknown.

    It is unknown where the whole row is NaN, or where ``known`` ``(n,)`` says so, whatever the row
    then holds.

    Raises:
        DataError: discrete actions, a wrong rank or length, or a row that is known and not finite.
    """
    array = _array(actions, names.actions, names)
    if array.ndim != 2 or array.shape[1] == 0 or (array.dtype.kind in "iu" and array.shape[1] == 1):
        raise DataError(
            f"{names.source}: '{names.actions}' has shape {array.shape} ({array.dtype}); actions "
            "that are partly known must be (rows, size) continuous numbers; leave the key out if "
            "none is known"
        )
    check_length(array, n, names.actions, names)
    missing = np.asarray(np.isnan(array.astype(np.float64)).all(1))
    if known is not None:
        stated = flags(known, names.action_known, names)
        check_length(stated, n, names.action_known, names)
        missing |= ~stated
    result = _finite(np.where(missing[:, None], 0, array), names.actions, names)
    result[missing] = np.nan
    return result


def checked_bounds(
    low: ArrayLike | None, high: ArrayLike | None, actions: NDArray[Any], source: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Stated action bounds as two ``(A,)`` float32 arrays; None where there are none.

    Raises:
        DataError: the bounds do not fit the actions, are not finite or are empty intervals.
    """
    if low is None or high is None or actions.ndim == 1:
        return None
    try:
        lower, upper = (
            np.broadcast_to(np.asarray(b, np.float32), actions.shape[1:]).copy()
            for b in (low, high)
        )
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{source}: the action bounds must be numbers, one or {actions.shape[1]} of them: "
            f"{error}"
        ) from None
    if not (np.isfinite(lower).all() and np.isfinite(upper).all() and (lower < upper).all()):
        raise DataError(
            f"{source}: the action bounds must be finite with low < high in every dimension, but "
            f"they are {lower.tolist()} and {upper.tolist()}"
        )
    return lower, upper


def warnings_of(
    rows: Rows, bounds: tuple[NDArray[np.float32], NDArray[np.float32]] | None
) -> Iterator[str]:
    """What is allowed but suspicious."""
    n = len(rows.rewards)
    if bounds is not None and rows.actions.ndim == 2:
        slack = 1e-5 * (bounds[1] - bounds[0])
        outside = ((rows.actions < bounds[0] - slack) | (rows.actions > bounds[1] + slack)).any(1)
        if outside.any():
            first = int(outside.argmax())
            yield (
                f"{int(outside.sum())} of {n} rows have actions outside the stated bounds, the "
                f"first in row {first}; a policy cannot repeat them"
            )
    if not rows.rewards.any():
        yield "all rewards are zero; there is nothing to learn from them"
    flat = rows.observations.reshape(n, -1)
    keys = row_hashes(flat, rows.actions.reshape(n, -1), rows.rewards.reshape(n, 1))
    copies = n - len(np.unique(keys))
    if copies:
        yield (
            f"{copies} of {n} rows repeat the observation, action and reward of another row; "
            "if the file was merged from others, some may be there twice"
        )


def _array(values: ArrayLike, key: str, names: Names) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DataError(f"{names.source}: '{key}' is not an array of numbers: {error}") from None
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{names.source}: '{key}' holds values of type {array.dtype}; it must hold numbers"
        )
    return array


def _observations(values: ArrayLike, key: str, names: Names) -> NDArray[Any]:
    array = _array(values, key, names)
    if array.ndim < 2 or 0 in array.shape[1:]:
        raise DataError(
            f"{names.source}: '{key}' has shape {array.shape}; it must be (rows, size) or "
            "(rows, height, width, ...) with every size at least 1; reshape (rows,) to (rows, 1)"
        )
    if array.dtype == np.uint8 and array.ndim >= 3:
        return array
    return _finite(array, key, names)


def _actions(values: ArrayLike, names: Names) -> NDArray[Any]:
    array = _array(values, names.actions, names)
    integers = array.dtype.kind in "iu"
    if integers and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if integers and array.ndim == 1:
        discrete = array.astype(np.int64)
        if (discrete < 0).any():
            raise DataError(
                f"{names.source}: '{names.actions}' row {int((discrete < 0).argmax())} is "
                f"{int(discrete.min())}; discrete actions must count from 0"
            )
        return discrete
    if array.ndim != 2 or array.shape[1] == 0:
        raise DataError(
            f"{names.source}: '{names.actions}' has shape {array.shape} ({array.dtype}); it must "
            "be (rows, size) numbers, or (rows,) integers for discrete actions; reshape (rows,) "
            "to (rows, 1)"
        )
    return _finite(
        array,
        names.actions,
        names,
        "remove that episode, repair the file, or give trajectories that lack their actions new "
        "ones with `worldrl data label`",
    )


def _column(values: ArrayLike, key: str, names: Names) -> NDArray[Any]:
    array = _array(values, key, names)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(
            f"{names.source}: '{key}' has shape {array.shape}; it must be (rows,) or (rows, 1)"
        )
    return array


def flags(values: ArrayLike, key: str, names: Names) -> NDArray[np.bool_]:
    """``(N,)`` or ``(N, 1)`` of true and false, or of 0 and 1, as ``(N,)`` bool."""
    array = _column(values, key, names)
    odd = (array != 0) & (array != 1)
    if odd.any():
        row = int(odd.argmax())
        raise DataError(
            f"{names.source}: '{key}' row {row} is {array[row]}; it must be true or false, 0 or 1"
        )
    return array.astype(bool)


def _finite(
    array: NDArray[Any],
    key: str,
    names: Names,
    remedy: str = "remove that episode or repair the file",
) -> NDArray[np.float32]:
    """As float32; refuses what is not finite in it, including float64 values beyond its range."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = np.ascontiguousarray(array, np.float32)
    for start in range(0, len(single), 1 << 16):  # in blocks: no mask as large as the data
        bad = ~np.isfinite(single[start : start + (1 << 16)])
        if bad.any():
            where = np.argwhere(bad)[0]
            row, column = start + int(where[0]), tuple(int(i) for i in where[1:])
            value = array[(row, *column)]
            place = f"row {row}" + (f", column {', '.join(map(str, column))}" if column else "")
            raise DataError(
                f"{names.source}: '{key}' {place} is {value}; every value must be a finite "
                f"float32 number; {remedy}"
            )
    return single


def check_length(array: NDArray[Any], n: int, key: str, names: Names) -> None:
    """Refuse an array with another number of rows than the observations."""
    if len(array) != n:
        raise DataError(
            f"{names.source}: '{key}' has {len(array)} rows but '{names.observations}' has {n}; "
            "every array must have one row per transition"
        )
