"""What fine-tuning takes over from a run's settings, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from worldrl.config.learners import SACSettings
from worldrl.config.loader import dump_config, load_config, load_saved
from worldrl.config.schema import FinetuneConfig
from worldrl.errors import ConfigError

D4RL = {"dataset": "d4rl:antmaze-umaze-v2"}


@pytest.fixture
def run_of(tmp_path: Path) -> Any:
    """A run directory as far as settings go."""

    def make(recipe: str, **settings: Any) -> str:
        path = tmp_path / recipe
        path.mkdir()
        given = {"dataset": "d4rl:hopper-medium-v2", **settings}
        (path / "config.yaml").write_text(dump_config(load_config("train", recipe, given)))
        return str(path)

    return make


def loaded(run: str, recipe: str = "wsrl", **settings: Any) -> FinetuneConfig:
    return load_config("finetune", recipe, {"run": run, **settings})


def test_wsrl_goes_on_with_a_runs_networks_data_and_members(run_of: Any) -> None:
    run = run_of(
        "sac-n", **{"learner.hidden": [64, 32], "learner.num_critics": 5, "population": 2,
                    "seed": 7, "dataset.reward_scale": 3.0, "learner.discount": 0.9},
    )  # fmt: skip
    config = loaded(run)
    assert (config.seed, config.population, config.weights) == (7, 2, "run")
    assert config.dataset.source == "d4rl:hopper-medium-v2"
    assert config.dataset.reward_scale == 3.0
    learner = config.learner
    assert isinstance(learner, SACSettings)
    assert (learner.hidden, learner.init, learner.layer_norm) == ((64, 32), "edac", False)
    assert learner.discount == 0.9
    # As published, whatever the run was trained with.
    assert (learner.num_critics, learner.target_critics, learner.actor_every) == (10, 2, 4)
    assert (learner.actor_learning_rate, learner.critic_learning_rate) == (1e-4, 3e-4)
    assert learner.temperature_learning_rate == 1e-4
    assert not learner.entropy_in_target
    assert learner.max_temperature is None
    assert (config.warmup_steps, config.updates_per_step, config.offline_ratio) == (5_000, 4, 0)
    assert loaded(run, **{"learner.num_critics": 3}).learner.num_critics == 3
    file = Path(run) / "finetuned.yaml"
    file.write_text(dump_config(config))
    assert load_saved(str(file)) == config


@pytest.mark.parametrize("recipe", ["cql", "mobile", "mopo"])
def test_sac_goes_on_from_its_kin(run_of: Any, recipe: str) -> None:
    found = loaded(run_of(recipe)).learner
    assert found.kind == "sac"
    assert found.hidden == load_config("train", recipe, {"dataset": "x"}).learner.hidden
    assert found.standardize == (recipe == "cql")


@pytest.mark.parametrize("recipe", ["td3bc", "rebrac", "prdc", "iql"])
def test_other_learners_go_on_as_they_are(run_of: Any, recipe: str) -> None:
    config = loaded(run_of(recipe))
    trained = load_config("train", recipe, {"dataset": "d4rl:hopper-medium-v2"}).learner
    changed = {"actor_schedule": "constant"} if recipe == "iql" else {}
    assert config.learner == trained.model_copy(update=changed)
    assert (config.updates_per_step, config.offline_ratio) == (1, 0.0)
    mixed = loaded(config.run or "", "rlpd", weights="run")
    assert mixed.learner == config.learner
    assert (mixed.offline_ratio, mixed.warmup_policy) == (0.5, "learned")


def test_rlpd_takes_the_data_alone(run_of: Any) -> None:
    run = run_of("bc", **{"learner.hidden": [8]})
    config = loaded(run, "rlpd")
    learner = config.learner
    assert isinstance(learner, SACSettings)
    assert (learner.hidden, learner.layer_norm, learner.num_critics) == ((256, 256), True, 10)
    assert (learner.actor_values, learner.actor_every, learner.target_critics) == ("mean", 20, 2)
    assert (learner.entropy_in_target, learner.entropy_per_action) == (True, -0.5)
    assert (config.weights, config.offline_ratio, config.updates_per_step) == ("fresh", 0.5, 20)
    assert (config.warmup_policy, config.warmup_steps) == ("uniform", 5_000)
    assert config.dataset.source == "d4rl:hopper-medium-v2"


@pytest.mark.parametrize("recipe", ["wsrl", "rlpd"])
def test_a_recipe_with_a_runs_weights_keeps_its_networks(run_of: Any, recipe: str) -> None:
    run = run_of("sac", **{"learner.hidden": [8, 8], "learner.layer_norm": False})
    learner = loaded(run, recipe, weights="run").learner
    assert (learner.hidden, learner.num_critics) == ((8, 8), 10)
    assert isinstance(learner, SACSettings)
    assert not learner.layer_norm


def test_rows_of_tasks() -> None:
    """Rewards and targets on antmaze, adroit and kitchen, of a fresh start."""
    wsrl = load_config("finetune", "wsrl", D4RL)
    assert isinstance(wsrl.learner, SACSettings)
    assert (wsrl.dataset.reward_scale, wsrl.dataset.reward_shift) == (10.0, -5.0)
    assert wsrl.learner.backup_actions == 10
    adroit = load_config("finetune", "wsrl", {"dataset": "d4rl:pen-binary-v0"}).dataset
    assert (adroit.reward_scale, adroit.reward_shift) == (10.0, 5.0)
    kitchen = load_config("finetune", "wsrl", {"dataset": "d4rl:kitchen-mixed-v0"}).dataset
    assert (kitchen.reward_scale, kitchen.reward_shift) == (1.0, -4.0)
    hopper = load_config("finetune", "wsrl", {"dataset": "d4rl:hopper-medium-v2"})
    assert (hopper.dataset.reward_scale, hopper.dataset.reward_shift) == (1.0, 0.0)

    rlpd = load_config("finetune", "rlpd", D4RL)
    assert isinstance(rlpd.learner, SACSettings)
    assert (rlpd.dataset.reward_shift, rlpd.num_steps) == (-1.0, 300_000)
    assert (rlpd.learner.target_critics, rlpd.learner.entropy_in_target) == (1, False)
    assert rlpd.learner.hidden == (256, 256, 256)


def test_a_runs_rewards_stay_with_its_critics(run_of: Any) -> None:
    """The row of antmaze is for a fresh start; what its critics saw was another scale."""
    run = run_of("td3bc", **D4RL)
    assert loaded(run).dataset.reward_shift == -1.0
    assert loaded(run).dataset.reward_scale == 1.0
    fresh = loaded(run, weights="fresh").dataset
    assert (fresh.reward_scale, fresh.reward_shift) == (10.0, -5.0)


@pytest.mark.parametrize(
    ("recipe", "settings", "words"),
    [
        ("bc", {}, r"learner.kind is bc, which clones .* td3bc, rebrac, prdc or iql .*rlpd"),
        ("sac", {"learner.hidden": [9]}, r"learner.hidden is \[9\], and the weights of .*\[256"),
        ("sac", {"learner.layer_norm": False}, r"layer_norm is False, .* trained with True"),
        ("sac", {"dataset.reward_scale": 2.0}, r"reward_scale is 2.0, .* trained with 1.0"),
        ("td3bc", {"learner.kind": "rebrac"}, "learner.kind is rebrac, .* trained with td3bc"),
        ("cql", {"learner.kind": "cql"}, "is made for logged data alone"),
        ("sac", {"num_steps": 100}, "no step would be left"),
        ("sac", {"num_updates": 100}, "there is no setting 'num_updates'"),
        ("sac", {"learner.target_critics": 11}, "target_critics is 11, and num_critics is 10"),
    ],
)
def test_what_cannot_go_on_is_refused(
    run_of: Any, recipe: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        loaded(run_of(recipe), **settings)


def test_runs_that_learned_no_policy_are_refused(run_of: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run at nowhere"):
        loaded("nowhere")
    (tmp_path / "model").mkdir()
    config = load_config("pretrain", "ensemble", {"dataset": "x"})
    (tmp_path / "model" / "config.yaml").write_text(dump_config(config))
    with pytest.raises(ConfigError, match="is a run of `worldrl pretrain`"):
        loaded(str(tmp_path / "model"))
    finetuned = tmp_path / "again"
    finetuned.mkdir()
    (finetuned / "config.yaml").write_text(dump_config(loaded(run_of("sac"))))
    with pytest.raises(ConfigError, match="worldrl resume"):
        loaded(str(finetuned))


def test_a_population_goes_on_with_its_own_members_or_from_one(run_of: Any) -> None:
    three = run_of("sac", population=3)
    assert loaded(three).population == 3
    with pytest.raises(ConfigError, match=r"population is 2, and .* has 3 members"):
        loaded(three, population=2)
    assert loaded(run_of("sac-n"), population=2).population == 2
