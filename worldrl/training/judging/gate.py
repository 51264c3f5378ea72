"""The judge of a run's policies, where the run asks for one: made once and kept with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from worldrl.config.schema import TrainConfig
from worldrl.errors import ModelError
from worldrl.training.checkpoint import load_model
from worldrl.training.execution import Execution
from worldrl.training.judging.acceptance import Gate
from worldrl.training.judging.judge import (
    load_judge,
    make_judge,
    read_values,
    save_judge,
    values_config,
)
from worldrl.training.loop import StoppedEarly
from worldrl.training.run_directory import RunDirectory, Status
from worldrl.training.world.pretrain import given_world
from worldrl.training.world.world_model import load_world

#: ``(folder, settings of the run, quiet)``: trains critics there, or finishes those.
FitValues = Callable[[Path, TrainConfig, bool], None]


def check_judges(config: TrainConfig) -> None:
    """Refuse before any work a given model that cannot judge.

    Raises:
        ModelError: it holds one world.
    """
    if config.acceptance.kind == "none" or config.model.source is None:
        return
    folder = RunDirectory(Path(config.model.source), None).model
    if (folder / "model.json").exists():
        facts = load_model(folder).plain
        if len(facts["seeds"]) < 2 or facts.get("shared_model", False):
            raise ModelError(
                f"{config.model.source} holds one world, and acceptance.kind="
                f"{config.acceptance.kind} needs several: that they differ tells how sure a gain "
                "is. Train them with `worldrl pretrain ensemble population=3`, or set "
                "acceptance=none"
            )


def gate_of(execution: Execution, fit_values: FitValues) -> Gate | None:
    """Judges of a run's policies; None where all pass."""
    config, run = execution.config, execution.run
    assert isinstance(config, TrainConfig)
    settings = config.acceptance
    if settings.kind == "none":
        return None
    folder = run.judge
    if not folder.exists():
        if config.model.source is None:
            model = load_world(run.model, execution.device)
        else:
            source, metadata = Path(config.model.source), execution.dataset.metadata
            model = given_world(source, execution.logged, metadata, config.termination)
        wanted = values_config(settings, config.dataset, model.facts["seeds"], config)
        place = Path(settings.values) if settings.values else run.values
        try:
            fit_values(place, wanted, execution.session.quiet)
        except StoppedEarly:
            seconds = execution.session.seconds
            run.write_status(Status("interrupted", "train", 0, config.num_updates, seconds))
            raise
        save_judge(folder, model, read_values(place, execution.dataset, execution.logged, wanted))
    judge = make_judge(*load_judge(folder, execution.device), settings, execution.logged)
    return Gate(judge, settings.every)
