"""A world model on disk, and where its imagined episodes end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldrl.config.termination import TerminationSettings
from worldrl.errors import ConfigError, ModelError
from worldrl.imagination.setup import Ends
from worldrl.imagination.termination import find_formula, formula
from worldrl.models.dynamics_reward import DynamicsReward
from worldrl.models.ensemble import Ensemble, Standardizer
from worldrl.models.mlp import part
from worldrl.models.world import World
from worldrl.training.checkpoint import load_model, save_model
from worldrl.training.logged import Logged
from worldrl.training.rewards import recorded_transform
from worldrl.training.stages import flat
from worldrl.types import Parameters, Termination


class WorldModel(NamedTuple):
    """A world of P members with what a policy run must check before it uses it."""

    world: World  # tensors (P, ...)
    facts: dict[str, Any]  # observation_size, action_size, bounds, seeds, termination, ...

    @property
    def population(self) -> int:
        """P."""
        return len(self.world.ensemble.elites)


def save_world(path: Path, model: WorldModel) -> None:
    """Write ``model.safetensors`` and ``model.json`` under ``path``, whole or not at all;
    a dynamics reward has a folder of its own."""
    save_model(path, flat(model.world._replace(reward=None)), model.facts)


def load_world(path: Path, device: torch.device) -> WorldModel:
    """Read what :func:`save_world` wrote.

    Raises:
        RunError: the files are missing or damaged.
    """
    saved = load_model(path, device)
    terminator = part(saved.tensors, "terminator/")
    ensemble = ensemble_from(part(saved.tensors, "ensemble/"))
    return WorldModel(World(ensemble, terminator), saved.plain)


def ensemble_from(tensors: dict[str, Tensor]) -> Ensemble:
    """The inverse of :func:`worldrl.training.stages.flat` for an ensemble."""
    return Ensemble(
        part(tensors, "parameters/"),
        Standardizer(tensors["inputs/mean"], tensors["inputs/scale"]),
        Standardizer(tensors["targets/mean"], tensors["targets/scale"]),
        tensors["elites"],
    )


def reward_from(tensors: dict[str, Tensor]) -> DynamicsReward:
    """The same for a dynamics reward."""
    return DynamicsReward(
        part(tensors, "parameters/"),
        Standardizer(tensors["inputs/mean"], tensors["inputs/scale"]),
        tensors["logged"],
        tensors["generated"],
    )


def check_fits(model: WorldModel, logged: Logged, where: str) -> None:
    """Refuse a model that was trained for something else.

    Raises:
        ModelError: shapes, action bounds or rewards differ.
    """
    facts = model.facts
    sizes = (facts["observation_size"], facts["action_size"])
    wanted = (logged.observation_size, logged.action_size)
    if sizes != wanted:
        raise ModelError(
            f"the model in {where} was trained for observations of size {sizes[0]} and actions of "
            f"size {sizes[1]}, but the dataset has sizes {wanted[0]} and {wanted[1]}. Use the "
            "model of this dataset, or leave model= out to train one."
        )
    for name, bound in ("action_low", logged.action_low), ("action_high", logged.action_high):
        if not np.allclose(facts[name], bound):
            raise ModelError(
                f"the model in {where} was trained with {name}={facts[name]}, but the dataset "
                f"states {bound.tolist()}: the same numbers would mean other actions. Use a "
                "dataset with the model's bounds, or train a model on this one."
            )
    learned = recorded_transform(facts)
    if not learned.equals(logged.rewards):
        raise ModelError(
            f"the model in {where} learned rewards {learned}, but this run learns from rewards "
            f"{logged.rewards}: imagined and logged rewards would not be of one kind. Set "
            "dataset.reward_normalization=none "
            f"dataset.reward_scale={learned.scale!r} dataset.reward_shift={learned.shift!r}, or "
            "train a model with this run's settings of dataset."
        )


def of_seeds(model: WorldModel, seeds: Sequence[int], where: str) -> WorldModel:
    """One world a member of a run: the one of its seed, or for all the only one there is.

    Members that share a world are marked in the facts: intervals over them are too narrow, since
    they leave out how much worlds differ.

    Raises:
        ModelError: the model has several worlds, and none of some seed.
    """
    chosen = places(model.facts["seeds"], seeds, where)
    shared = model.facts.get("shared_model", False) or len(set(chosen)) < len(chosen)
    facts = {**model.facts, "seeds": list(seeds), "shared_model": shared}
    return WorldModel(members(model.world, chosen), facts)


def places(trained: list[int], seeds: Sequence[int], where: str) -> list[int]:
    """Which of the trained members each seed has: that of its own, or for all the only one.

    Raises:
        ModelError: there are several, and none of some seed.
    """
    missing = [seed for seed in seeds if seed not in trained]
    if missing and len(trained) > 1:
        raise ModelError(
            f"the model in {where} holds the worlds of seeds {trained}, and none of seed(s) "
            f"{missing} of this run. Set seed and population to seeds of the model, or train it "
            "with theirs."
        )
    return [0 if missing else trained.index(seed) for seed in seeds]


def members(world: World, chosen: Sequence[int]) -> World:
    """The world of the members of these numbers."""
    reward = world.reward

    def cut(parameters: Parameters) -> Parameters:
        return {name: value[list(chosen)] for name, value in parameters.items()}

    return World(
        world.ensemble.of_members(chosen),
        cut(world.terminator),
        None if reward is None else reward_from(cut(flat(reward))),
    )


def where_episodes_end(
    settings: TerminationSettings, env_id: str | None, logged: Logged, rows: Tensor
) -> dict[str, Any]:
    """Decide once how imagined episodes end; the decision is recorded with the model.

    Args:
        rows: ``(n,)`` numbers of the logged rows that a rule can be learned from.

    Returns:
        ``{"kind": "formula", "task": name}``, ``{"kind": "never"}`` or ``{"kind": "learned"}``.

    Raises:
        ConfigError: a formula is asked for and none is known, or a rule must be learned and
            cannot be.
    """
    size = logged.observation_size
    found: tuple[str, Termination] | None = None
    if settings.task is not None:
        found = settings.task, formula(settings.task, size)
    elif settings.kind in ("auto", "formula"):
        found = find_formula(env_id, size)
    if settings.kind == "formula" and found is None:
        raise ConfigError(
            f"termination.kind=formula, but no formula is known for environment {env_id!r} with "
            f"observations of size {size}. Name one with termination.task=..., or use "
            "termination.kind=learned."
        )
    if settings.kind in ("auto", "formula") and found is not None:
        return {"kind": "formula", "task": found[0]}
    terminated = logged.transitions.terminated
    ends = bool(terminated.any())
    if settings.kind == "learned" and not ends:
        raise ConfigError(
            "termination.kind=learned, but no logged episode ends: there is nothing to learn "
            "from. Use termination.kind=never."
        )
    if settings.kind == "never" or not ends:
        return {"kind": "never"}
    if not bool(terminated[rows].any()):
        raise ConfigError(
            f"logged episodes end, but no rule can be learned from them for environment {env_id!r}"
            ": the next observations of the terminal rows are not in the data, or all those "
            "episodes are kept to test the model on (model.test_ratio). Name a formula with "
            "termination.task=..., or use termination.kind=never: imagined episodes then only "
            "end at their horizon."
        )
    return {"kind": "learned"}


def with_termination(
    model: WorldModel, settings: TerminationSettings, env_id: str | None, logged: Logged
) -> WorldModel:
    """A given model, ending episodes as the settings ask; ``auto`` leaves it as it is.

    Raises:
        ConfigError: no such formula is known, or a learned rule is asked for and the model has
            none.
    """
    if settings == TerminationSettings():
        own = find_formula(env_id, logged.observation_size)
        recorded = model.facts["termination"]
        if own is not None and own[0] != recorded.get("task"):
            print(
                f"worldrl: warning: imagined episodes end as the given model was told "
                f"({recorded.get('task', recorded['kind'])}), not as those of {env_id} do; "
                "termination.kind=formula takes that environment's rule",
                file=sys.stderr,
            )
        return model
    known = logged.next_known.nonzero().squeeze(1)
    decision = where_episodes_end(settings, env_id, logged, known)
    if decision["kind"] != "learned":
        return model._replace(facts={**model.facts, "termination": decision})
    if model.facts["termination"]["kind"] != "learned":
        raise ConfigError(
            f"termination.kind={settings.kind} asks for a learned rule, but the given model was "
            "trained without one. Train a model with termination.kind=learned, or leave "
            "termination out to end episodes as the model was told to."
        )
    return model


def ends_function(decision: dict[str, Any], observation_size: int) -> Ends:
    """The function of tensors that a recorded decision stands for."""
    if decision["kind"] == "learned":
        from worldrl.models.termination import ends

        return ends
    name = decision["task"] if decision["kind"] == "formula" else "never"
    rule = formula(name, observation_size)

    def apply(
        terminator: Parameters, observation: Tensor, action: Tensor, next_observation: Tensor
    ) -> Tensor:
        return rule(observation, action, next_observation)

    return apply
