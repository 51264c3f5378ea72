"""The world model of a run: its own, a given run's, or a new one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from worldrl.config.schema import FinetuneConfig
from worldrl.config.termination import TerminationSettings
from worldrl.data.dataset import Metadata
from worldrl.errors import RunError
from worldrl.registry import Registry
from worldrl.training.execution import Execution
from worldrl.training.logged import Logged
from worldrl.training.run_directory import RunDirectory
from worldrl.training.world.pretrain_reward import with_reward
from worldrl.training.world.world_model import (
    WorldModel,
    check_fits,
    load_world,
    of_seeds,
    save_world,
    with_termination,
)

#: Learns a model of one kind as the execution's configuration says.
ModelTrainer: TypeAlias = Callable[[Execution], WorldModel]

MODELS: Registry[ModelTrainer] = Registry(
    "model", {"ensemble": "worldrl.training.world.pretrain_ensemble:pretrain_ensemble"}
)


def world_of(execution: Execution) -> WorldModel:
    """The run's world model: its own, a given run's, or a new one; with a dynamics reward where the
    run's imagination asks for one."""
    run, config = execution.run, execution.config
    assert not isinstance(config, FinetuneConfig)  # which has no world
    if not (run.model / "model.json").exists():
        if config.model.source is not None:
            model = _borrowed(execution, Path(config.model.source))
        else:
            model = MODELS[config.model.kind](execution)
            rewards = execution.logged.rewards._asdict()
            model = model._replace(facts={**model.facts, "rewards": rewards})
        save_world(run.model, model)
    model = load_world(run.model, execution.device)
    check_fits(model, execution.logged, str(run.model))
    return with_reward(execution, model)


def _borrowed(execution: Execution, source: Path) -> WorldModel:
    config = execution.config
    assert not isinstance(config, FinetuneConfig)
    model = given_world(source, execution.logged, execution.dataset.metadata, config.termination)
    return of_seeds(model, execution.seeds, str(source))


def given_world(
    source: Path, logged: Logged, metadata: Metadata, termination: TerminationSettings
) -> WorldModel:
    """All worlds of a given run, ending episodes as the settings ask.

    Raises:
        RunError: the run holds no model.
        ModelError: it does not fit the data.
    """
    with RunDirectory.open(source) as other:
        if not (other.model / "model.json").exists():
            raise RunError(
                f"{source} holds no finished world model. Finish it with `worldrl resume "
                f"{source}`, or train one with `worldrl pretrain ensemble`."
            )
        model = load_world(other.model, logged.rows.device)
    check_fits(model, logged, str(source))
    if model.facts["dataset_sha256"] != metadata.sha256:
        print(
            f"worldrl: warning: the model in {source} was trained on other data than "
            f"{metadata.source}",
            file=sys.stderr,
        )
    return with_termination(model, termination, metadata.env_id, logged)
