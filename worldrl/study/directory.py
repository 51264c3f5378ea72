"""Where a study is written: numbers, figures and a page."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from worldrl.errors import RunError
from worldrl.report.page import Section, page
from worldrl.training.environment import environment_record
from worldrl.training.files import replace_text, write_json, writing

SCHEMA_VERSION = 1


class Result(NamedTuple):
    """Where a study lies and what it found."""

    path: Path
    record: dict[str, Any]


def new_directory(name: str, out: Path | None) -> Path:
    """A new or empty directory; None makes one under ``runs/``.

    Raises:
        RunError: there is something in it already, or it cannot be made.
    """
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    path = Path("runs") / f"study-{name}-{stamp}" if out is None else out
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} holds something already; name a new or empty directory with --out")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_study(
    path: Path,
    record: Mapping[str, Any],
    title: str,
    sections: Sequence[Section],
    figures: Mapping[str, str],
) -> None:
    """``study.json``, ``index.html`` and one SVG file a figure."""
    environment = environment_record("cpu")
    write_json(
        path / "study.json",
        {"schema_version": SCHEMA_VERSION, **record, "environment": environment},
    )
    for name, text in figures.items():
        with writing(path / name):
            replace_text(path / f"{name}.svg", text)
    with writing(path):
        replace_text(path / "index.html", page(title, sections))
