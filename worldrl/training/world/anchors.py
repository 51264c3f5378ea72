"""What an encoder of kind ``cocoa`` asks, learned before the policies (Song et al. 2024,
arXiv 2404.04682): see worldrl.models.anchors.

A model of the data backward in time, rollouts of it that leave the data, and a seeker of the
actions that lead back. Reverse model and seeker stand in the run's folder ``encoder``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldrl.config.learners import CocoaEncoder
from worldrl.config.schema import TrainConfig
from worldrl.errors import ConfigError
from worldrl.imagination.reverse import divergent_rollouts
from worldrl.models.anchors import anchor_networks
from worldrl.models.ensemble import Ensemble, fit_standardizer
from worldrl.rows import pack
from worldrl.training.checkpoint import load_model, save_model
from worldrl.training.execution import Execution
from worldrl.training.logged import Logged
from worldrl.training.loop import run_stage
from worldrl.training.stages import flat, join, split
from worldrl.training.world.ensemble import EnsembleStage, Subject, expected_steps
from worldrl.training.world.pretrain_ensemble import STEPS_WORTH_COMPILING
from worldrl.training.world.seeker import SeekerStage
from worldrl.training.world.world_model import WorldModel, ensemble_from
from worldrl.types import Parameters, Transitions

#: As for the ensemble; a step of the seeker is shorter.
SEEKER_STEPS_WORTH_COMPILING = 40_000


def anchors_of(execution: Execution, model: WorldModel) -> Parameters:
    """The networks that tell anchors ``(P, ...)``, in the run's own world; nothing without an
    encoder."""
    config, run = execution.config, execution.run
    assert isinstance(config, TrainConfig)
    if not isinstance(config.learner.encoder, CocoaEncoder):
        return {}
    reverse, seeker = (run.encoder / name for name in ("reverse", "seeker"))
    if not (reverse / "model.json").exists():
        save_model(reverse, flat(_learn_reverse(execution)), {"seeds": execution.seeds})
    if not (seeker / "model.json").exists():
        back = load_model(reverse, execution.device).tensors
        save_model(seeker, _learn_seeker(execution, back), {"seeds": execution.seeds})
    world = model.world.ensemble
    assert isinstance(world, Ensemble)
    return anchor_networks(load_model(seeker, execution.device).tensors, world)


def _learn_reverse(execution: Execution) -> Ensemble:
    """``(s', a) -> s - s'``, by the settings of the world model."""
    config, logged = execution.config, execution.logged
    assert isinstance(config, TrainConfig)
    rows = logged.next_known.nonzero().squeeze(1)
    if len(rows) < 2:
        raise ConfigError(
            f"{config.dataset.source} has {len(rows)} transition(s) with a known next observation; "
            "an encoder needs at least 2 to learn a reverse model from, and thousands to be of "
            "use. Set learner.encoder.kind=none"
        )
    stage = EnsembleStage(
        config.model,
        execution.groups,
        backward(logged),
        rows,
        execution.compiles(
            "reverse", expected_steps(config.model, len(rows)), STEPS_WORTH_COMPILING
        ),
        config.precision == "bf16",
        "reverse",
        Subject("reverse", reward=False),
    )
    execution.restore(stage)
    run_stage(stage, execution.session)
    stage.check_learned()
    return ensemble_from(join([flat(ensemble) for ensemble in stage.ensembles()]))


def backward(logged: Logged) -> Logged:
    """The same rows from the next observation to the observation."""
    forth = logged.transitions
    back = Transitions(
        forth.next_observation, forth.action, forth.reward, forth.observation, forth.terminated
    )
    return logged._replace(rows=pack(back))


def _learn_seeker(execution: Execution, reverse: dict[str, Tensor]) -> Parameters:
    """From rollouts of the reverse model, whose tensors are ``(P, ...)``, from all logged ends."""
    config, logged = execution.config, execution.logged
    assert isinstance(config, TrainConfig)
    assert isinstance(config.learner.encoder, CocoaEncoder)
    settings = config.learner.encoder.seeker
    ends = logged.transitions.next_observation[logged.next_known]
    own_models = split(reverse, [len(seeds) for seeds in execution.groups])
    ways = [
        divergent_rollouts(settings, ensemble_from(own), ends, logged.transitions.action, seeds)
        for seeds, own in zip(execution.groups, own_models, strict=True)
    ]
    calls = len(ends) * settings.horizon // settings.batch_size * settings.max_epochs
    stage = SeekerStage(
        settings,
        execution.groups,
        ways,
        fit_standardizer(ends, torch.arange(len(ends), device=ends.device)[None]),
        execution.compiles("seeker", calls, SEEKER_STEPS_WORTH_COMPILING),
    )
    execution.restore(stage)
    run_stage(stage, execution.session)
    stage.check_learned()
    return stage.seekers()
