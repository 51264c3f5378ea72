"""What commands print: people read standard error, programs one JSON line on standard output."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def json_only(enabled: bool) -> Iterator[None]:
    """Send everything printed inside to standard error, so that the result stays alone."""
    if not enabled:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object on one line; numbers that JSON lacks become null."""
    print(json.dumps(_plain(result), allow_nan=False), flush=True)


def print_table(rows: Mapping[str, object]) -> None:
    """Print names and values in two columns."""
    width = max((len(name) for name in rows), default=0)
    for name, value in rows.items():
        print(f"{name:<{width}}  {_text(value)}")


def _text(value: object) -> str:
    """A number with six digits; a list, such as one value a member, with commas."""
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """The nearest JSON value; numpy and torch scalars and arrays by their own ``tolist``."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value
