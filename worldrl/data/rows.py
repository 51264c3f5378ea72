"""Whole rows of arrays compared and counted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 16  # rows at a time, so that temporaries stay small beside the data


def close_rows(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """``(N, ...), (N, ...) -> (N,)``: equal up to the rounding of a stored float32.

    Files that computed the two arrays in different precision still match; uint8 compares exactly.
    """
    result = np.empty(len(a), bool)
    for start in range(0, len(a), _BLOCK):
        x, y = a[start : start + _BLOCK], b[start : start + _BLOCK]
        if x.dtype == np.uint8:
            same = x == y
        else:
            x, y = x.astype(np.float64), y.astype(np.float64)
            same = np.abs(x - y) <= 1e-6 + 1e-5 * np.abs(y)
        result[start : start + _BLOCK] = same.reshape(len(same), -1).all(1)
    return result


def row_hashes(*arrays: NDArray[Any]) -> NDArray[np.uint64]:
    """``(N, k), ... -> (N,)``: a 64-bit hash of the bytes of each row.

    Multiply-shift hashing with fixed random constants: equal rows share a hash, and among a
    million different rows a shared hash has a chance of about 1e-7.
    """
    n = len(arrays[0])
    result = np.zeros(n, np.uint64)
    constants = np.random.default_rng(0)
    for array in arrays:
        raw = np.ascontiguousarray(array).reshape(n, -1).view(np.uint8)
        padding = -raw.shape[1] % 4
        width = (raw.shape[1] + padding) // 4
        odd = constants.integers(0, 1 << 63, width, np.uint64) * np.uint64(2) + np.uint64(1)
        offset = constants.integers(0, 1 << 63, width, np.uint64)
        for start in range(0, n, _BLOCK):
            block = raw[start : start + _BLOCK]
            if padding:
                block = np.pad(block, ((0, 0), (0, padding)))
            words = np.ascontiguousarray(block).view(np.uint32).astype(np.uint64)
            mixed = (words + offset) * odd
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(32)
            result[start : start + _BLOCK] += mixed.sum(1, dtype=np.uint64)
    return result
