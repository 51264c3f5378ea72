"""Datasets as files: D4RL's HDF5 layout and NumPy archives.

The same dataset gives the same bytes. ``next_known`` marks the rows whose next observation is not
a true successor, so that reading the file back gives the same episodes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from worldrl.data.dataset import Dataset
from worldrl.errors import DataError


class Extras(NamedTuple):
    """What a file may hold beside a dataset; reading it as one leaves this out."""

    infos: Mapping[str, NDArray[Any]] = {}
    """``(N, ...)`` arrays, one row a transition, under ``infos/``."""
    metadata: Mapping[str, str] = {}
    """Text under ``metadata/``."""


def export(dataset: Dataset, path: Path, extras: Extras | None = None) -> None:
    """Write ``.hdf5``, ``.h5`` or ``.npz``; an existing file is replaced when all is written.

    Raises:
        DataError: the suffix names no format, or the file cannot be written.
    """
    writers: dict[str, Callable[[Dataset, Path, Extras], None]] = {
        ".hdf5": _write_hdf5,
        ".h5": _write_hdf5,
        ".npz": _write_npz,
    }
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise DataError(
            f"{path}: the suffix '{path.suffix}' names no dataset format; use {', '.join(writers)}"
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(dataset, temporary, extras or Extras())
        os.replace(temporary, path)
    # h5py reports a full disk as RuntimeError when it closes the file
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path} cannot be written: {error}; free space or choose another"
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _notes(dataset: Dataset) -> dict[str, str]:
    stated = {
        "env_id": dataset.metadata.env_id,
        "behaviour": dataset.metadata.behaviour,
        "source": Path(dataset.metadata.source).name,
        "source_sha256": dataset.metadata.sha256,
        "written_by": f"worldrl {version('worldrl')}",
    }
    return {key: value for key, value in stated.items() if value is not None}


def _bounds(dataset: Dataset) -> dict[str, NDArray[np.float32]]:
    low, high = dataset.metadata.action_low, dataset.metadata.action_high
    return {} if low is None or high is None else {"action_low": low, "action_high": high}


def _truncated_rows(dataset: Dataset) -> NDArray[np.bool_]:
    flags = np.zeros(dataset.num_transitions, bool)
    flags[dataset.starts + dataset.lengths - 1] = dataset.truncated
    return flags


def _write_hdf5(dataset: Dataset, path: Path, extras: Extras) -> None:
    rows = dataset.transitions()
    arrays: dict[str, NDArray[Any]] = {
        "observations": rows.observation,
        "actions": rows.action,
        "rewards": rows.reward,
        "next_observations": rows.next_observation,
        "terminals": rows.terminated,
        "timeouts": _truncated_rows(dataset),
        "next_known": rows.next_known,
        **{f"infos/{key}": array for key, array in extras.infos.items()},
    }
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            # Images shrink many times over; float32 vectors hardly do.
            compression = "gzip" if array.dtype == np.uint8 else None
            file.create_dataset(key, data=array, compression=compression)
        for key, text in _notes(dataset).items():
            file.attrs.create(key, text.encode(), dtype=_fixed(text))
        for key, text in extras.metadata.items():
            file.create_dataset(f"metadata/{key}", data=text.encode(), dtype=_fixed(text))
        for key, bound in _bounds(dataset).items():
            file.attrs[key] = bound


def _fixed(text: str) -> np.dtype[Any]:
    """Of fixed length: strings of variable length live in a heap that damage makes costly."""
    dtype: np.dtype[Any] = h5py.string_dtype("utf-8", max(len(text.encode()), 1))
    return dtype


def _write_npz(dataset: Dataset, path: Path, extras: Extras) -> None:
    rows = dataset.transitions()
    with path.open("wb") as file:
        np.savez(
            file,
            observations=rows.observation,
            actions=rows.action,
            rewards=rows.reward,
            next_observations=rows.next_observation,
            terminated=rows.terminated,
            truncated=_truncated_rows(dataset),
            next_known=rows.next_known,
            allow_pickle=False,
            **_bounds(dataset),
            **{key: np.array(value) for key, value in _notes(dataset).items()},
            **{f"infos/{key}": array for key, array in extras.infos.items()},
            **{f"metadata/{key}": np.array(value) for key, value in extras.metadata.items()},
        )
