"""Published actors as plain arrays: multilayer perceptrons in a ``.npz`` file, run with NumPy.

Keys: ``W0 b0 W1 b1 ...`` (``W`` is ``(outputs, inputs)``); ``squash``: ``tanh`` (the output is in
[-1, 1] and is scaled to the bounds), ``clip`` (environment units, clipped) or ``none`` (as is);
``hidden_activation``: ``relu`` or ``tanh``; optionally ``obs_mean obs_var eps clip_obs``, which
normalise the observation. ``log_std*`` are not used: the actor acts by its mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldrl.errors import DataError


@dataclass(frozen=True)
class Actor:
    """A deterministic policy in environment units."""

    weights: tuple[NDArray[np.float32], ...]  # (outputs, inputs) a layer
    biases: tuple[NDArray[np.float32], ...]  # (outputs,)
    hidden_activation: str
    squash: str
    mean: NDArray[np.float64] | None  # (S,)
    scale: NDArray[np.float64] | None  # (S,)
    clip: float
    action_low: NDArray[np.float32]  # (A,)
    action_high: NDArray[np.float32]  # (A,)

    def act(self, observations: NDArray[Any]) -> NDArray[np.float32]:
        """``(B, S) -> (B, A)``."""
        hidden: NDArray[Any] = observations
        if self.mean is not None and self.scale is not None:
            hidden = np.clip((hidden - self.mean) / self.scale, -self.clip, self.clip)
        hidden = hidden.astype(np.float32)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = hidden @ weight.T + bias
            if layer < last:
                relu = self.hidden_activation == "relu"
                hidden = np.maximum(hidden, 0) if relu else np.tanh(hidden)
        if self.squash == "tanh":
            unit = np.tanh(hidden)
            hidden = self.action_low + (unit + 1) / 2 * (self.action_high - self.action_low)
        elif self.squash == "clip":
            hidden = np.clip(hidden, self.action_low, self.action_high)
        return np.asarray(hidden, np.float32)


def load_actor(
    path: Path,
    observation_size: int,
    action_low: NDArray[np.float32],
    action_high: NDArray[np.float32],
) -> Actor:
    """Read an actor for an environment.

    Args:
        observation_size: S of the environment.
        action_low, action_high: ``(A,)`` its action bounds.

    Raises:
        DataError: the file cannot be read, is no actor, or does not fit the environment.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: np.asarray(archive[key]) for key in archive.files}
    except Exception as error:  # numpy and zipfile report damage with any type
        raise DataError(f"{path} cannot be read as a NumPy archive of an actor: {error}") from None
    count = sum(f"W{i}" in arrays and f"b{i}" in arrays for i in range(len(arrays)))
    layers = [(arrays.get(f"W{i}"), arrays.get(f"b{i}")) for i in range(count)]
    size = observation_size
    for number, (weight, bias) in enumerate(layers):
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise DataError(
                f"{path}: layer {number} needs W{number} (outputs, inputs) and b{number} (outputs,)"
            )
        if weight.shape[1] != size:
            raise DataError(
                f"{path}: layer {number} takes {weight.shape[1]} numbers but is given {size}; the "
                "actor was made for another environment"
            )
        size = weight.shape[0]
    if not layers or size != len(action_low):
        raise DataError(
            f"{path}: the actor gives {size if layers else 0} action dimensions but the "
            f"environment takes {len(action_low)}"
        )
    squash = _choice(arrays, "squash", ("tanh", "clip", "none"), None, path)
    activation = _choice(arrays, "hidden_activation", ("relu", "tanh"), "relu", path)
    if bool(arrays.get("time_feature", np.array(False)).any()):
        raise DataError(f"{path}: actors that observe the time are not supported")
    mean, scale = arrays.get("obs_mean"), None
    if mean is not None:
        variance = arrays.get("obs_var")
        if (
            variance is None
            or variance.shape != (observation_size,)
            or mean.shape != variance.shape
        ):
            raise DataError(
                f"{path}: 'obs_mean' and 'obs_var' must both have the {observation_size} numbers "
                "of an observation"
            )
        scale = np.sqrt(variance + float(arrays.get("eps", np.array(1e-8))))
    return Actor(
        tuple(np.asarray(w, np.float32) for w, _ in layers),
        tuple(np.asarray(b, np.float32) for _, b in layers),
        activation,
        squash,
        mean,
        scale,
        float(arrays.get("clip_obs", np.array(np.inf))),
        action_low,
        action_high,
    )


def _choice(
    arrays: dict[str, NDArray[Any]],
    key: str,
    choices: tuple[str, ...],
    default: str | None,
    path: Path,
) -> str:
    value = str(arrays[key]) if key in arrays else default
    if value not in choices:
        raise DataError(f"{path}: '{key}' is {value!r}; it must be one of {', '.join(choices)}")
    return value
