"""The dynamics reward of a run's world: its own, that of the given model's run, or a new one."""

from __future__ import annotations

import sys
from pathlib import Path

from worldrl.config.filters import DynamicsRewardSettings
from worldrl.config.model import EnsembleSettings
from worldrl.config.schema import TrainConfig
from worldrl.errors import ConfigError
from worldrl.strict_json import finite
from worldrl.training.checkpoint import SavedModel, load_model, save_model
from worldrl.training.execution import Execution
from worldrl.training.loop import run_stage
from worldrl.training.run_directory import RunDirectory
from worldrl.training.stages import flat, join
from worldrl.training.world.dynamics_reward import DynamicsRewardStage
from worldrl.training.world.model_report import choose_test_episodes, trainable_rows
from worldrl.training.world.world_model import WorldModel, places, reward_from

#: Updates from which compiling, tens of seconds with a cold cache, is repaid on a CPU.
UPDATES_WORTH_COMPILING = 15_000


def with_reward(execution: Execution, model: WorldModel) -> WorldModel:
    """The world with a dynamics reward, where the run's imagination filters by one."""
    config, run = execution.config, execution.run
    if not isinstance(config, TrainConfig) or config.imagination.kind != "branched":
        return model
    chosen = config.imagination.filter
    if chosen.kind == "none":
        return model
    settings = chosen.reward
    if not (run.reward / "model.json").exists():
        found = _given(execution, config.model) or _learned(execution, config.model, settings)
        save_model(run.reward, *found)
    reward = reward_from(load_model(run.reward, execution.device).tensors)
    return model._replace(world=model.world._replace(reward=reward))


def _given(execution: Execution, model: EnsembleSettings) -> SavedModel | None:
    """That of the given model's run, cut to this run's seeds; None where there is none."""
    source = model.source
    if source is None:
        return None
    folder = RunDirectory(Path(source), None).reward
    if not (folder / "model.json").exists():
        return None
    saved = load_model(folder, execution.device)
    chosen = places(saved.plain["seeds"], execution.seeds, source)
    if saved.plain["dataset_sha256"] != execution.dataset.metadata.sha256:
        print(
            f"worldrl: warning: the dynamics reward in {source} was learned from other data than "
            f"{execution.dataset.metadata.source}",
            file=sys.stderr,
        )
    tensors = {name: value[chosen] for name, value in saved.tensors.items()}
    return SavedModel(tensors, {**saved.plain, "seeds": execution.seeds})


def _learned(
    execution: Execution, model: EnsembleSettings, settings: DynamicsRewardSettings
) -> SavedModel:
    config, logged = execution.config, execution.logged
    test = choose_test_episodes(execution.dataset, model.test_ratio)
    rows = trainable_rows(logged, test)
    if len(rows) == 0:
        raise ConfigError(
            f"{config.dataset.source} has no transition with a known next observation, so there is "
            "no dynamics reward to learn. Set imagination.filter.kind=none"
        )
    stage = DynamicsRewardStage(
        settings,
        execution.groups,
        logged,
        rows,
        # Of one member: it is compiled where its lone run is.
        execution.compiles("reward", settings.num_updates, UPDATES_WORTH_COMPILING),
        config.precision == "bf16",
    )
    execution.restore(stage)
    metrics = run_stage(stage, execution.session)
    stage.check_learned()
    facts = {
        "dataset_sha256": execution.dataset.metadata.sha256,
        "seeds": execution.seeds,
        "settings": settings.model_dump(mode="json"),
        "steps": stage.step,
        "metrics": finite(metrics),
    }
    return SavedModel(join([flat(group.reward) for group in stage.groups]), facts)
