"""Readers of dataset formats, one file each, imported only when a source asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from worldrl.data.dataset import Dataset
from worldrl.errors import DataError, suggestion
from worldrl.registry import Registry


class Reader(Protocol):
    """Reads one location of its format."""

    def __call__(
        self, location: str, *, env_id: str | None, max_episode_steps: int | None
    ) -> Dataset:
        """The dataset at ``location``; raises DataError where there is none."""
        ...


READERS: Registry[Reader] = Registry(
    "dataset reader",
    {
        "hdf5": "worldrl.data.readers.hdf5:read",
        "npz": "worldrl.data.readers.npz:read",
        "d4rl": "worldrl.data.readers.d4rl:read",
        "minari": "worldrl.data.readers.minari:read",
    },
)

SCHEMES = ("d4rl", "minari")
SUFFIXES = {".hdf5": "hdf5", ".h5": "hdf5", ".npz": "npz"}


def find_reader(source: str) -> tuple[Reader, str]:
    """The reader for a source and what is left of the source for it.

    Raises:
        DataError: neither a known scheme nor a file with a known suffix.
    """
    scheme, colon, rest = source.partition(":")
    if colon and scheme in SCHEMES:
        return READERS[scheme], rest
    path = Path(source).expanduser()
    if colon and len(scheme) > 1 and not path.exists() and scheme.isalnum():
        raise DataError(
            f"{source}: unknown kind of dataset '{scheme}:'{suggestion(scheme, SCHEMES)}; known: "
            f"{', '.join(f'{s}:' for s in SCHEMES)} and paths that end in {', '.join(SUFFIXES)}"
        )
    if path.is_dir():
        raise DataError(
            f"{source} is a directory; give the path of one file that ends in "
            f"{', '.join(SUFFIXES)}, or minari:ID for a Minari dataset"
        )
    if not path.exists():
        raise DataError(
            f"{source} does not exist; give a path that ends in {', '.join(SUFFIXES)}, d4rl:NAME "
            "or minari:ID"
        )
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            f"{source}: the suffix '{path.suffix}' names no dataset format; known: "
            f"{', '.join(SUFFIXES)}"
        )
    return READERS[kind], str(path)
