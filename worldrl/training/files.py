"""Files that are whole or not there: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from worldrl.errors import RunError
from worldrl.strict_json import finite


class DamagedError(RunError):
    """A file of a run is missing or does not hold what it should."""


#: Marks names that are never read and that the next writer may remove.
TEMPORARY = ".tmp-"


def temporary_name(path: Path) -> Path:
    """A hidden sibling of ``path``, so that the final rename stays inside one file system."""
    return path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the bytes of a file survive a power cut."""
    sync_directory(path)


def replace_text(path: Path, text: str) -> None:
    """Replace ``path`` by a file that holds ``text``; at every moment it is the old or the new one.

    Raises:
        OSError: the file cannot be written; the old one is kept.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def replace_link(path: Path, target: str) -> None:
    """Point the relative symbolic link ``path`` at ``target`` in one step."""
    temporary = temporary_name(path)
    with suppress(FileNotFoundError):
        temporary.unlink()
    os.symlink(target, temporary)
    try:
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of the file system into a :class:`RunError` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}{_free(path)}. Nothing that was there "
            "is lost. Free some space or correct the permissions, then go on with "
            "`worldrl resume` on this run."
        ) from error


def free_bytes(path: Path) -> int | None:
    """Bytes that this user may still write where ``path`` is; None where it cannot be asked."""
    for folder in (path, *path.parents):
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def _free(path: Path) -> str:
    free = free_bytes(path.parent)
    return "" if free is None else f" ({size(free)} free on that disk)"


def size(count: int) -> str:
    """A byte count for people: ``12.3 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Replace ``path`` by a record as indented strict JSON; see :func:`finite`.

    Raises:
        RunError: the file cannot be written (full disk, no permission); the old one is kept.
    """
    with writing(path):
        replace_text(path, json.dumps(finite(record), indent=2, allow_nan=False) + "\n")


def read_json(path: Path, schema_version: int) -> dict[str, Any]:
    """Read a record that carries a ``schema_version``.

    Raises:
        DamagedError: the file is missing or damaged.
        RunError: it was written by a newer worldrl.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path} cannot be read: {error}.") from error
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: it is not JSON ({error}).") from error
    found = record.get("schema_version") if isinstance(record, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise DamagedError(f"{path} is damaged: it holds no schema_version.")
    if found > schema_version:
        raise RunError(
            f"{path} was written by a newer worldrl: its schema version is {found} and this one "
            f"reads up to {schema_version}. Upgrade with `pip install --upgrade worldrl`."
        )
    assert isinstance(record, dict)
    return record
