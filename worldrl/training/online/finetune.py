"""Fine-tune policies in the environment, from a run's weights or on its data alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from worldrl.config.learners import SACSettings
from worldrl.config.schema import FinetuneConfig
from worldrl.errors import ConfigError
from worldrl.evaluation.returns import Env
from worldrl.imagination.buffer import available_memory, bytes_needed
from worldrl.learners import LEARNERS
from worldrl.learners.inputs import MEAN, SCALE
from worldrl.models.mlp import part
from worldrl.training.execution import Execution
from worldrl.training.online.experience import OnlineExperience
from worldrl.training.online.stage import FinetuneStage
from worldrl.training.online.warm_start import learners_of, start_from, trained_state
from worldrl.training.policy import PolicyStage
from worldrl.training.policy_group import members_of
from worldrl.training.stages import copy_into
from worldrl.training.train import (
    UPDATES_WORTH_COMPILING,
    Scorer,
    evaluation,
    policy_facts,
    trained,
)
from worldrl.types import Parameters

#: ``(config, the dataset's environment id) -> what builds one environment a call``
EnvironmentFactory = Callable[[FinetuneConfig, str | None], Callable[[], Env]]


def finetune(
    execution: Execution, environment: Callable[[], Env], scorer: Scorer | None
) -> tuple[FinetuneStage, dict[str, Any]]:
    """Fine-tune to the end; the stage and its last metrics."""
    config, logged = execution.config, execution.logged
    assert isinstance(config, FinetuneConfig)
    learner = LEARNERS[config.learner.kind](
        config.learner, logged.observation_size, logged.action_size, config.num_updates
    )
    facts = policy_facts(execution) | {"online": True}
    execution.session.plain = {**execution.session.plain, "policy": facts}
    online: list[OnlineExperience] = []
    try:
        for seeds in execution.groups:
            environments = [environment() for _ in seeds]
            online.append(OnlineExperience(config, learner, seeds, environments, logged))
        anchors = known_anchors(execution, config)
        policies = PolicyStage(
            config,
            learner,
            members_of(execution.groups, logged.log, online, anchors=anchors),
            logged,
            execution.compiles("finetune", config.num_updates, UPDATES_WORTH_COMPILING),
        )
        if config.weights == "run" and execution.saved is None:
            take_over(config, policies, execution.groups, execution.dataset.metadata.sha256)
        stage = FinetuneStage(config, policies, online)
        evaluate = evaluation(execution, stage, learner, scorer)
        return stage, trained(execution, stage, evaluate, first=True)
    finally:
        for own in online:
            own.close()


def known_anchors(execution: Execution, config: FinetuneConfig) -> Parameters:
    """The networks that the encoder of the run asks, ``(P, ...)``; nothing without one.

    Raises:
        ConfigError: an encoder is asked for that the run has not.
    """
    if config.learner.encoder.kind == "none":
        return {}
    state: Parameters = {}
    if execution.saved is not None:
        state = learners_of(execution.saved)
    elif config.run is not None:
        state = trained_state(config.run, execution.dataset.metadata.sha256)
    found = {n: one for n, one in part(state, "inputs/").items() if n not in (MEAN, SCALE)}
    if not found:
        raise ConfigError(
            f"learner.encoder is {config.learner.encoder.kind}, and there is no run that learned "
            "with one to take it from. Leave it out"
        )
    count = len(next(iter(found.values())))
    members = [number % count for number in range(config.population)]
    return {name: value[members].to(execution.device) for name, value in found.items()}


def take_over(
    config: FinetuneConfig, policies: PolicyStage, groups: Sequence[Sequence[int]], sha256: str
) -> None:
    """Put every member's learner where the run's member of the same number stopped, or all where
    its only one did."""
    assert config.run is not None
    state = trained_state(config.run, sha256)
    count = len(next(iter(state.values())))
    firsts = accumulate((len(seeds) for seeds in groups[:-1]), initial=0)
    for group, first in zip(policies.groups, firsts, strict=True):
        members = [(first + number) % count for number in range(len(group.seeds))]
        start_from(group.state, state, members, group.seeds, config.tile_noise)
        copy_into(group.good, group.learned)
    if isinstance(config.learner, SACSettings) and not config.learner.layer_norm:
        print(
            f"worldrl: warning: the networks of {config.run} have no layer normalisation, which "
            "keeps critics from diverging when they meet new actions. Should they diverge, train "
            "it with learner.layer_norm=true",
            file=sys.stderr,
        )


def check_finetuning(config: FinetuneConfig, execution: Execution) -> None:
    """Refuse what needs no environment to be refused.

    Raises:
        ConfigError: there is no run to take weights from, or the transitions do not fit in memory.
    """
    if config.weights == "run" and config.run is None:
        raise ConfigError(
            "no run is given to take weights from: name one (worldrl finetune RUN, or run=RUN), or "
            "set weights=fresh"
        )
    rows = min(config.replay_capacity, config.num_steps)
    width, device = execution.logged.rows.shape[1], execution.logged.rows.device
    needed, free = bytes_needed(config.population, 1, rows, width), available_memory(device)
    if free is not None and needed > free:
        raise ConfigError(
            f"the transitions of {config.population} members need {needed / 2**30:.1f} GiB on "
            f"{device} and {free / 2**30:.1f} GiB is free; lower replay_capacity or population"
        )
