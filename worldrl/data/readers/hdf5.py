"""D4RL's HDF5 layout: flat rows under fixed keys, here with optional metadata.

``observations actions rewards terminals`` are needed; ``timeouts next_observations`` are optional,
and so are ``next_known``, which worldrl's own files add, and ``action_known``. ``env_id``,
``behaviour``, ``action_low`` and ``action_high`` are read from attributes of the root or from the
group ``metadata``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from worldrl.data.dataset import Dataset
from worldrl.data.readers.contents import Contents, dataset_of, label_hint
from worldrl.data.readers.files import file_sha256, one_line, text
from worldrl.data.readers.hdf5_heap import heap_is_endless
from worldrl.data.validation import Names
from worldrl.errors import DataError, suggestion

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations", "next_known", "action_known")
NOTES = ("env_id", "behaviour", "action_low", "action_high")
_RENAMED = {"terminals": "terminated", "timeouts": "truncated"}
_MAX_EXPANSION = 1100  # gzip reaches 1,032; a larger array than that is damage, not data
_ALWAYS_ALLOWED = 1 << 26  # bytes of an array that was declared and never written (all zeros)


def read(location: str, *, env_id: str | None, max_episode_steps: int | None) -> Dataset:
    """Read one HDF5 file.

    Raises:
        DataError: not a file, not HDF5, truncated, a key is missing or links elsewhere, or the
            rows are not a dataset.
    """
    return dataset_of(contents(location), env_id, max_episode_steps)


def contents(location: str, needs_actions: bool = True) -> Contents:
    """The arrays and notes of one HDF5 file, as they are.

    Raises:
        DataError: not a file, not HDF5, truncated, or a key is missing or links elsewhere.
    """
    path = Path(location)
    if path.is_dir():
        raise DataError(f"{location} is a directory; give the path of one HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            stated = set(file.keys())  # with links that lead nowhere
            needed = [k for k in REQUIRED if needs_actions or k != "actions" or k in stated]
            arrays = {key: _array(file, key, location) for key in needed}
            arrays |= {key: _array(file, key, location) for key in OPTIONAL if key in file}
            if heap_is_endless(path):
                raise DataError(
                    f"{location}: the block that holds its strings is damaged; fetch or make it "
                    "again"
                )
            stored = {key: _note(file, key) for key in NOTES}
        sha256 = file_sha256(path)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{location} does not exist") from None
    except Exception as error:  # h5py reports damage with any type, depending on where it is
        raise DataError(
            f"{location} cannot be read as HDF5: {one_line(error)}; the file may be cut short, "
            "damaged or of another format; fetch or make it again"
        ) from None
    return Contents(
        {_RENAMED.get(key, key): array for key, array in arrays.items()},
        Names(location, terminated="terminals", truncated="timeouts"),
        sha256,
        text(stored["env_id"]),
        text(stored["behaviour"]),
        stored["action_low"],
        stored["action_high"],
    )


def _array(file: h5py.File, key: str, location: str) -> NDArray[Any]:
    if key not in file:
        # `in` is False for a link that leads nowhere, which deserves its own words.
        link = file.get(key, getlink=True) if key in list(file.keys()) else None
        if link is None:
            raise DataError(
                f"{location} has no key '{key}'{suggestion(key, file.keys())}; a dataset needs "
                f"{', '.join(REQUIRED)}, and may have {', '.join(OPTIONAL)}{label_hint(key)}"
            )
    if isinstance(file.get(key, getlink=True), h5py.ExternalLink | h5py.SoftLink):
        raise DataError(
            f"{location}: '{key}' is a link to another place; links are not followed, because a "
            "dataset file must not reach into other files; copy the data into the file"
        )
    item = file[key]
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        raise DataError(f"{location}: '{key}' is not an array")
    if item.external or item.is_virtual:
        raise DataError(
            f"{location}: the values of '{key}' are stored in another file; such data is not read, "
            "because a dataset file must not reach into other files; copy the data into the file"
        )
    if item.dtype.kind not in "biuf":
        raise DataError(
            f"{location}: '{key}' holds values of type {item.dtype}; it must hold numbers"
        )
    stored = item.id.get_storage_size()
    if item.nbytes > _MAX_EXPANSION * stored + _ALWAYS_ALLOWED:
        raise DataError(
            f"{location}: '{key}' claims {item.nbytes} bytes but the file holds {stored} for it; "
            "the file is damaged; fetch or make it again"
        )
    values: NDArray[Any] = np.asarray(item[()])
    return values


def _note(file: h5py.File, key: str) -> Any:
    """An attribute of the root, else a dataset of the group ``metadata``, else None."""
    if key in file.attrs:
        return file.attrs[key]
    if not isinstance(file.get("metadata", getlink=True), h5py.HardLink):
        return None
    group = file["metadata"]
    if not isinstance(group, h5py.Group):
        return None
    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
        return None
    item = group[key]
    if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual or item.size is None:
        return None
    return item[()] if item.size <= 1 << 16 else None
