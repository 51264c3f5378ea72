"""Does it learn? The demo's task in full, and short budgets on recorded data.

Bounds are loose: they tell what learns from what runs. Scores worth quoting are in docs/results.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import worldrl
from worldrl.data.collect import collect
from worldrl.data.export import export
from worldrl.envs import make


def test_pendulum_is_learned_from_random_actions_inside_the_model(tmp_path: Path) -> None:
    """What tools/demo does: random actions return about -1,200, and -200 is asked for."""
    logged = collect(lambda: make("Pendulum-v1"), 20_000, seed=0)
    export(logged, tmp_path / "random.npz")
    config = worldrl.load_config("train", "pendulum", {"dataset": tmp_path / "random.npz"})
    result = worldrl.train(config, tmp_path / "run", quiet=True)
    assert result.status == "finished"
    assert worldrl.evaluate(result.run, episodes=20).to_json()["return_mean"] > -200


def test_cloning_learns_from_recorded_hopper_data(
    recorded: Callable[[str], Path], tmp_path: Path
) -> None:
    """3,000 updates; the data returns 213 on average, a random policy 17."""
    source = recorded("mujoco/hopper-replay-sb3.hdf5")
    config = worldrl.load_config("train", "bc", {"dataset": source, "num_updates": 3_000})
    result = worldrl.train(config, tmp_path / "run", quiet=True)
    assert worldrl.evaluate(result.run, episodes=10).to_json()["return_mean"] > 80


@pytest.mark.slow
def test_mopo_beats_recorded_hopper_data(recorded: Callable[[str], Path], tmp_path: Path) -> None:
    """The default recipe, a shorter model and 15,000 updates: minutes."""
    source = recorded("mujoco/hopper-replay-sb3.hdf5")
    settings = {"dataset": source, "num_updates": 15_000, "model.max_epochs": 25, "threads": 1}
    result = worldrl.train(
        worldrl.load_config("train", "mopo", settings), tmp_path / "run", quiet=True
    )
    assert result.status == "finished"
    assert worldrl.evaluate(result.run, episodes=10).to_json()["return_mean"] > 213


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["wsrl", "rlpd"])
def test_finetuning_learns_pendulum_from_a_bad_policy(recipe: str, tmp_path: Path) -> None:
    """A policy of 200 updates on random actions returns below -900; 5,000 steps make it swing."""
    logged = collect(lambda: make("Pendulum-v1"), 5_000, seed=0)
    export(logged, tmp_path / "random.npz")
    small = {"learner.hidden": [64, 64], "threads": 1}
    offline = {"dataset": tmp_path / "random.npz", "num_updates": 200, "learner.layer_norm": True}
    bad = worldrl.train(
        worldrl.load_config("train", "sac", {**offline, **small}), tmp_path / "bad", quiet=True
    )
    before = worldrl.evaluate(bad.run, episodes=10).to_json()["return_mean"]
    settings = {
        "run": bad.run, "num_steps": 5_000, "warmup_steps": 500, "updates_per_step": 4,
        "learner.actor_every": 4, "learner.actor_learning_rate": 1e-3,
        "learner.critic_learning_rate": 1e-3, "learner.temperature_learning_rate": 1e-3,
        **({"learner.hidden": [64, 64]} if recipe == "rlpd" else {}), "threads": 1,
        "learner.batch_size": 128, "compile": True,
    }  # fmt: skip
    config = worldrl.load_config("finetune", recipe, settings)
    result = worldrl.finetune(config, tmp_path / "run", quiet=True)
    after = worldrl.evaluate(result.run, episodes=10).to_json()["return_mean"]
    assert before < -900
    assert after > -250
