"""Published actors as plain arrays: multilayer perceptrons in a ``.npz`` file, run with NumPy.

Keys: ``W0 b0 W1 b1 ...`` (``W`` is ``(outputs, inputs)``); ``squash``: ``tanh`` (the output is in
[-1, 1] and is scaled to the bounds), ``clip`` (environment units, clipped) or ``none`` (as is);
``hidden_activation``: ``relu`` or ``tanh``; optionally ``obs_mean obs_var eps clip_obs``, which
normalise the observation; and the logarithm of the Gaussian's deviation before squashing, either
``log_std`` ``(A,)`` or a layer ``log_std_W log_std_b`` on the last hidden layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldrl.data.actions import from_unit
from worldrl.errors import DataError

_LOG_STD_RANGE = (-20.0, 2.0)  # of a layer's output, as in SAC (Haarnoja et al. 2018)


@dataclass(frozen=True)
class Actor:
    """A policy in environment units; it acts by its mean where ``generator`` is None."""

    weights: tuple[NDArray[np.float32], ...]  # (outputs, inputs) a layer
    biases: tuple[NDArray[np.float32], ...]  # (outputs,)
    hidden_activation: str
    squash: str
    mean: NDArray[np.float64] | None  # (S,)
    scale: NDArray[np.float64] | None  # (S,)
    clip: float
    action_low: NDArray[np.float32]  # (A,)
    action_high: NDArray[np.float32]  # (A,)
    log_std: NDArray[np.float32] | None = None  # (A,)
    log_std_weight: NDArray[np.float32] | None = None  # (A, hidden)
    generator: np.random.Generator | None = None

    def act(self, observations: NDArray[Any]) -> NDArray[np.float32]:
        """``(B, S) -> (B, A)``."""
        hidden: NDArray[Any] = observations
        if self.mean is not None and self.scale is not None:
            hidden = np.clip((hidden - self.mean) / self.scale, -self.clip, self.clip)
        hidden = hidden.astype(np.float32)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = hidden @ weight.T + bias
            relu = self.hidden_activation == "relu"
            hidden = np.maximum(hidden, 0) if relu else np.tanh(hidden)
        action = hidden @ self.weights[-1].T + self.biases[-1]
        if self.generator is not None and self.log_std is not None:
            log_std = self.log_std
            if self.log_std_weight is not None:
                log_std = np.clip(hidden @ self.log_std_weight.T + log_std, *_LOG_STD_RANGE)
            action = action + np.exp(log_std) * self.generator.standard_normal(action.shape)
        if self.squash == "tanh":
            action = from_unit(np.tanh(action), self.action_low, self.action_high)
        elif self.squash == "clip":
            action = np.clip(action, self.action_low, self.action_high)
        return np.asarray(action, np.float32)


def load_actor(
    path: Path,
    observation_size: int,
    action_low: NDArray[np.float32],
    action_high: NDArray[np.float32],
    *,
    seed: int | None = None,
) -> Actor:
    """Read an actor for an environment.

    Args:
        observation_size: S of the environment.
        action_low, action_high: ``(A,)`` its action bounds.
        seed: samples actions from the actor's Gaussian; None takes its mean.

    Raises:
        DataError: the file cannot be read, is no actor, does not fit the environment, or holds no
            deviation to sample with.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: np.asarray(archive[key]) for key in archive.files}
    except Exception as error:  # numpy and zipfile report damage with any type
        raise DataError(f"{path} cannot be read as a NumPy archive of an actor: {error}") from None
    count = 0
    while f"W{count}" in arrays and f"b{count}" in arrays:
        count += 1
    layers = [(arrays[f"W{i}"], arrays[f"b{i}"]) for i in range(count)]
    size = observation_size
    for number, (weight, bias) in enumerate(layers):
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
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
    log_std, log_std_weight = _deviation(arrays, len(action_low), layers[-1][0].shape[1])
    if seed is not None and log_std is None:
        raise DataError(
            f"{path}: the actor cannot be sampled: it holds neither 'log_std' ({len(action_low)},) "
            "nor 'log_std_W' and 'log_std_b'; let it act by its mean"
        )
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
        log_std,
        log_std_weight,
        None if seed is None else np.random.default_rng(seed),
    )


def _deviation(
    arrays: dict[str, NDArray[Any]], actions: int, hidden: int
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Bias and weight of the log deviation; other forms (such as gSDE's) count as none."""
    weight, bias = arrays.get("log_std_W"), arrays.get("log_std_b", arrays.get("log_std"))
    if bias is None or bias.shape != (actions,):
        return None, None
    if weight is None:
        return np.asarray(bias, np.float32), None
    if weight.shape != (actions, hidden):
        return None, None
    return np.asarray(bias, np.float32), np.asarray(weight, np.float32)


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
