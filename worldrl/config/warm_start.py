"""What fine-tuning takes over from the run that it goes on from.

The run's settings are a layer below the recipe's. Where its weights are taken over, its networks,
its dataset and its rewards are as they are: what recipes say of them is for a fresh start.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from worldrl.config import recipes
from worldrl.config.learners import SACSettings
from worldrl.config.recipes import Recipe
from worldrl.config.schema import FinetuneConfig
from worldrl.errors import ConfigError

#: Learners whose actor, critics and temperature are SAC's: SAC goes on with them.
SOFT = ("sac", "cql", "mobile", "h2o")

#: What weights fit to, and what the critics' values are of.
NETWORKS = (
    *("hidden", "layer_norm", "layer_norm_place", "standardize", "encoder", "init"),
    *("initial_temperature", "critic_loss", "policy"),
)
REWARDS = ("reward_normalization", "reward_scale", "reward_shift")


def starting_from_run(chain: Sequence[Recipe], typed: Mapping[str, Any]) -> list[Recipe]:
    """A chain of recipes on top of what the run says that the settings name; as it is without one.

    Args:
        typed: overrides, nested.

    Raises:
        ConfigError: there is no such run, or it learned no policy from a dataset.
    """
    layers = [*(part.settings for part in chain), typed]
    run = _last(layers, "run", None)
    if not isinstance(run, str):
        return list(chain)
    origin, settings = run_settings(run)
    taken = {name: settings[name] for name in ("dataset", "seed", "population")}
    if _last(layers, "weights", "run") == "fresh":
        return [Recipe(origin, None, "", taken, {}), *chain]
    learner = settings["learner"]
    soft = learner["kind"] in SOFT
    if soft:
        shared = (name for name in learner if name in SACSettings.model_fields)
        learner = {name: learner[name] for name in shared}
        learner |= {"kind": "sac", "cloning_updates": 0}
    if "actor_schedule" in learner:
        learner = learner | {"actor_schedule": "constant"}
    return [
        Recipe(origin, None, "", taken | {"learner": learner}, {}),
        *(
            _of_a_warm_start(part, soft) if recipes.is_shipped(part.origin) else part
            for part in chain
        ),
    ]


def run_settings(run: str) -> tuple[str, dict[str, Any]]:
    """How errors name a run, and the settings in its ``config.yaml``.

    Raises:
        ConfigError: there is no such run, or it learned no policy from a dataset.
    """
    file = os.path.join(run, "config.yaml")
    if not os.path.isfile(file):
        raise ConfigError(
            f"there is no run at {run} (no {file}). Give the directory that `worldrl train` "
            "printed as its run"
        )
    saved = recipes.read_file(file)
    if saved.stage != "train":
        raise ConfigError(
            f"{run} is a run of `worldrl {saved.stage}`, and fine-tuning goes on from one of "
            "`worldrl train`"
            + (f". To go on with it: worldrl resume {run}" if saved.stage == "finetune" else "")
        )
    return f"run {run}", dict(saved.settings)


def refuse_other_networks(config: FinetuneConfig) -> None:
    """Refuse settings under which the run's weights would mean something else.

    Raises:
        ConfigError: with the setting, and what the run was trained with.
    """
    if config.run is None:
        return
    _, settings = run_settings(config.run)
    if config.population != settings["population"] and settings["population"] != 1:
        raise ConfigError(
            f"population is {config.population}, and {config.run} has {settings['population']} "
            "members. Go on with as many, or from a run of one, which all members then start from"
        )
    if config.weights == "fresh":
        return
    kind = settings["learner"]["kind"]
    if config.learner.kind != ("sac" if kind in SOFT else kind):
        raise ConfigError(
            f"learner.kind is {config.learner.kind}, and {config.run} was trained with {kind}. "
            "Leave it out, or set weights=fresh to take over its data alone"
        )
    stated = config.model_dump(mode="json")
    for group, names in ("learner", NETWORKS), ("dataset", REWARDS):
        for name in names:
            asked, trained = (of[group].get(name) for of in (stated, settings))
            if name in settings[group] and name in stated[group] and asked != trained:
                raise ConfigError(
                    f"{group}.{name} is {asked}, and the weights of {config.run} were trained with "
                    f"{trained}. Leave it out, or set weights=fresh to take over its data alone"
                )


def _of_a_warm_start(part: Recipe, soft: bool) -> Recipe:
    """A shipped recipe without what it says for a fresh start and, of learners that are not
    SAC-like, without what it says for SAC."""

    def kept(settings: Mapping[str, Any]) -> dict[str, Any]:
        dropped = ["dataset", "warmup_policy", *([] if soft else ["learner", "updates_per_step"])]
        found = {name: value for name, value in settings.items() if name not in dropped}
        if "learner" in found:
            own = found["learner"].items()
            found["learner"] = {name: value for name, value in own if name not in NETWORKS}
        return found

    rows = {task: kept(row) for task, row in part.tasks.items()}
    return replace(part, settings=kept(part.settings), tasks=rows)


def _last(layers: Sequence[Mapping[str, Any]], name: str, default: object) -> object:
    """What the last layer to state a setting states."""
    return next((layer[name] for layer in reversed(layers) if name in layer), default)
