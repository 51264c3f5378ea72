"""The world model of a run: its own, a given run's, or a new one."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from worldrl.errors import ConfigError, RunError
from worldrl.models.world import World
from worldrl.rows import unpack
from worldrl.strict_json import finite
from worldrl.training.ensemble import EnsembleStage, holdout_size
from worldrl.training.execution import Execution
from worldrl.training.loop import StoppedEarly, run_stage
from worldrl.training.model_report import choose_test_episodes, measure_world, summary
from worldrl.training.run_directory import RunDirectory
from worldrl.training.stages import flat, join
from worldrl.training.termination import fit_termination
from worldrl.training.world_model import (
    WorldModel,
    check_fits,
    ends_function,
    ensemble_from,
    load_world,
    of_seeds,
    save_world,
    where_episodes_end,
    with_termination,
)

#: Steps from which compiling, tens of seconds with a cold cache, is repaid on a CPU.
STEPS_WORTH_COMPILING = 6_000


def world_of(execution: Execution) -> WorldModel:
    """The run's world model: its own, a given run's, or a new one."""
    run, config = execution.run, execution.config
    if not (run.model / "model.json").exists():
        if config.model.source is not None:
            model = _borrowed(execution, Path(config.model.source))
        else:
            model = _pretrain(execution)
        save_world(run.model, model)
    model = load_world(run.model, execution.device)
    check_fits(model, execution.logged, str(run.model))
    return model


def _borrowed(execution: Execution, source: Path) -> WorldModel:
    with RunDirectory.open(source) as other:
        if not (other.model / "model.json").exists():
            raise RunError(
                f"{source} holds no finished world model. Finish it with `worldrl resume "
                f"{source}`, or train one with `worldrl pretrain ensemble`."
            )
        model = load_world(other.model, execution.device)
    check_fits(model, execution.logged, str(source))
    model = of_seeds(model, execution.seeds, str(source))
    metadata = execution.dataset.metadata
    if model.facts["dataset_sha256"] != metadata.sha256:
        print(
            f"worldrl: warning: the model in {source} was trained on other data than "
            f"{metadata.source}",
            file=sys.stderr,
        )
    return with_termination(model, execution.config.termination, metadata.env_id, execution.logged)


def _pretrain(execution: Execution) -> WorldModel:
    config, logged = execution.config, execution.logged
    env_id = execution.dataset.metadata.env_id
    test = choose_test_episodes(execution.dataset, config.model.test_ratio)
    trainable = logged.next_known & ~torch.from_numpy(test).to(execution.device)[logged.episode]
    rows = trainable.nonzero().squeeze(1)
    if len(rows) < 2:
        raise ConfigError(
            f"{config.dataset.source} has {len(rows)} transition(s) with a known next "
            "observation; a model needs at least 2, and thousands to be of use."
        )
    decision = where_episodes_end(config.termination, env_id, logged, rows)
    per_epoch = max((len(rows) - holdout_size(config.model, len(rows))), 1)
    epochs = config.model.max_epochs or 30  # what early stopping usually takes
    # Of one member: it is compiled where its lone run is.
    calls = per_epoch // config.model.batch_size * epochs
    stage = EnsembleStage(
        config.model,
        execution.groups,
        logged,
        rows,
        execution.compiles("pretrain", calls, STEPS_WORTH_COMPILING),
        config.precision == "bf16",
    )
    execution.restore(stage)
    metrics = run_stage(stage, execution.session)
    stage.check_learned()
    terminator: dict[str, Tensor] = {}
    if decision["kind"] == "learned":
        transitions = unpack(logged.rows[rows], logged.observation_size, logged.action_size)
        stop = execution.session.stop
        learned = fit_termination(
            transitions, logged.episode[rows], execution.seeds, lambda: stop.requested
        )
        if stop.exit_code is not None:  # the model is saved: resuming comes here again
            execution.session.write_status("interrupted", stage)
            raise StoppedEarly(stop.exit_code)
        terminator = learned.parameters
        decision |= finite(learned.holdout._asdict())
    tensors = join([flat(ensemble) for ensemble in stage.ensembles()])
    world = World(ensemble_from(tensors), terminator)
    ends = ends_function(decision, logged.observation_size)
    quality = measure_world(
        world, execution.dataset, logged, test, stage.holdout(), execution.seeds, ends
    )
    facts = {
        "observation_size": logged.observation_size,
        "action_size": logged.action_size,
        "action_low": logged.action_low.tolist(),
        "action_high": logged.action_high.tolist(),
        "env_id": env_id,
        "dataset_sha256": execution.dataset.metadata.sha256,
        "seeds": execution.seeds,
        "shared_model": False,
        "settings": config.model.model_dump(mode="json"),
        "termination": decision,
        "steps": stage.step,
        "metrics": finite(metrics | summary(quality)),
        "quality": quality.to_json(),
    }
    return WorldModel(world, facts)
