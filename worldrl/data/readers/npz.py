"""NumPy archives: the arrays of :meth:`worldrl.data.Dataset.from_arrays` under its names.

``terminals`` and ``timeouts`` are understood too. Nothing in the archive is unpickled.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldrl.data.dataset import Dataset, Metadata
from worldrl.data.episodes import assemble
from worldrl.data.readers.files import file_sha256, one_line, resolved_env_id, text
from worldrl.data.validation import Names, checked_rows
from worldrl.errors import DataError, suggestion

REQUIRED = ("observations", "actions", "rewards", "terminated")
OPTIONAL = ("truncated", "next_observations", "next_known")
NOTES = ("env_id", "behaviour", "action_low", "action_high")
ALIASES = {"terminated": "terminals", "truncated": "timeouts"}


def read(location: str, *, env_id: str | None, max_episode_steps: int | None) -> Dataset:
    """Read one ``.npz`` file.

    Raises:
        DataError: not a NumPy archive, damaged, a key is missing, or the rows are not a dataset.
    """
    path = Path(location)
    arrays, keys = _arrays(path, location)
    for name in REQUIRED:
        if name not in arrays:
            raise DataError(
                f"{location} has no key '{name}'{suggestion(name, keys)}; a dataset needs "
                f"{', '.join(REQUIRED)}, and may have {', '.join(OPTIONAL + NOTES)}"
            )
    rows = checked_rows(
        arrays["observations"],
        arrays["actions"],
        arrays["rewards"],
        arrays["terminated"],
        arrays.get("truncated"),
        arrays.get("next_observations"),
        Names(location),
        arrays.get("next_known"),
    )
    environment, warnings = resolved_env_id(_string(arrays, "env_id"), env_id)
    metadata = Metadata(
        location,
        file_sha256(path),
        environment,
        behaviour=_string(arrays, "behaviour"),
        warnings=warnings,
    )
    return assemble(
        rows,
        metadata,
        bounds=(arrays.get("action_low"), arrays.get("action_high")),
        max_episode_steps=max_episode_steps,
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
