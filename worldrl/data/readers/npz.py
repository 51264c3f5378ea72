"""NumPy archives: the arrays of :meth:`worldrl.data.Dataset.from_arrays` under its names.

``terminals`` and ``timeouts`` are understood too. Nothing in the archive is unpickled.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldrl.data.dataset import Dataset
from worldrl.data.readers.contents import Contents, dataset_of, label_hint
from worldrl.data.readers.files import file_sha256, one_line, text
from worldrl.data.validation import Names
from worldrl.errors import DataError, suggestion

REQUIRED = ("observations", "actions", "rewards", "terminated")
OPTIONAL = ("truncated", "next_observations", "next_known", "action_known")
NOTES = ("env_id", "behaviour", "action_low", "action_high")
ALIASES = {"terminated": "terminals", "truncated": "timeouts"}


def read(location: str, *, env_id: str | None, max_episode_steps: int | None) -> Dataset:
    """Read one ``.npz`` file.

    Raises:
        DataError: not a NumPy archive, damaged, a key is missing, or the rows are not a dataset.
    """
    return dataset_of(contents(location), env_id, max_episode_steps)


def contents(location: str, needs_actions: bool = True) -> Contents:
    """The arrays and notes of one ``.npz`` file, as they are.

    Raises:
        DataError: not a NumPy archive, damaged, or a key is missing.
    """
    path = Path(location)
    arrays, keys = _arrays(path, location)
    for name in REQUIRED:
        if name not in arrays and (needs_actions or name != "actions"):
            raise DataError(
                f"{location} has no key '{name}'{suggestion(name, keys)}; a dataset needs "
                f"{', '.join(REQUIRED)}, and may have {', '.join(OPTIONAL + NOTES)}"
                f"{label_hint(name)}"
            )
    return Contents(
        {name: array for name, array in arrays.items() if name not in NOTES},
        Names(location),
        file_sha256(path),
        _string(arrays, "env_id"),
        _string(arrays, "behaviour"),
        arrays.get("action_low"),
        arrays.get("action_high"),
    )


def _arrays(path: Path, location: str) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """The arrays that have a meaning here, and every key there is."""
    if path.is_dir():
        raise DataError(f"{location} is a directory; give the path of one .npz file")
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{location} is not a NumPy archive; the file may be cut short or of another format; "
            "write it with numpy.savez"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = list(archive.files)
            found = {}
            for name in (*REQUIRED, *OPTIONAL, *NOTES):
                key = name if name in keys else ALIASES.get(name, name)
                if key in keys:
                    found[name] = np.asarray(archive[key])
            return found, keys
    except Exception as error:  # numpy and zipfile report damage with any type
        raise DataError(
            f"{location} cannot be read as a NumPy archive: {one_line(error)}; the file may be "
            "damaged, or hold Python objects, which are refused; write it again with numpy.savez"
        ) from None


def _string(arrays: dict[str, NDArray[Any]], key: str) -> str | None:
    return text(arrays[key].item()) if key in arrays and arrays[key].shape == () else None
