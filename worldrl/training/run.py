"""From a configuration to a finished run, and from a stopped run to a finished one."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worldrl.config.schema import Config, FinetuneConfig, TrainConfig
from worldrl.errors import RunError, WorldRLError
from worldrl.training import checkpoint
from worldrl.training.environment import settings_restored
from worldrl.training.execution import Execution
from worldrl.training.loop import Session, StoppedEarly
from worldrl.training.metrics import MetricsWriter, truncate_after
from worldrl.training.plan import plan_of
from worldrl.training.run_directory import DONE, RunDirectory, Status
from worldrl.training.signals import StopRequests
from worldrl.training.systems import Systems


@dataclass(frozen=True)
class RunResult:
    """What ``pretrain``, ``train`` and ``resume`` return."""

    run: Path
    steps: int
    seconds: float
    metrics: dict[str, Any]
    status: str
    exit_code: int


def start(
    config: Config,
    out: Path | None = None,
    quiet: bool = False,
    systems: Systems | None = None,
) -> RunResult:
    """Run ``config`` in a new run directory.

    Args:
        out: a new or empty directory; None makes one under ``runs/``.
        quiet: no progress lines.
        systems: what the run may build; without it no environment ever is.

    Raises:
        WorldRLError: something is wrong with the settings, the data, the model or the directory.
    """
    config = _with_whole_paths(config)
    with RunDirectory.create(out, config) as run, settings_restored():
        try:
            return _execute(run, config, quiet, systems, None)
        except WorldRLError:
            if not run.status_file.exists():  # no stage began: the name is free for another try
                run.remove()
            raise


def resume(
    path: Path,
    quiet: bool = False,
    systems: Systems | None = None,
) -> RunResult:
    """Continue a stopped or killed run exactly; a finished one is left as it is.

    Raises:
        WorldRLError: there is no run, it is in use, or its data or machine changed.
    """
    with RunDirectory.open(path, exclusive=True) as run, settings_restored():
        if run.status_file.exists():
            status = run.read_status()
            if status.state in DONE:
                print(f"worldrl: nothing to resume: {path} is {status.state}", file=sys.stderr)
                return RunResult(
                    path, status.step, status.seconds, dict(status.metrics), status.state, 0
                )
        config = run.read_config()
        source = Path(config.dataset.source)
        if source.is_absolute() and not source.exists():
            raise RunError(
                f"the data of {path} is gone: {source} does not exist. Put it back, or write where "
                f"it is now as dataset.source into {run.path / 'config.yaml'}; that it is the same "
                "data is checked"
            )
        last = checkpoint.last_checkpoint(run)
        saved = None if last is None else checkpoint.load(last)
        return _execute(run, config, quiet, systems, saved)


def _execute(
    run: RunDirectory,
    config: Config,
    quiet: bool,
    systems: Systems | None,
    saved: checkpoint.Checkpoint | None,
) -> RunResult:
    """Every stage that is not done yet; what can be refused without work is refused first."""
    execution = Execution(run, config, saved)
    plan = plan_of(execution, systems, fit_values)
    execution.launch()
    nothing: dict[str, Any] = {"stage": "pretrain", "step": -1, "seconds": 0.0}
    before = nothing if saved is None else saved.plain
    for file in run.metrics_file, run.eval_file:
        truncate_after(file, before["stage"], before["step"])
    tensorboard = run.path / "tensorboard" if config.tensorboard else None
    with StopRequests() as stop, MetricsWriter(run.metrics_file, tensorboard) as metrics:
        execution.session = Session(
            run, config, metrics, stop, quiet, {}, float(before["seconds"]), time.monotonic()
        )
        try:
            found = plan()
            seconds = execution.session.seconds
            run.write_status(
                Status(found.state, found.stage, found.step, found.total, seconds, found.metrics)
            )
            return RunResult(run.path, found.step, seconds, found.metrics, found.state, 0)
        except WorldRLError:
            if run.status_file.exists():
                run.write_status(replace(run.read_status(), state="failed"))
            raise
        except StoppedEarly as early:
            status = run.read_status()
            return RunResult(
                run.path,
                status.step,
                status.seconds,
                dict(status.metrics),
                "interrupted",
                early.exit_code,
            )


def fit_values(path: Path, config: TrainConfig, quiet: bool = False) -> None:
    """Train critics to judge by at ``path``, or finish those; what is finished stays, and so does a
    run of another learner.

    Raises:
        StoppedEarly: SIGTERM or SIGINT came.
    """
    if (path / "config.yaml").exists():
        with RunDirectory.open(path) as known:
            found = known.read_config()
            of_values = isinstance(found, TrainConfig) and found.learner.kind == "iql"
            done = known.status_file.exists() and known.read_status().state in DONE
        if done or not of_values:
            return
        result = resume(path, quiet)
    else:
        if not quiet:
            print(
                f"worldrl: fitting the values that judge policies, in {path} ...", file=sys.stderr
            )
        result = start(config, path, quiet)
    if result.exit_code:
        raise StoppedEarly(result.exit_code)


def _with_whole_paths(config: Config) -> Config:
    """Local sources as absolute paths, so that a run can be resumed from any folder."""
    if isinstance(config, FinetuneConfig) and config.run is not None:
        config = config.model_copy(update={"run": str(Path(config.run).resolve())})
    for group in "dataset", "model":
        settings = getattr(config, group, None)  # fine-tuning has no model
        if settings is not None and settings.source is not None and Path(settings.source).exists():
            whole = settings.model_copy(update={"source": str(Path(settings.source).resolve())})
            config = config.model_copy(update={group: whole})
    if isinstance(config, TrainConfig) and config.acceptance.kind == "ope":
        values = config.acceptance.values
        if values is not None:
            known = config.acceptance.model_copy(update={"values": str(Path(values).resolve())})
            config = config.model_copy(update={"acceptance": known})
    return config
