"""The one training loop: advance a stage, log, evaluate, save, and stop when asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from worldrl.config.schema import Config, PretrainConfig
from worldrl.training import checkpoint
from worldrl.training.metrics import MetricsWriter, last_values
from worldrl.training.progress import Progress
from worldrl.training.run_directory import RunDirectory, RunState, Status
from worldrl.training.signals import StopRequests
from worldrl.training.stages import Stage

#: Of every interval, what the progress line shows where a stage reports it.
HEADLINE = (
    *("holdout_mse", "epoch", "discriminator_loss", "episode_return"),
    *("critic_loss", "value_mean", "actor_loss"),
)


class StoppedEarly(Exception):
    """A stop was requested; everything is saved."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


@dataclass
class Session:
    """What one process adds to a run."""

    run: RunDirectory
    config: Config
    metrics: MetricsWriter
    stop: StopRequests
    quiet: bool
    plain: Mapping[str, Any]  # goes into every checkpoint
    seconds_before: float  # spent by earlier processes
    started: float

    @property
    def seconds(self) -> float:
        """Time spent in the run so far."""
        return self.seconds_before + time.monotonic() - self.started

    def write_status(
        self, state: RunState, stage: Stage, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Say how far the run is."""
        total = stage.total
        status = Status(state, stage.name, stage.step, total, self.seconds, metrics or {})
        self.run.write_status(status)


def run_stage(
    stage: Stage, session: Session, evaluate: Callable[[int], Mapping[str, float]] | None = None
) -> dict[str, Any]:
    """Train ``stage`` to its end and return its last metrics.

    Args:
        evaluate: scores the current policies at an update number and records the result; returns
            numbers for the progress line.

    Raises:
        StoppedEarly: SIGTERM or SIGINT came; a checkpoint was written.
    """
    config = session.config
    eval_every = 0 if isinstance(config, PretrainConfig) else config.eval_every
    # Killed after its last checkpoint, a stage has nothing left to do but said what it found.
    last = last_values(session.run.metrics_file, stage.name) if stage.finished else {}
    session.write_status("running", stage)
    unit = "updates" if stage.name == "train" else "steps"
    with Progress(stage.name, stage.total, unit, session.quiet, stage.step) as progress:

        def watched() -> bool:
            progress.update(stage.step)
            return session.stop.requested

        while not stage.finished:
            until = _next_event(stage, config.log_every, config.checkpoint_every, eval_every)
            stage.advance(until, watched)
            step, whole = stage.step, stage.step == until or stage.finished
            if whole and (step % config.log_every == 0 or stage.finished):
                last = stage.report()
                session.metrics.write(stage.name, step, session.seconds, last)
                progress.update(step, headline(last))
            if whole and evaluate and eval_every and (step % eval_every == 0 or stage.finished):
                progress.update(step, evaluate(step))
            if (whole and step % config.checkpoint_every == 0) or stage.finished:
                save(stage, session, last)
            if session.stop.exit_code is not None and not stage.finished:
                save(stage, session, last)
                progress.update(stage.step)
                session.write_status("interrupted", stage, last)
                raise StoppedEarly(session.stop.exit_code)
    return last


def save(stage: Stage, session: Session, metrics: Mapping[str, Any]) -> None:
    """Write a checkpoint of ``stage``; ``metrics`` are its last."""
    snapshot = stage.snapshot()
    plain = {
        **session.plain,
        "stage": stage.name,
        "step": stage.step,
        "seconds": session.seconds,
        "progress": snapshot.plain,
    }
    session.metrics.sync()
    checkpoint.save(
        session.run,
        f"{stage.name}-{stage.step:08d}",
        snapshot.model,
        snapshot.state,
        plain,
        keep=session.config.keep_checkpoints,
    )
    session.write_status("running", stage, metrics)


def headline(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Mean over members of the few numbers that matter; stopped members have none."""
    known = {
        name: [value for value in metrics.get(name) or () if not math.isnan(value)]
        for name in HEADLINE
    }
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def _next_event(stage: Stage, *intervals: int) -> int:
    """The next step at which something besides training happens."""
    following = [(stage.step // every + 1) * every for every in intervals if every]
    if stage.total is not None:
        following.append(stage.total)
    return min(following)
