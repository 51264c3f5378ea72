from __future__ import annotations

import csv
from importlib.resources import files

import pytest

from worldrl.config import recipes
from worldrl.config.imagination import AdversarialSettings, BranchedSettings
from worldrl.config.learners import (
    CocoaEncoder,
    IQLSettings,
    MOBILESettings,
    PRDCSettings,
    ReBRACSettings,
    SACSettings,
)
from worldrl.config.loader import load_config
from worldrl.config.schema import TrainConfig
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

# (critics of sac-n, critics of edac, eta) as CORL has them.
ENSEMBLES = {
    "halfcheetah-medium-v2": (10, 10, 1.0),
    "halfcheetah-medium-replay-v2": (10, 10, 1.0),
    "halfcheetah-medium-expert-v2": (10, 10, 5.0),
    "walker2d-medium-v2": (20, 10, 1.0),
    "walker2d-medium-replay-v2": (20, 10, 1.0),
    "walker2d-medium-expert-v2": (20, 10, 5.0),
    "hopper-medium-v2": (500, 50, 1.0),
    "hopper-medium-replay-v2": (200, 50, 1.0),
    "hopper-medium-expert-v2": (200, 50, 1.0),
    "maze2d-large-v1": (25, 10, 0.1),
    "pen-human-v1": (100, 20, 1000.0),
    "pen-cloned-v1": (100, 20, 10.0),
    "pen-expert-v1": (100, 20, 10.0),
    "door-human-v1": (100, 50, 200.0),
    "relocate-expert-v1": (100, 50, 200.0),
    "antmaze-large-diverse-v2": (25, 10, 1.0),
}
# (horizon, conservative weight) of OfflineRL-Kit.
COMBO = {
    "halfcheetah-medium-v2": (5, 0.5),
    "hopper-medium-v2": (5, 5.0),
    "walker2d-medium-v2": (1, 5.0),
    "halfcheetah-medium-replay-v2": (5, 0.5),
    "hopper-medium-replay-v2": (5, 0.5),
    "walker2d-medium-replay-v2": (1, 0.5),
    "halfcheetah-medium-expert-v2": (5, 5.0),
    "hopper-medium-expert-v2": (5, 5.0),
    "walker2d-medium-expert-v2": (1, 5.0),
}
# (conservative weight, Lagrange gap, policy's rate, layers) of CORL.
CQL = {
    "halfcheetah-medium-v2": (10.0, None, 3e-5, 3),
    "maze2d-umaze-v1": (10.0, 5.0, 3e-5, 3),
    "hammer-cloned-v1": (1.0, None, 1e-4, 3),
    "antmaze-medium-play-v2": (5.0, 0.8, 1e-4, 5),
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


@pytest.mark.parametrize(("task", "expected"), MOPO.items())
def test_cocoa_is_mopo_with_an_encoder(task: str, expected: tuple[int, float]) -> None:
    config = load_config("train", "cocoa", [f"dataset=d4rl:{task}"])
    plain = load_config("train", "mopo", [f"dataset=d4rl:{task}"])
    assert isinstance(config, TrainConfig)
    assert isinstance(plain, TrainConfig)
    imagination, encoder = config.imagination, config.learner.encoder
    assert isinstance(imagination, BranchedSettings)
    assert (imagination.horizon, imagination.penalty.weight) == expected
    assert isinstance(encoder, CocoaEncoder)
    assert (encoder.anchor_horizon, encoder.hidden) == (1, (64, 64))
    assert (encoder.num_features, encoder.rank) == (64, 4)
    seeker = encoder.seeker
    assert (seeker.horizon, seeker.direction_share, seeker.action_noise) == (5, 0.8, 0.1)
    assert (seeker.hidden, seeker.learning_rate, seeker.batch_size) == ((100, 100), 1e-3, 256)
    assert (seeker.max_epochs, seeker.patience) == (50, 5)
    assert isinstance(config.learner, SACSettings)
    assert config.learner.hidden == (100, 100)
    changes = {"hidden": plain.learner.hidden, "encoder": plain.learner.encoder}
    assert config.learner.model_copy(update=changes) == plain.learner


@pytest.mark.parametrize("recipe", ["mobile", "cql", "iql", "rebrac", "bc"])
def test_the_encoder_of_cocoa_goes_with_any_recipe(recipe: str) -> None:
    config = load_config("train", recipe, ["dataset=x", "learner.encoder.kind=cocoa"])
    assert isinstance(config, TrainConfig)
    assert config.uses_model
    assert config.learner.encoder == CocoaEncoder()


def test_mopo_rows_are_all_tested_and_name_known_datasets() -> None:
    (mopo,) = recipes.read("train", "mopo")
    assert set(mopo.tasks) == {*MOPO, recipes.OTHER}
    table = files("worldrl.data").joinpath("d4rl_urls.csv").read_text(encoding="utf-8")
    assert set(MOPO) <= {row["name"] for row in csv.DictReader(table.splitlines())}


@pytest.mark.parametrize(("task", "expected"), ENSEMBLES.items())
def test_sac_n_and_edac_have_the_published_settings(
    task: str, expected: tuple[int, int, float]
) -> None:
    many = load_config("train", "sac-n", [f"dataset=d4rl:{task}"]).learner
    diverse = load_config("train", "edac", [f"dataset=d4rl:{task}"]).learner
    assert (many.num_critics, diverse.num_critics, diverse.diversity) == expected
    assert many.diversity == 0
    for learner in many, diverse:
        assert learner.hidden == (256, 256, 256)
        assert (learner.init, learner.max_temperature, learner.actor_schedule) == (
            "edac",
            None,
            "constant",
        )


@pytest.mark.parametrize(("task", "expected"), COMBO.items())
def test_combo_has_the_published_settings(task: str, expected: tuple[int, float]) -> None:
    config = load_config("train", "combo", [f"dataset=d4rl:{task}"])
    assert (config.imagination.horizon, config.learner.conservative_weight) == expected
    assert (config.imagination.penalty.kind, config.imagination.real_ratio) == ("none", 0.5)
    assert not config.learner.entropy_in_target
    assert not config.learner.standardize


@pytest.mark.parametrize(("task", "expected"), CQL.items())
def test_cql_has_the_published_settings(
    task: str, expected: tuple[float, float | None, float, int]
) -> None:
    learner = load_config("train", "cql", [f"dataset=d4rl:{task}"]).learner
    assert (
        learner.conservative_weight,
        learner.gap_target,
        learner.actor_learning_rate,
        len(learner.hidden),
    ) == expected
    maze = task.startswith("antmaze")
    assert learner.standardize is not maze
    assert learner.max_target_backup is maze
    assert learner.min_gap == (-200.0 if maze else None)


@pytest.mark.parametrize("name", ["sac-n", "edac", "combo", "cql"])
def test_rows_of_many_tasks_name_known_datasets(name: str) -> None:
    table = files("worldrl.data").joinpath("d4rl_urls.csv").read_text(encoding="utf-8")
    known = {row["name"] for row in csv.DictReader(table.splitlines())}
    for part in recipes.read("train", name):
        assert set(part.tasks) - {recipes.OTHER} <= known


# (beta 1, beta 2) of the paper's table; antmaze's rates, batch and discount are its own, too.
REBRAC = {
    "halfcheetah-random-v2": (0.001, 0.1),
    "halfcheetah-medium-v2": (0.001, 0.01),
    "halfcheetah-medium-replay-v2": (0.01, 0.001),
    "halfcheetah-medium-expert-v2": (0.01, 0.1),
    "halfcheetah-expert-v2": (0.01, 0.01),
    "halfcheetah-full-replay-v2": (0.001, 0.1),
    "hopper-random-v2": (0.001, 0.01),
    "hopper-medium-v2": (0.01, 0.01),
    "hopper-medium-replay-v2": (0.05, 0.5),
    "hopper-medium-expert-v2": (0.1, 0.01),
    "hopper-expert-v2": (0.1, 0.1),
    "hopper-full-replay-v2": (0.01, 0.01),
    "walker2d-random-v2": (0.01, 0.0),
    "walker2d-medium-v2": (0.05, 0.1),
    "walker2d-medium-replay-v2": (0.05, 0.01),
    "walker2d-medium-expert-v2": (0.01, 0.01),
    "walker2d-expert-v2": (0.01, 0.5),
    "walker2d-full-replay-v2": (0.01, 0.01),
    "antmaze-umaze-v2": (0.003, 0.002),
    "antmaze-umaze-diverse-v2": (0.003, 0.001),
    "antmaze-medium-play-v2": (0.001, 0.0005),
    "antmaze-medium-diverse-v2": (0.001, 0.0),
    "antmaze-large-play-v2": (0.002, 0.001),
    "antmaze-large-diverse-v2": (0.002, 0.002),
    "maze2d-umaze-v1": (0.003, 0.001),
    "maze2d-medium-v1": (0.003, 0.001),
    "maze2d-large-v1": (0.003, 0.001),
    "pen-human-v1": (0.1, 0.5),
    "pen-cloned-v1": (0.05, 0.5),
    "pen-expert-v1": (0.01, 0.01),
    "door-human-v1": (0.1, 0.1),
    "door-cloned-v1": (0.01, 0.1),
    "door-expert-v1": (0.05, 0.01),
    "hammer-human-v1": (0.01, 0.5),
    "hammer-cloned-v1": (0.1, 0.5),
    "hammer-expert-v1": (0.01, 0.01),
    "relocate-human-v1": (0.1, 0.01),
    "relocate-cloned-v1": (0.1, 0.01),
    "relocate-expert-v1": (0.05, 0.01),
}


@pytest.mark.parametrize(("task", "expected"), REBRAC.items())
def test_rebrac_has_the_published_settings_of_each_task(
    task: str, expected: tuple[float, float]
) -> None:
    learner = load_config("train", "rebrac", [f"dataset=d4rl:{task}"]).learner
    assert isinstance(learner, ReBRACSettings)
    assert (learner.actor_bc_weight, learner.critic_bc_weight) == expected
    rates = learner.batch_size, learner.actor_learning_rate, learner.critic_learning_rate
    if task.startswith(("halfcheetah", "hopper", "walker2d")):
        assert (rates, learner.discount) == ((1024, 1e-3, 1e-3), 0.99)
    elif task.startswith("antmaze"):
        assert (rates, learner.discount) == ((256, 3e-4, 5e-5), 0.999)
    else:
        assert (rates, learner.discount) == ((256, 3e-4, 3e-4), 0.99)


def test_rebrac_and_its_kin_name_known_datasets() -> None:
    table = files("worldrl.data").joinpath("d4rl_urls.csv").read_text(encoding="utf-8")
    known = {row["name"] for row in csv.DictReader(table.splitlines())}
    rows = {name: set(recipes.read("train", name)[0].tasks) for name in ("rebrac", "prdc")}
    assert rows["rebrac"] == set(REBRAC)
    assert rows["prdc"] <= known
    assert rows["rebrac"] <= known


@pytest.mark.parametrize("task", MOPO)
def test_mobrac_joins_the_rollouts_of_mopo_with_the_penalties_of_rebrac(task: str) -> None:
    config = load_config("train", "mobrac", [f"dataset=d4rl:{task}"])
    imagination, learner = config.imagination, config.learner
    assert isinstance(imagination, BranchedSettings)
    assert isinstance(learner, ReBRACSettings)
    assert (imagination.horizon, imagination.penalty.weight) == MOPO[task]
    assert (learner.actor_bc_weight, learner.critic_bc_weight) == REBRAC[task]
    assert imagination.penalty.kind == "max_aleatoric"


def test_prdc_has_the_published_settings_of_each_environment() -> None:
    for task, expected in (
        ("halfcheetah-medium-v2", (40, 2)),
        ("hopper-medium-v2", (2.5, 2)),
        ("walker2d-random-v2", (2.5, 2)),
        ("antmaze-large-play-v2", (7.5, 7.5)),
    ):
        learner = load_config("train", "prdc", [f"dataset=d4rl:{task}"]).learner
        assert isinstance(learner, PRDCSettings)
        assert (learner.alpha, learner.observation_weight) == expected


# (horizon, cost) of the paper, by robot
MOREL = {"halfcheetah": (500, 200.0), "hopper": (400, 50.0), "walker2d": (400, 30.0)}


@pytest.mark.parametrize("task", MOPO)
def test_morel_has_the_published_horizons_and_costs_of_each_robot(task: str) -> None:
    imagination = load_config("train", "morel", [f"dataset=d4rl:{task}"]).imagination
    assert isinstance(imagination, BranchedSettings)
    assert (imagination.horizon, imagination.stop.cost) == MOREL[task.split("-")[0]]
    assert (imagination.stop.kind, imagination.penalty.kind) == ("absorb", "none")
    assert imagination.stop.measure == "max_pairwise_diff"


# (penalty weight, selector) of MOREC-MOPO and inconsistency weight of MOREC-MOBILE, authors' code.
MOREC = {
    "halfcheetah-random-v2": (0.5, "softmax", 0.25),
    "halfcheetah-medium-v2": (0.5, "argmax", 0.25),
    "halfcheetah-medium-replay-v2": (0.5, "softmax", 0.25),
    "halfcheetah-medium-expert-v2": (0.5, "argmax", 1.0),
    "hopper-random-v2": (10.0, "argmax", 7.5),
    "hopper-medium-v2": (15.0, "softmax", 1.5),
    "hopper-medium-replay-v2": (15.0, "softmax", 0.5),
    "hopper-medium-expert-v2": (15.0, "softmax", 1.5),
    "walker2d-random-v2": (1.0, "softmax", 1.0),
    "walker2d-medium-v2": (0.5, "softmax", 0.75),
    "walker2d-medium-replay-v2": (0.25, "argmax", 0.1),
    "walker2d-medium-expert-v2": (1.0, "softmax", 0.25),
}


@pytest.mark.parametrize(("task", "expected"), MOREC.items())
def test_morec_has_the_published_settings_of_each_task(
    task: str, expected: tuple[float, str, float]
) -> None:
    weight, selector, inconsistency = expected
    first = load_config("train", "morec", [f"dataset=d4rl:{task}"])
    second = load_config("train", "morec-mobile", [f"dataset=d4rl:{task}"])
    assert isinstance(first.imagination, BranchedSettings)
    assert isinstance(second.imagination, BranchedSettings)
    assert isinstance(second.learner, MOBILESettings)
    penalty = first.imagination.penalty
    assert (penalty.kind, penalty.weight, penalty.scale) == ("max_aleatoric", weight, "none")
    assert first.imagination.filter.kind == "dynamics_reward"
    assert first.imagination.filter.selector == selector
    assert second.learner.inconsistency_weight == inconsistency
    assert second.learner.entropy_in_target == (task != "hopper-random-v2")
    assert second.learner.temperature == "auto"
    assert second.learner.target_min == 0
    assert second.imagination.real_ratio == (
        0.5 if task == "halfcheetah-medium-expert-v2" else 0.05
    )
    assert (second.model.max_epochs == 30) == (task == "walker2d-medium-v2")
    for imagination, networks in (first.imagination, 40), (second.imagination, 10):
        chooses = imagination.filter
        assert chooses.kind == "dynamics_reward"
        assert (imagination.horizon, imagination.batch_size) == (100, 2000)
        assert (chooses.samples_per_elite, chooses.limit, chooses.on_filter) == (2, 0.6, "terminal")
        assert chooses.networks == networks


def test_morec_rows_are_all_tested() -> None:
    for name in "morec", "morec-mobile":
        assert set(recipes.read("train", name)[-1].tasks) == {*MOREC, recipes.OTHER}


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
        learner = config.learner
        assert (learner.num_critics, learner.target_critics, learner.batch_size) == (10, 2, 2048)
        assert (learner.actor_values, learner.critic_loss.kind) == ("mean", "huber")
    small = load_config("train", "long-horizon", ["dataset=x"])
    assert small.model.num_members == 20
    assert small.learner.kind == "sac"
    assert (small.learner.num_critics, small.learner.target_critics) == (2, None)


@pytest.mark.parametrize("name", sorted(recipes.shipped("train")))
def test_a_task_with_a_row_anywhere_gets_no_row_for_unknown_data(name: str) -> None:
    """Else a recipe's own row `other` would be laid over its base's published one."""
    published: set[str] = set()
    for part in recipes.read("train", name):  # the base first
        if recipes.OTHER in part.tasks:
            assert published <= set(part.tasks), part.origin
        published |= set(part.tasks) - {recipes.OTHER}


def test_ravl_has_the_fixed_numbers_on_every_task_of_mopo() -> None:
    for task in recipes.read("train", "mopo")[-1].tasks:
        learner = load_config("train", "ravl", [f"dataset=d4rl:{task}"]).learner
        assert learner.kind == "sac"
        assert learner.hidden == ((256, 256) if task == recipes.OTHER else (256, 256, 256))
        assert learner.num_critics == (50 if task.startswith("hopper") else 10)
        assert learner.diversity == (5.0 if "medium-expert" in task and "hopper" not in task else 1)


def test_the_control_without_a_model_has_the_learner_of_mopo_on_other_data() -> None:
    sac, mopo = (load_config("train", name, ["dataset=x"]) for name in ("sac", "mopo"))
    assert sac.learner == mopo.learner


@pytest.mark.parametrize("name", ["cql", "td3bc", "rebrac", "prdc", "sac-n", "edac", "iql"])
def test_returns_of_zero_or_one_are_measured_over_a_hundred_episodes(name: str) -> None:
    for task in recipes.read("train", name)[-1].tasks:
        if task.startswith(("antmaze", "maze2d")):
            config = load_config("train", name, [f"dataset=d4rl:{task}"])
            assert config.evaluation.episodes == 100


def test_h2o_has_the_published_settings() -> None:
    config = load_config("train", "h2o", ["dataset=d4rl:halfcheetah-medium-replay-v2"])
    learner, imagination = config.learner, config.imagination
    assert imagination.kind == "simulator"
    assert (imagination.real_ratio, learner.batch_size) == (0.5, 256)
    assert learner.kind == "h2o"
    assert (learner.conservative_weight, learner.gap_samples, learner.gap_noise) == (0.01, 10, 1.0)
    assert learner.discriminator_hidden == learner.hidden == (256, 256)
    assert (learner.discriminator_noise, learner.max_temperature) == (0.1, None)
    assert not learner.entropy_in_target


def test_a_row_needs_the_exact_dataset_name() -> None:
    generic = load_config("train", "mopo", ["dataset=x"]).imagination
    for source in ("d4rl:hopper-medium-v0", "hopper-medium-v2", "minari:hopper-medium-v2"):
        assert load_config("train", "mopo", [f"dataset={source}"]).imagination == generic


# Rewards, shift, expectile, inverse temperature and dropout of the official code.
IQL = {
    "halfcheetah-medium-v2": ("return_range", 0.0, 0.7, 3.0, 0.0),
    "hopper-medium-replay-v2": ("return_range", 0.0, 0.7, 3.0, 0.0),
    "walker2d-medium-expert-v2": ("return_range", 0.0, 0.7, 3.0, 0.0),
    "antmaze-umaze-v0": ("none", -1.0, 0.9, 10.0, 0.0),
    "antmaze-large-diverse-v2": ("none", -1.0, 0.9, 10.0, 0.0),
    "pen-human-v0": ("none", 0.0, 0.7, 0.5, 0.1),
    "relocate-cloned-v1": ("none", 0.0, 0.7, 0.5, 0.1),
    "kitchen-mixed-v0": ("none", 0.0, 0.7, 0.5, 0.1),
    "maze2d-umaze-v1": ("none", 0.0, 0.7, 3.0, 0.0),
}


@pytest.mark.parametrize(("task", "expected"), IQL.items())
def test_iql_has_the_published_settings_of_each_task(
    task: str, expected: tuple[str, float, float, float, float]
) -> None:
    config = load_config("train", "iql", [f"dataset=d4rl:{task}"])
    learner, dataset = config.learner, config.dataset
    assert isinstance(learner, IQLSettings)
    rewards = (dataset.reward_normalization, dataset.reward_shift)
    assert (*rewards, learner.expectile, learner.inverse_temperature, learner.dropout) == expected
    assert (learner.policy, learner.quantile, learner.num_critics) == ("gaussian", None, 2)


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


#: (scale, shift) of rewards that the published antmaze settings are for.
ANTMAZE_REWARDS = {
    "td3bc": (1.0, -1.0),
    "iql": (1.0, -1.0),
    "cql": (10.0, -5.0),
    "rebrac": (100.0, 0.0),
    "prdc": (10_000.0, -1.0),
}


@pytest.mark.parametrize(("recipe", "expected"), ANTMAZE_REWARDS.items())
@pytest.mark.parametrize("maze", ["umaze", "medium-play", "large-diverse"])
def test_antmaze_rewards_are_scaled_as_published(
    recipe: str, maze: str, expected: tuple[float, float]
) -> None:
    dataset = load_config("train", recipe, [f"dataset=d4rl:antmaze-{maze}-v2"]).dataset
    assert (dataset.reward_scale, dataset.reward_shift) == expected
