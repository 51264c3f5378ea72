"""Downloads that survive a broken connection and never leave half a file under the final name."""

from __future__ import annotations

import fcntl
import http.client
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from worldrl.errors import DataError

#: Called with the bytes that are there and the bytes there will be, where the server says.
Report = Callable[[int, int | None], None]

DATA_DIR_VARIABLE = "WORLDRL_DATA_DIR"

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 4  # each continues the one before


def cache_folder() -> Path:
    """Where downloaded datasets are kept: ``$WORLDRL_DATA_DIR``, else a folder in the home."""
    chosen = os.environ.get(DATA_DIR_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache/worldrl/datasets"


def download(url: str, path: Path, report: Report | None = None) -> None:
    """Fetch ``url`` to ``path`` unless it is there; a partial ``PATH.part`` is continued.

    Where the server no longer has the version that was begun, the file is fetched from the start.
    Processes that want the same file wait for the one that fetches it.

    Raises:
        DataError: the address cannot be reached or the transfer keeps breaking; the message names
            the address and where to put a file fetched by hand.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(path.name + ".lock")):
            if not path.exists():
                _fetch(url, path, report)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error}; free space, or choose another folder with the "
            f"environment variable {DATA_DIR_VARIABLE}"
        ) from None


class _Broken(Exception):
    """A transfer that ended early; another attempt may continue it."""


_LOST = (_Broken, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def _fetch(url: str, path: Path, report: Report | None) -> None:
    part = path.with_name(path.name + ".part")
    version = path.with_name(path.name + ".part.version")
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            _transfer(url, part, version, report)
        except urllib.error.HTTPError as error:
            reason = f"the server answered {error.code} {error.reason}"
            if error.code < 500:
                break
        except urllib.error.URLError as error:
            reason = f"the server cannot be reached ({error.reason})"
            if not part.exists():
                break  # do not make an offline user wait
        except _LOST as error:
            reason = str(error) or type(error).__name__
        else:
            os.replace(part, path)
            version.unlink(missing_ok=True)
            return
    kept = f" What arrived is kept in {part} and continued next time." if part.exists() else ""
    raise DataError(
        f"{url} cannot be downloaded: {reason}.{kept} Without a network, fetch that address by "
        f"other means and put the file at {path}"
    )


def _transfer(url: str, part: Path, version: Path, report: Report | None) -> None:
    """Append what is missing to ``part``."""
    have = part.stat().st_size if part.exists() else 0
    known = version.read_text("utf-8") if version.exists() else ""
    if not known:
        have = 0  # without a version to compare with, two halves might not belong together
    request = urllib.request.Request(url, headers={"User-Agent": "worldrl"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return  # every byte had arrived before the rename
            part.unlink()
            raise _Broken("the file changed on the server") from None
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0
        total = _total(response, have)
        tag = response.headers.get("ETag") or ""
        # A weak tag must not be used with If-Range (RFC 9110, 13.1.5).
        if not tag or tag.startswith("W/"):
            tag = response.headers.get("Last-Modified") or ""
        version.write_text(tag, "utf-8")
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            file.truncate()
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                if report is not None:
                    report(have, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and have != total:
        raise _Broken(f"the connection was lost after {have} of {total} bytes")


def _total(response: http.client.HTTPResponse, have: int) -> int | None:
    """The size of the whole file, where the server says it."""
    if have:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            raise _Broken("the server answered with another part than was asked for")
        return int(match[2])
    length = response.headers.get("Content-Length")
    return int(length) if length is not None and length.isdigit() else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the kernel drops it however the process ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
