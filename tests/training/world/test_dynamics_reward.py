"""The stage that learns a dynamics reward: exactness, snapshots, what it tells apart, and reuse."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import of_member
from torch import Tensor

from worldrl.config.filters import DynamicsRewardSettings
from worldrl.config.loader import load_config
from worldrl.errors import ConfigError, ModelError
from worldrl.models.dynamics_reward import dynamics_reward
from worldrl.rows import pack
from worldrl.training.checkpoint import load_model
from worldrl.training.compilation import compiler_available
from worldrl.training.logged import Logged
from worldrl.training.run import start
from worldrl.training.stages import Snapshot, flat
from worldrl.training.world.dynamics_reward import DynamicsRewardStage
from worldrl.types import Transitions

S, A = 3, 2
CPU = torch.device("cpu")
LONE, TOGETHER = [[4], [5], [6]], [[4, 5, 6]]


def following(observation: Tensor, action: Tensor) -> Tensor:
    """A damped drift with a push: the last dimension is pushed by both actions."""
    push = torch.cat([action, action.sum(-1, keepdim=True)], -1)
    return observation + 0.5 * push - 0.1 * observation.sin()


def toy(rows: int = 2_000) -> Logged:
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(rows, S, generator=generator)
    action = 2 * torch.rand(rows, A, generator=generator) - 1
    moved = following(observation, action) + 0.02 * torch.randn(rows, S, generator=generator)
    batch = Transitions(observation, action, torch.zeros(rows), moved, torch.zeros(rows))
    return Logged(
        pack(batch), torch.ones(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.int64), S, A,
        -np.ones(A, np.float32), np.ones(A, np.float32),
    )  # fmt: skip


def settings(**changes: Any) -> DynamicsRewardSettings:
    base = {
        "hidden": (8,), "generator_hidden": (8,), "num_updates": 130, "batch_size": 16,
        "snapshots": 3, "snapshot_every": 20,
    }  # fmt: skip
    return DynamicsRewardSettings.model_validate(base | changes)


def stage_of(
    groups: Sequence[Sequence[int]], compile_update: bool = False, **changes: Any
) -> DynamicsRewardStage:
    rows = torch.arange(0, 2_000, 2)
    return DynamicsRewardStage(settings(**changes), groups, toy(), rows, compile_update, False)


def go_on() -> bool:
    return False


def run(stage: DynamicsRewardStage) -> DynamicsRewardStage:
    stage.advance(stage.total, go_on)
    assert stage.finished
    return stage


def everything(stage: DynamicsRewardStage) -> dict[str, Tensor]:
    snapshot = stage.snapshot()
    return snapshot.model | {f"state/{name}": value for name, value in snapshot.state.items()}


def assert_same(first: DynamicsRewardStage, second: DynamicsRewardStage) -> None:
    one, other = everything(first), everything(second)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.equal(other[name]), name


@pytest.mark.parametrize("groups", [LONE, TOGETHER], ids=["groups of one", "one group"])
def test_slices_and_a_restored_snapshot_end_where_one_run_does(groups):
    whole, sliced, resumed = stage_of(groups), stage_of(groups), stage_of(groups)
    run(whole)
    for until in (1, 19, 20, 21, 59, 100, 105):
        sliced.advance(until, go_on)
        assert sliced.step == until
    held = sliced.snapshot()
    copied = Snapshot(
        {name: value.clone() for name, value in held.model.items()},
        {name: value.clone() for name, value in held.state.items()},
        json.loads(json.dumps(held.plain)),
    )
    resumed.restore(copied)
    assert resumed.step == 105
    assert_same(run(sliced), whole)
    assert_same(run(resumed), whole)
    assert resumed.report() == whole.report()


def test_members_of_a_group_are_their_lone_runs():
    together, alone = run(stage_of(TOGETHER)), run(stage_of(LONE))
    for name, value in everything(together).items():
        torch.testing.assert_close(value, everything(alone)[name], rtol=1e-4, atol=1e-5)
    weights = together.groups[0].discriminator["weight.0"]
    assert not weights[0].isclose(weights[1]).any()


def test_compiled_equals_eager():
    if not compiler_available(CPU):
        pytest.skip("no C++ compiler")
    eager, fast = run(stage_of(TOGETHER)), run(stage_of(TOGETHER, compile_update=True))
    for name, value in everything(eager).items():
        torch.testing.assert_close(value, everything(fast)[name], rtol=1e-3, atol=1e-4)


def test_the_last_snapshots_are_kept_each_as_the_discriminator_was():
    stage = stage_of(TOGETHER)
    seen = []
    for until in range(20, 121, 20):
        stage.advance(until, go_on)
        seen.append(stage.groups[0].discriminator["weight.1"].clone())
    reward = run(stage).groups[0].reward
    assert reward.num_snapshots == 3
    kept = reward.parameters["weight.1"]  # six were taken: each place was written twice
    assert kept.equal(torch.stack(seen[3:], 1))
    assert reward.logged.shape == reward.generated.shape == (3, 3)
    assert (reward.logged != reward.generated).all()


def test_it_learns_from_the_rows_it_is_given():
    logged = toy()
    spoiled = logged._replace(rows=logged.rows.clone())
    spoiled.rows[1::2] = 1e6
    rows = torch.arange(0, 2_000, 2)
    first = DynamicsRewardStage(settings(), LONE, logged, rows, False, False)
    second = DynamicsRewardStage(settings(), LONE, spoiled, rows, False, False)
    assert_same(run(first), run(second))


def test_what_diverges_is_refused():
    stage = run(stage_of(LONE))
    stage.check_learned()
    stage.groups[1].reward.logged[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"diverged for seed\(s\) \[5\]. Lower imagination.filter"):
        stage.check_learned()


def test_logged_steps_are_more_plausible_than_others():
    """In a system that is almost deterministic: the further from its law, the less plausible."""
    stage = run(
        stage_of(
            [[4]], hidden=(32, 32), generator_hidden=(32,), num_updates=2_000, batch_size=64,
            learning_rate=1e-3, snapshots=5, snapshot_every=200,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    observation = torch.randn(1, 400, S, generator=generator)
    action = 2 * torch.rand(1, 400, A, generator=generator) - 1
    true = following(observation, action)
    away = torch.randn(1, 400, S, generator=generator)
    candidates = torch.stack([true + far * away for far in (0.0, 0.1, 0.3, 1.0)], 2)
    found = dynamics_reward(stage.groups[0].reward, observation, action, candidates)[0]
    mean = found.mean(0)
    assert (mean[:-1] > mean[1:]).all()
    assert mean[0] > mean[2] + 0.2
    assert (found[:, 0] > found[:, 3]).float().mean() > 0.8


# -- as a part of a run --------------------------------------------------------------------

SMALL = [
    "threads=1", "compile=false", "num_updates=40", "log_every=20", "model.hidden=[8]",
    "model.num_members=3", "model.num_elites=2", "model.max_epochs=1", "imagination.batch_size=20",
    "imagination.horizon=3", "imagination.every=20", "learner.hidden=[8]", "learner.batch_size=16",
]  # fmt: skip
FILTER = [
    "imagination.filter.kind=dynamics_reward", "imagination.filter.reward.hidden=[8]",
    "imagination.filter.reward.generator_hidden=[8]", "imagination.filter.reward.num_updates=60",
    "imagination.filter.reward.snapshots=3", "imagination.filter.reward.snapshot_every=20",
    "imagination.filter.limit=0.2",
]  # fmt: skip


def train(data: Path, out: Path, *changes: str, recipe: str = "mopo") -> dict[str, Any]:
    config = load_config("train", recipe, [f"dataset={data}", *SMALL, *changes])
    result = start(config, out, quiet=True)
    assert result.status == "finished"
    return result.metrics


def stages_of(run: Path) -> list[str]:
    return [json.loads(line)["stage"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_world_keeps_its_dynamics_reward_and_one_without_gets_it(tiny_file, tmp_path):
    plain, first, second = tmp_path / "plain", tmp_path / "first", tmp_path / "second"
    metrics = train(tiny_file, plain)
    assert "imagined_dynamics_reward_mean" not in metrics
    assert not (plain / "reward").exists()

    seeds = ("seed=1", "population=2")
    metrics = train(tiny_file, first, f"model={plain}", *FILTER, *seeds)
    assert stages_of(first) == ["reward"] * 3 + ["train"] * 2
    assert len(metrics["imagined_dynamics_reward_mean"]) == 2
    assert all(0.31 < value < 1.32 for value in metrics["imagined_dynamics_reward_mean"])
    learned = load_model(first / "reward")
    assert learned.plain["seeds"] == [1, 2]
    assert learned.plain["steps"] == 60
    assert learned.tensors["logged"].shape == (2, 3)

    # One of its members.
    train(tiny_file, second, f"model={first}", *FILTER, "seed=2")
    assert stages_of(second) == ["train"] * 2
    reused = load_model(second / "reward")
    assert reused.plain == {**learned.plain, "seeds": [2]}
    for name, value in reused.tensors.items():
        assert value.equal(of_member(learned.tensors[name], 1))

    many = "imagination.filter.networks=4"
    with pytest.raises(ConfigError, match=r"networks is 4.*keeps 3 snapshots"):
        train(tiny_file, tmp_path / "third", f"model={first}", *FILTER, many, "seed=2")


@pytest.mark.parametrize("recipe", ["morec", "morec-mobile"])
def test_the_recipes_run(tiny_file, tmp_path, recipe):
    metrics = train(tiny_file, tmp_path / "run", *FILTER, "imagination.filter.networks=2",
                    recipe=recipe)  # fmt: skip
    assert stages_of(tmp_path / "run") == ["pretrain", "reward", "reward", "reward"] + ["train"] * 2
    assert metrics["imagined_stopped_share"] == [0.0]
    assert ("inconsistency" in metrics) == (recipe == "morec-mobile")


def test_a_reward_is_saved_whole():
    reward = run(stage_of(LONE)).groups[0].reward
    assert set(flat(reward)) == {
        "parameters/weight.0", "parameters/bias.0", "parameters/weight.1", "parameters/bias.1",
        "inputs/mean", "inputs/scale", "logged", "generated",
    }  # fmt: skip
