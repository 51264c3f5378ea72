"""What a run does: its stages in order, once all that can be refused without work was refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from worldrl.config.schema import FinetuneConfig, PretrainConfig, TrainConfig
from worldrl.imagination.experience import check_buffers
from worldrl.training.execution import Execution
from worldrl.training.judging.gate import FitValues, check_judges, gate_of
from worldrl.training.online.finetune import check_finetuning, finetune
from worldrl.training.run_directory import RunState
from worldrl.training.sampling import row_sampler
from worldrl.training.systems import Systems
from worldrl.training.train import LearningStage, Scorer, train_policy
from worldrl.training.world.anchors import anchors_of
from worldrl.training.world.pretrain import world_of
from worldrl.training.world.simulated import simulated_world


class Finished(NamedTuple):
    """How a run ended."""

    stage: str
    step: int
    total: int
    metrics: dict[str, Any]
    state: RunState = "finished"


#: The work of a run.
Plan = Callable[[], Finished]


def plan_of(execution: Execution, systems: Systems | None, fit_values: FitValues) -> Plan:
    """The work that a run's settings ask for.

    Raises:
        WorldRLError: it cannot be done.
    """
    config = execution.config
    if isinstance(config, PretrainConfig):
        return lambda: _pretrained(execution)
    if isinstance(config, FinetuneConfig):
        return _fine_tuning(execution, config, systems)
    return _training(execution, config, systems, fit_values)


def _pretrained(execution: Execution) -> Finished:
    facts = world_of(execution).facts
    return Finished("pretrain", facts["steps"], facts["steps"], facts["metrics"])


def _training(
    execution: Execution, config: TrainConfig, systems: Systems | None, fit_values: FitValues
) -> Plan:
    scorer, simulated = _scorer(execution, config, systems), None
    if config.imagination.kind == "simulator":
        assert systems is not None
        simulated = simulated_world(execution, systems.simulator)
    check_buffers(config.imagination, config.population, execution.logged.rows)
    row_sampler(config.sampling, execution.logged)
    check_judges(config)

    def work() -> Finished:
        model = world_of(execution) if config.uses_model else simulated
        anchors = None if model is None else anchors_of(execution, model)
        gate = gate_of(execution, fit_values)
        return _learned(*train_policy(execution, model, scorer, anchors, gate))

    return work


def _fine_tuning(execution: Execution, config: FinetuneConfig, systems: Systems | None) -> Plan:
    scorer = _scorer(execution, config, systems)
    check_finetuning(config, execution)
    assert systems is not None
    environment = systems.environments(config, execution.dataset.metadata.env_id)
    return lambda: _learned(*finetune(execution, environment, scorer))


def _learned(stage: LearningStage, metrics: dict[str, Any]) -> Finished:
    stopped = all(trip is not None for trip in stage.trips)
    state: RunState = "stopped_by_guard" if stopped else "finished"
    return Finished(stage.name, stage.step, stage.total or stage.step, metrics, state)


def _scorer(
    execution: Execution, config: TrainConfig | FinetuneConfig, systems: Systems | None
) -> Scorer | None:
    """Asked for before anything is trained: an environment may turn out to be missing."""
    if not config.eval_every or systems is None:
        return None
    return systems.scorer(config, execution.dataset.metadata.env_id)
