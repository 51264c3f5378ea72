from __future__ import annotations

import csv
from importlib.resources import files

import pytest

from worldrl.config import recipes
from worldrl.config.learners import MOBILESettings
from worldrl.config.loader import load_config
from worldrl.config.schema import AdversarialSettings, BranchedSettings
from worldrl.errors import ConfigError

ALL = [(stage, name) for stage in recipes.STAGES for name in recipes.shipped(stage)]

# (horizon, weight) of OfflineRL-Kit; for random, which it lacks, the paper's.
MOPO = {
    "halfcheetah-random-v2": (5, 0.5),
    "hopper-random-v2": (5, 1.0),
    "walker2d-random-v2": (1, 1.0),
    "halfcheetah-medium-v2": (5, 0.5),
    "hopper-medium-v2": (5, 5.0),
    "walker2d-medium-v2": (5, 0.5),
    "halfcheetah-medium-replay-v2": (5, 0.5),
    "hopper-medium-replay-v2": (5, 2.5),
    "walker2d-medium-replay-v2": (1, 2.5),
    "halfcheetah-medium-expert-v2": (5, 2.5),
    "hopper-medium-expert-v2": (5, 5.0),
    "walker2d-medium-expert-v2": (1, 2.5),
}


@pytest.mark.parametrize(("stage", "name"), ALL)
def test_every_shipped_recipe_loads_for_every_task_it_names(stage: str, name: str) -> None:
    config = load_config(stage, name, ["dataset=x"])
    assert (config.stage, config.recipe) == (stage, name)
    assert recipes.stage_of(name) == stage
    for part in recipes.read(stage, name):
        for task in set(part.tasks) - {recipes.OTHER}:
            assert load_config(stage, name, [f"dataset=d4rl:{task}"]).recipe == name


@pytest.mark.parametrize(("stage", "name"), ALL)
def test_every_shipped_recipe_says_what_it_is(stage: str, name: str) -> None:
    text = recipes.shipped(stage)[name].read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert 20 < len(recipes.summary(recipes.shipped(stage)[name])) < 100
    assert f"stage: {stage}\n" in text


def test_names_are_unique_across_stages() -> None:
    assert len({name for _, name in ALL}) == len(ALL)
    assert {"ensemble", "mopo", "mbpo", "sac", "bc"} <= {name for _, name in ALL}


@pytest.mark.parametrize(("task", "expected"), MOPO.items())
def test_mopo_has_the_published_settings_of_each_task(
    task: str, expected: tuple[int, float]
) -> None:
    imagination = load_config("train", "mopo", [f"dataset=d4rl:{task}"]).imagination
    assert isinstance(imagination, BranchedSettings)
    assert (imagination.horizon, imagination.penalty.weight) == expected
    assert imagination.penalty.kind == "max_aleatoric"
    assert imagination.penalty.scale == "none"


def test_mopo_rows_are_all_tested_and_name_known_datasets() -> None:
    (mopo,) = recipes.read("train", "mopo")
    assert set(mopo.tasks) == {*MOPO, recipes.OTHER}
    table = files("worldrl.data").joinpath("d4rl_urls.csv").read_text(encoding="utf-8")
    assert set(MOPO) <= {row["name"] for row in csv.DictReader(table.splitlines())}


def test_a_row_needs_the_exact_dataset_name() -> None:
    generic = load_config("train", "mopo", ["dataset=x"]).imagination
    for source in ("d4rl:hopper-medium-v0", "hopper-medium-v2", "minari:hopper-medium-v2"):
        assert load_config("train", "mopo", [f"dataset={source}"]).imagination == generic


# (horizon, weight) of the authors' code.
MOBILE = {
    "halfcheetah-random-v2": (5, 0.5),
    "hopper-random-v2": (5, 5.0),
    "walker2d-random-v2": (5, 2.0),
    "halfcheetah-medium-v2": (5, 0.5),
    "hopper-medium-v2": (5, 1.5),
    "walker2d-medium-v2": (5, 0.5),
    "halfcheetah-medium-replay-v2": (5, 0.1),
    "hopper-medium-replay-v2": (5, 0.1),
    "walker2d-medium-replay-v2": (1, 0.5),
    "halfcheetah-medium-expert-v2": (5, 1.0),
    "hopper-medium-expert-v2": (5, 1.5),
    "walker2d-medium-expert-v2": (1, 1.5),
}
RAMBO = {
    "halfcheetah-random-v2": (5, 0.0),
    "hopper-random-v2": (2, 3e-4),
    "walker2d-random-v2": (5, 0.0),
    "halfcheetah-medium-v2": (5, 3e-4),
    "hopper-medium-v2": (5, 3e-4),
    "walker2d-medium-v2": (5, 0.0),
    "halfcheetah-medium-replay-v2": (5, 3e-4),
    "hopper-medium-replay-v2": (2, 3e-4),
    "walker2d-medium-replay-v2": (5, 0.0),
    "halfcheetah-medium-expert-v2": (5, 3e-4),
    "hopper-medium-expert-v2": (5, 3e-4),
    "walker2d-medium-expert-v2": (2, 3e-4),
}


@pytest.mark.parametrize(("task", "expected"), MOBILE.items())
def test_mobile_has_the_published_settings_of_each_task(
    task: str, expected: tuple[int, float]
) -> None:
    config = load_config("train", "mobile", [f"dataset=d4rl:{task}"])
    imagination, learner = config.imagination, config.learner
    assert isinstance(imagination, BranchedSettings)
    assert isinstance(learner, MOBILESettings)
    assert (imagination.horizon, learner.inconsistency_weight) == expected
    assert imagination.penalty.kind == "none"
    assert imagination.real_ratio == (0.5 if task == "halfcheetah-medium-expert-v2" else 0.05)
    fixed = task in ("hopper-medium-v2", "hopper-medium-replay-v2")
    assert (learner.temperature, learner.initial_temperature) == (
        ("fixed", 0.2) if fixed else ("auto", 1.0)
    )
    assert config.model.max_epochs == (30 if task == "walker2d-medium-v2" else None)
    assert learner.target_min == 0


@pytest.mark.parametrize(("task", "expected"), RAMBO.items())
def test_rambo_has_the_published_settings_of_each_task(
    task: str, expected: tuple[int, float]
) -> None:
    imagination = load_config("train", "rambo", [f"dataset=d4rl:{task}"]).imagination
    assert isinstance(imagination, AdversarialSettings)
    assert (imagination.horizon, imagination.adversarial_weight) == expected
    assert imagination.real_ratio == 0.5


def test_the_rows_of_mobile_and_rambo_are_all_tested() -> None:
    for name, rows in ("mobile", MOBILE), ("rambo", RAMBO):
        (recipe,) = recipes.read("train", name)
        assert set(recipe.tasks) == {*rows, recipes.OTHER}
    unknown = load_config("train", "mobile", ["dataset=x"])
    assert isinstance(unknown.learner, MOBILESettings)
    assert unknown.learner.target_min is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("imagination=none", "imagination is none. Set imagination=branched"),
        ("imagination=adversarial", "which changes it. Set imagination=branched"),
        ("imagination.penalty.kind=max_aleatoric", "Set imagination.penalty.kind=none"),
        ("model.num_elites=1", "elites that can disagree"),
    ],
)
def test_mobile_says_what_it_needs(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("train", "mobile", ["dataset=x", override])
