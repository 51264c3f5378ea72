"""Metrics as JSON lines: always there, appended row by row, repaired after a kill.

A row is ``{"stage", "step", "seconds", <name>: number or list over members, ...}``. A value that
is not finite is stored as null, and its name is listed under ``nonfinite``. The CSV copy and the
TensorBoard events are made from the same rows.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from worldrl.errors import ConfigError
from worldrl.strict_json import finite
from worldrl.training.files import DamagedError, replace_text, writing

if TYPE_CHECKING:
    from lightning.fabric.loggers.tensorboard import TensorBoardLogger

#: In the order in which a run goes through them.
STAGES: Final = ("pretrain", "reward", "reverse", "seeker", "train", "finetune")
RESERVED: Final = ("stage", "step", "seconds", "nonfinite")

Row: TypeAlias = dict[str, Any]


class MetricsWriter:
    """Appends rows to a JSONL file; a context manager.

    Opening a file repairs a last line that a kill cut short. To resume from a checkpoint call
    :func:`truncate_after` first.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None) -> None:
        """
        Args:
            path: the ``.jsonl`` file; rows are appended to those it holds.
            tensorboard: a folder for TensorBoard events, or None. What it held is replaced by
                the rows of ``path``, so that after a resume no step is shown twice.

        Raises:
            ConfigError: TensorBoard is asked for and not installed.
            RunError: the file cannot be opened, or is damaged before its end.
        """
        self.path = path
        self._logger = None if tensorboard is None else _tensorboard(tensorboard)
        rows = read_metrics(path) if path.exists() else []
        if path.exists() and _is_cut_short(path, rows):
            _rewrite(path, rows)
        if self._logger is not None:
            for row in rows:
                _log(self._logger, row)
        with writing(path):
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, stage: str, step: int, seconds: float, values: Mapping[str, Any]) -> None:
        """Append one row, and hand it to the operating system.

        Args:
            values: numbers, or lists, arrays or tensors of them with members first; strings are
                kept as they are.

        Raises:
            RunError: the disk is full.
        """
        if stage not in STAGES:
            raise ValueError(f"unknown stage {stage!r}; known: {STAGES}")
        if clash := [name for name in values if name in RESERVED]:
            raise ValueError(f"reserved names of metrics: {clash}")
        row: Row = {"stage": stage, "step": step, "seconds": round(seconds, 3)}
        plain = {name: _plain(value) for name, value in values.items()}
        row.update({name: finite(value) for name, value in plain.items()})
        if nonfinite := [name for name, value in plain.items() if finite(value) != value]:
            row["nonfinite"] = nonfinite
        with writing(self.path):
            # One write call a row: a kill between rows leaves only whole rows.
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        if self._logger is not None:
            _log(self._logger, row)

    def sync(self) -> None:
        """Make the rows survive a power cut; called with every checkpoint."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and write the CSV copy beside it; a second call does nothing."""
        if self._file.closed:
            return
        with writing(self.path):
            self._file.close()
        write_csv(self.path)
        if self._logger is not None:
            self._logger.finalize("success")

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[Row]:
    """The rows of a JSONL file; a last line that a kill cut short is left out.

    Raises:
        RunError: the file is missing, or damaged before its end.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror}.") from error
    rows = [_parse(line) for line in lines]
    last = max((index for index, row in enumerate(rows) if row is not None), default=-1)
    whole = [row for row in rows[: last + 1] if row is not None]
    if len(whole) != last + 1:
        number = rows.index(None) + 1
        raise DamagedError(
            f"{path} is damaged: line {number} of {len(lines)} is not a row of metrics, and rows "
            "follow it. Remove that line to go on without it."
        )
    return whole


def truncate_after(path: Path, stage: str, step: int) -> None:
    """Drop the rows later than a checkpoint at ``step`` of ``stage``, so that none comes twice.

    Rows of later stages are dropped as well; a file that is not there stays so.

    Raises:
        RunError: the file is damaged before its end, or cannot be written.
    """
    if not path.exists():
        return
    rows = read_metrics(path)
    kept = [row for row in rows if (_order(row["stage"]), row["step"]) <= (_order(stage), step)]
    if len(kept) < len(rows) or _is_cut_short(path, rows):
        _rewrite(path, kept)


def last_values(path: Path, stage: str) -> Row:
    """The metrics in the last row of a stage; empty where it has none.

    Raises:
        RunError: the file is missing, or damaged before its end.
    """
    rows = [row for row in read_metrics(path) if row["stage"] == stage]
    return {name: value for name, value in rows[-1].items() if name not in RESERVED} if rows else {}


def write_csv(path: Path) -> Path:
    """Write the rows of ``metrics.jsonl`` to ``metrics.csv`` beside it.

    A list over members becomes the columns ``name.0``, ``name.1``, ...; null becomes empty.

    Raises:
        RunError: the rows cannot be read or the copy cannot be written.
    """
    rows = [dict(_columns(row)) for row in read_metrics(path)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, names, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    target = path.with_suffix(".csv")
    with writing(target):
        replace_text(target, text.getvalue())
    return target


def _columns(row: Row) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if name == "nonfinite":
            yield name, " ".join(value)
        else:
            yield from _leaves(name, value, ".")


def _leaves(name: str, value: Any, separator: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(f"{name}{separator}{index}", item, separator)
    else:
        yield name, value


def _plain(value: Any) -> Any:
    """Arrays, tensors and tuples as lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("stage"), str):
        return None
    return row if isinstance(row.get("step"), int) else None


def _order(stage: str) -> int:
    """The place of a stage in a run; one that this worldrl does not know comes last."""
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def _is_cut_short(path: Path, rows: list[Row]) -> bool:
    content = path.read_bytes()
    return content.count(b"\n") != len(rows) or (bool(content) and not content.endswith(b"\n"))


def _rewrite(path: Path, rows: list[Row]) -> None:
    with writing(path):
        replace_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def _tensorboard(folder: Path) -> TensorBoardLogger:
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "tensorboard=true needs the package tensorboard, which is not installed. Install it "
            "with `pip install 'worldrl[tensorboard]'`, or leave the setting out: metrics.jsonl "
            "and metrics.csv are written in any case."
        )
    from lightning.fabric.loggers.tensorboard import TensorBoardLogger

    with writing(folder):
        if folder.exists():
            shutil.rmtree(folder)
    return TensorBoardLogger(root_dir=folder.parent, name="", version=folder.name)


def _log(logger: TensorBoardLogger, row: Row) -> None:
    numbers = {
        f"{row['stage']}/{name}": value
        for key, values in row.items()
        if key not in RESERVED
        for name, value in _leaves(key, values, "/")
        if isinstance(value, (int, float))
    }
    logger.log_metrics(numbers, row["step"])
