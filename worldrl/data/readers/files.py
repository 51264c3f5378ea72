"""What the readers of files share."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolved_env_id(stored: str | None, given: str | None) -> tuple[str | None, tuple[str, ...]]:
    """The environment id and a warning where the user's word replaces the file's."""
    if given is not None and stored is not None and given != stored:
        return given, (
            f"the file says that its environment is {stored}; {given} was given instead",
        )
    return given or stored, ()


def one_line(error: BaseException) -> str:
    """What another library said, fit for one paragraph."""
    # str() of a KeyError is the repr of its message
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(said).split()) or type(error).__name__


def text(value: object) -> str | None:
    """A stored string, whatever type its format gives it; None for anything else."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if isinstance(value, str) else None
