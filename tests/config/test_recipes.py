from __future__ import annotations

import csv
from importlib.resources import files

import pytest

from worldrl.config import recipes
from worldrl.config.loader import load_config
from worldrl.config.schema import BranchedSettings

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


# (horizon, cost) of the paper, by robot
MOREL = {"halfcheetah": (500, 200.0), "hopper": (400, 50.0), "walker2d": (400, 30.0)}


@pytest.mark.parametrize("task", MOPO)
def test_morel_has_the_published_horizons_and_costs_of_each_robot(task: str) -> None:
    imagination = load_config("train", "morel", [f"dataset=d4rl:{task}"]).imagination
    assert isinstance(imagination, BranchedSettings)
    assert (imagination.horizon, imagination.stop.cost) == MOREL[task.split("-")[0]]
    assert (imagination.stop.kind, imagination.penalty.kind) == ("absorb", "none")
    assert imagination.stop.measure == "max_pairwise_diff"


def test_long_horizons_are_those_of_the_published_configurations() -> None:
    """(share of real steps, model epochs, temperature) of a few of the twelve."""
    for task, wanted in {
        "halfcheetah-medium-replay-v2": (0.05, None, "auto"),
        "hopper-medium-v2": (0.8, 1200, "fixed"),
        "walker2d-medium-expert-v2": (0.8, 600, "auto"),
    }.items():
        config = load_config("train", "long-horizon", [f"dataset=d4rl:{task}"])
        imagination = config.imagination
        assert isinstance(imagination, BranchedSettings)
        assert config.learner.kind == "sac"
        found = imagination.real_ratio, config.model.max_epochs, config.learner.temperature
        assert found == wanted
        assert (config.model.num_members, config.model.num_elites) == (128, 100)
        assert (imagination.elite, imagination.judges) == ("per_rollout", "elites")
    small = load_config("train", "long-horizon", ["dataset=x"])
    assert small.model.num_members == 20


def test_a_row_needs_the_exact_dataset_name() -> None:
    generic = load_config("train", "mopo", ["dataset=x"]).imagination
    for source in ("d4rl:hopper-medium-v0", "hopper-medium-v2", "minari:hopper-medium-v2"):
        assert load_config("train", "mopo", [f"dataset={source}"]).imagination == generic
