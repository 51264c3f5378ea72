"""One process at a time in a run directory."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import warnings
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from worldrl.errors import RunError

LOCK_NAME = ".lock"

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_held: set[int] = set()


def _forget_in_child() -> None:
    # A forked worker that outlives its killed parent would otherwise go on holding the lock.
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)


class Lock:
    """An exclusive lock on a directory, held until :meth:`release` or the end of the process.

    The kernel drops it however the process ends, so no stale lock is left to clear by hand.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        _held.add(descriptor)

    @classmethod
    def acquire(cls, directory: Path) -> Lock:
        """Lock ``directory``.

        Raises:
            RunError: another process (or another part of this one) holds it, or the lock file
                cannot be made.
        """
        path = directory / LOCK_NAME
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunError(f"cannot lock {directory}: {error.strerror}: {path.name}.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(path)
            if error.errno in _UNSUPPORTED:
                warnings.warn(
                    f"the file system of {directory} has no locks ({error.strerror}); make sure "
                    "yourself that only one process uses this run",
                    stacklevel=2,
                )
                return cls(descriptor)
            os.close(descriptor)
            raise RunError(
                f"{directory} is in use by another process{holder}. Wait until it ends or stop "
                "it; two processes must not write one run."
            ) from error
        record = {"pid": os.getpid(), "since": datetime.now().isoformat(" ", "seconds")}
        with suppress(OSError):  # the record only helps people; the lock is held without it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, (json.dumps(record) + "\n").encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Let others in; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None and descriptor in _held:
            _held.discard(descriptor)
            os.close(descriptor)


def _holder(path: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(path.read_text(encoding="utf-8"))
        return f" (pid {record['pid']} since {record['since']})"
    return ""
