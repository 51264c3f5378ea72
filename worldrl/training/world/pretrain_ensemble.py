"""Models of kind ``ensemble``: learned, told where episodes end, and measured."""

from __future__ import annotations

import sys

from torch import Tensor

from worldrl.config.schema import FinetuneConfig
from worldrl.errors import ConfigError
from worldrl.models.world import World
from worldrl.strict_json import finite
from worldrl.training.execution import Execution
from worldrl.training.loop import StoppedEarly, run_stage
from worldrl.training.stages import flat, join
from worldrl.training.world.ensemble import EnsembleStage, expected_steps
from worldrl.training.world.model_report import (
    choose_test_episodes,
    measure_world,
    summary,
    trainable_rows,
)
from worldrl.training.world.termination import fit_termination
from worldrl.training.world.world_model import (
    WorldModel,
    ends_function,
    ensemble_from,
    where_episodes_end,
)

#: Steps from which compiling, tens of seconds with a cold cache, is repaid on a CPU.
STEPS_WORTH_COMPILING = 6_000


def pretrain_ensemble(execution: Execution) -> WorldModel:
    """See :data:`worldrl.training.pretrain.MODELS`."""
    config, logged = execution.config, execution.logged
    assert not isinstance(config, FinetuneConfig)
    env_id = execution.dataset.metadata.env_id
    test = choose_test_episodes(execution.dataset, config.model.test_ratio)
    rows = trainable_rows(logged, test)
    if len(rows) < 2:
        raise ConfigError(
            f"{config.dataset.source} has {len(rows)} transition(s) with a known next "
            "observation; a model needs at least 2, and thousands to be of use."
        )
    decision = where_episodes_end(config.termination, env_id, logged, rows)
    # Of one member: it is compiled where its lone run is.
    calls = expected_steps(config.model, len(rows))
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
        stop = execution.session.stop
        _say(execution, "learning where episodes end ...")
        learned = fit_termination(
            logged.at(rows), logged.episode[rows], execution.seeds, lambda: stop.requested
        )
        if stop.exit_code is not None:  # the model is saved: resuming comes here again
            execution.session.write_status("interrupted", stage)
            raise StoppedEarly(stop.exit_code)
        terminator = learned.parameters
        decision |= finite(learned.holdout._asdict())
    tensors = join([flat(ensemble) for ensemble in stage.ensembles()])
    world = World(ensemble_from(tensors), terminator)
    ends = ends_function(decision, logged.observation_size)
    _say(execution, "measuring the model ...")
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


def _say(execution: Execution, what: str) -> None:
    """Work that is neither steps nor updates: it would pass in silence."""
    if not execution.session.quiet:
        print(f"worldrl: {what}", file=sys.stderr)
