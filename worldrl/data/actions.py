"""Actions in environment units and in [-1, 1], where models and policies have them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_unit(action: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.float32]:
    """``(..., A)`` from ``[low, high]`` to [-1, 1].

    What lies beyond the bounds is clipped to them: a policy cannot take it, and densities of
    squashed policies do not exist there.
    """
    unit = 2 * (np.asarray(action) - low) / (high - low) - 1
    return np.asarray(unit, np.float32).clip(-1, 1)


def from_unit(action: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.float64]:
    """``(..., A)`` from [-1, 1] to ``[low, high]``, clipped: rounding may lead an ulp beyond."""
    scaled = low + (np.asarray(action, np.float64) + 1) * 0.5 * (high - low)
    return np.asarray(np.clip(scaled, low, high))
