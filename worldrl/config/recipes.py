"""Recipes: the YAML files shipped in ``configs/`` and those that users write.

A recipe file holds settings and, beside them, up to three keys that are no settings:

``recipe``
    the shipped recipe that it starts from,
``stage``
    ``pretrain``, ``train`` or ``finetune``, where the file wants to be sure,
``tasks``
    settings of single tasks, by D4RL name; the row of ``hopper-medium-v2`` is taken when
    ``dataset.source`` is ``d4rl:hopper-medium-v2`` or a file of that name, and the row ``other``
    when it is a dataset that no row names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from worldrl.config import yaml_subset
from worldrl.errors import ConfigError, suggestion

STAGES = ("pretrain", "train", "finetune")
OTHER = "other"  # the row of datasets that no row names
_SHIPPED = "recipe "  # begins the origin of what a shipped recipe says
MAX_BYTES = 1_000_000  # a recipe is a page of text; anything larger is another kind of file


@dataclass(frozen=True)
class Recipe:
    """One recipe file, parsed but not yet checked against the schema."""

    origin: str
    """How errors name it."""
    stage: str | None
    base: str
    """The shipped recipe that it starts from; empty for none."""
    settings: Mapping[str, Any]
    tasks: Mapping[str, Any]


def shipped(stage: str) -> dict[str, Traversable]:
    """The shipped recipes of a stage, by name."""
    folder = files("worldrl.configs").joinpath(stage)
    found = (item for item in folder.iterdir() if item.name.endswith(".yaml"))
    return {item.name.removesuffix(".yaml"): item for item in sorted(found, key=lambda i: i.name)}


def summary(recipe: Traversable) -> str:
    """The first comment line of a shipped recipe."""
    return recipe.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").rstrip(".")


def is_shipped(origin: str) -> bool:
    """Was this said by a shipped recipe, not by the user?"""
    return origin.startswith(_SHIPPED)


def stage_of(recipe: str) -> str:
    """The stage that a recipe belongs to.

    Raises:
        ConfigError: no shipped recipe and no file is called so, or the file cannot be read.
    """
    for stage in STAGES:
        if recipe in shipped(stage):
            return stage
    if not _is_file_name(recipe):
        raise ConfigError(
            _unknown(recipe, {name: stage for stage in STAGES for name in shipped(stage)})
        )
    parsed = read_file(recipe)
    return parsed.stage or (stage_of(parsed.base) if parsed.base else "train")


def read(stage: str, recipe: str) -> list[Recipe]:
    """The chain of recipes to apply, the base first.

    Args:
        stage: one of :data:`STAGES`.
        recipe: a shipped name or the path of a YAML file; empty for no recipe at all.

    Raises:
        ConfigError: the recipe is unknown, unreadable or of another stage.
    """
    if not recipe:
        return []
    if recipe in shipped(stage):
        return _bases(stage, Recipe("", stage, recipe, {}, {}))
    if not _is_file_name(recipe):
        for other in STAGES:
            if recipe in shipped(other):
                raise ConfigError(
                    f"'{recipe}' is a recipe of `worldrl {other}`, not of `worldrl {stage}`, "
                    f"which knows: {', '.join(shipped(stage))}"
                )
        raise ConfigError(_unknown(recipe, dict.fromkeys(shipped(stage), stage)))
    parsed = read_file(recipe)
    if parsed.stage not in (None, stage):
        raise ConfigError(
            f"{parsed.origin} is written for `worldrl {parsed.stage}` (its key 'stage'), "
            f"not for `worldrl {stage}`"
        )
    return [*_bases(stage, parsed), parsed]


def _bases(stage: str, recipe: Recipe) -> list[Recipe]:
    """The shipped recipes that a recipe starts from, the first one first."""
    known = shipped(stage)
    chain: list[Recipe] = []
    while recipe.base:
        if recipe.base not in known:
            raise ConfigError(
                f"{recipe.origin}: 'recipe: {recipe.base}' names no shipped recipe of "
                f"`worldrl {stage}`{suggestion(recipe.base, known)}; known: {', '.join(known)}"
            )
        text = known[recipe.base].read_text(encoding="utf-8")
        recipe = _parse(text, f"{_SHIPPED}{recipe.base}")
        chain.insert(0, recipe)
    return chain


def read_file(path: str) -> Recipe:
    """Parse a recipe file.

    Raises:
        ConfigError: it is missing, not text, not YAML, or not a mapping.
    """
    if Path(path).is_dir():
        raise ConfigError(
            f"{path} is a folder, and a recipe is a shipped name or a YAML file; to continue a run "
            f"use `worldrl resume {path}`, to repeat it name its config.yaml"
        )
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_BYTES:,} bytes: that is no recipe")
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no recipe file {path}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text (byte {error.start}): not a recipe") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the recipe file {path}: {error}") from None
    return _parse(text, f"file {path}")


def _parse(text: str, origin: str) -> Recipe:
    settings = yaml_subset.parse(text, origin)
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{origin} holds {_noun(settings)}, and a recipe is a mapping of settings such as "
            "'num_updates: 100000'"
        )
    stage = settings.pop("stage", None)
    if stage is not None and stage not in STAGES:
        raise ConfigError(f"{origin}: stage is {stage!r}, and must be one of {', '.join(STAGES)}")
    base = settings.pop("recipe", "")
    if not isinstance(base, str):
        raise ConfigError(f"{origin}: recipe is {base!r}, and must be the name of a shipped recipe")
    tasks = settings.pop("tasks", {})
    if not isinstance(tasks, dict):
        raise ConfigError(
            f"{origin}: tasks holds {_noun(tasks)}, and must be a mapping from dataset names to "
            "settings"
        )
    return Recipe(origin, stage, base, settings, tasks)


def _is_file_name(recipe: str) -> bool:
    if recipe.endswith((".yaml", ".yml")) or os.sep in recipe:
        return True
    try:
        return Path(recipe).exists()
    except (OSError, ValueError):
        return False


def _unknown(recipe: str, known: Mapping[str, str]) -> str:
    if "=" in recipe:
        return (
            f"the first argument must be a recipe, got '{recipe}'; known recipes: "
            f"{', '.join(known)}; the path of a YAML file works too"
        )
    return (
        f"there is no recipe '{recipe}'{suggestion(recipe, known)}; known: {', '.join(known)}; "
        "the path of a YAML file works too"
    )


def _noun(value: object) -> str:
    if isinstance(value, list):
        return "a list"
    return f"the single value {value!r:.60}"
