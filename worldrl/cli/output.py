"""What commands print: people read standard error, programs one JSON line on standard output."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from worldrl.strict_json import finite


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
    print(json.dumps(finite(result), allow_nan=False), flush=True)


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
