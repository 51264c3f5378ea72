"""The run directory: everything that resume, evaluate, report and sweep need, and nothing else.

::

    runs/<name>/  config.yaml  environment.json  dataset.json  status.json
                  metrics.jsonl  metrics.csv  eval.jsonl
                  model/  reward/  checkpoints/<name>/  checkpoints/last -> <name>

Nothing here imports torch.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from worldrl.errors import RunError
from worldrl.training.files import DamagedError, read_json, replace_text, write_json, writing
from worldrl.training.lock import LOCK_NAME, Lock

if TYPE_CHECKING:
    from worldrl.config.schema import Config

SCHEMA_VERSION = 1

RunState = Literal["running", "finished", "stopped_by_guard", "interrupted", "failed"]
DONE: Final = ("finished", "stopped_by_guard")
"""States of a run that has nothing left to do."""


@dataclass(frozen=True)
class Status:
    """How far a run is. A run that is ``running`` but not locked was killed."""

    state: RunState
    stage: str
    step: int
    total: int | None
    """Steps that the stage will take; None where early stopping decides."""
    seconds: float
    """Time spent in this run so far, over all its processes."""
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetRecord:
    """Which data a run learned from; the data itself is not copied."""

    source: str
    sha256: str
    measures: Mapping[str, Any] = field(default_factory=dict)


class RunDirectory:
    """A run on disk. Made by :meth:`create` and :meth:`open`; a context manager that unlocks."""

    def __init__(self, path: Path, lock: Lock | None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, path: str | Path | None, config: Config) -> RunDirectory:
        """Make a new run, lock it, and write its ``config.yaml``.

        Args:
            path: a new or empty directory; None names one under ``runs/``.

        Raises:
            RunError: the directory holds something already, is locked, or cannot be written.
        """
        from worldrl.config.loader import dump_config

        text = dump_config(config)
        target = Path("runs") / run_name(config) if path is None else Path(path)
        _refuse_occupied(target)
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
        lock = Lock.acquire(target)
        try:
            _refuse_occupied(target)  # again: another process may have been first
            run = cls(target, lock)
            with writing(run.config_file):
                replace_text(run.config_file, text)
            with writing(run.checkpoints):
                run.checkpoints.mkdir()
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def open(cls, path: str | Path, *, exclusive: bool = False) -> RunDirectory:
        """Open an existing run.

        Args:
            exclusive: lock it, to write; reading (evaluate, report) needs no lock.

        Raises:
            RunError: there is no run, it is of a newer schema, or it is in use.
        """
        target = Path(path)
        if not target.exists():
            raise RunError(f"there is no run directory at {target}.")
        if not target.is_dir():
            raise RunError(f"{target} is a file; a run is the directory that holds config.yaml.")
        if not (target / "config.yaml").is_file():
            raise RunError(
                f"{target} is not a run directory: it holds no config.yaml. Give the directory "
                "that `worldrl train` or `worldrl pretrain` printed as its run."
            )
        lock = Lock.acquire(target) if exclusive else None
        run = cls(target, lock)
        try:
            if run.status_file.exists():
                run.read_status()  # refuses a newer schema before anything is touched
            if exclusive:
                with writing(run.checkpoints):
                    run.checkpoints.mkdir(exist_ok=True)
        except BaseException:
            run.close()
            raise
        return run

    def remove(self) -> None:
        """Take a new run off the disk; :meth:`create` had found its directory empty."""
        shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Unlock; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment_file(self) -> Path:
        return self.path / "environment.json"

    @property
    def dataset_file(self) -> Path:
        return self.path / "dataset.json"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def eval_file(self) -> Path:
        return self.path / "eval.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The world model that this run trained (``model.safetensors`` and ``model.json``)."""
        return self.path / "model"

    @property
    def reward(self) -> Path:
        """The dynamics reward of that world, where a filter asked for one; the same two files."""
        return self.path / "reward"

    @property
    def encoder(self) -> Path:
        """What a learner's encoder asks beside the world."""
        return self.path / "encoder"

    @property
    def judge(self) -> Path:
        """The worlds and critics that judge the run's policies, where acceptance asks."""
        return self.path / "judge"

    def read_config(self) -> Config:
        """The settings of the run.

        Raises:
            ConfigError: ``config.yaml`` was changed to something that is not a configuration.
        """
        from worldrl.config.loader import load_saved

        return load_saved(str(self.config_file))

    def write_environment(self, record: Mapping[str, Any]) -> None:
        """Write what :func:`worldrl.training.environment.environment_record` returned."""
        write_json(self.environment_file, {"schema_version": SCHEMA_VERSION, **record})

    def read_environment(self) -> dict[str, Any]:
        return read_json(self.environment_file, SCHEMA_VERSION)

    def write_dataset(self, record: DatasetRecord) -> None:
        write_json(self.dataset_file, {"schema_version": SCHEMA_VERSION, **asdict(record)})

    def read_dataset(self) -> DatasetRecord:
        """Raises RunError where the record is missing, damaged or newer."""
        record = read_json(self.dataset_file, SCHEMA_VERSION)
        try:
            return DatasetRecord(record["source"], record["sha256"], record["measures"])
        except KeyError as error:
            raise DamagedError(f"{self.dataset_file} is damaged: it holds no {error}.") from error

    def write_status(self, status: Status) -> None:
        """Replace ``status.json`` in one step."""
        updated = datetime.now().astimezone().isoformat(timespec="seconds")
        record = {"schema_version": SCHEMA_VERSION, **asdict(status), "updated": updated}
        write_json(self.status_file, record)

    def read_status(self) -> Status:
        """Raises RunError where the record is missing, damaged or newer."""
        record = read_json(self.status_file, SCHEMA_VERSION)
        names = ("state", "stage", "step", "total", "seconds", "metrics")
        try:
            status = Status(*(record[name] for name in names))
        except KeyError as error:
            raise DamagedError(f"{self.status_file} is damaged: it holds no {error}.") from error
        if status.state not in get_args(RunState):
            raise DamagedError(f"{self.status_file} is damaged: unknown state '{status.state}'.")
        return status


def run_name(config: Config) -> str:
    """``<recipe>-<dataset>-<timestamp>-<short id>``; the id keeps parallel starts apart."""
    recipe = _plain_name(config.recipe) or config.stage
    dataset = _plain_name(config.dataset.source) or "data"
    return f"{recipe}-{dataset}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _plain_name(source: str) -> str:
    """``d4rl:hopper-medium-v2`` and ``/some/where/hopper.hdf5`` as parts of a folder name."""
    scheme, _, rest = source.rpartition(":")
    name = rest.replace("/", "-") if scheme else Path(source).name
    name = re.sub(r"\.(hdf5|h5|npz|yaml|yml)$", "", name)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:60]


def _refuse_occupied(path: Path) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir():
        raise RunError(f"{path} exists and is not a directory; choose another --out.")
    if any(entry.name != LOCK_NAME for entry in path.iterdir()):
        raise RunError(
            f"{path} already holds files, and a new run needs a new or empty directory. To go on "
            f"with the run in it: `worldrl resume {path}`. To start another: choose another --out."
        )
