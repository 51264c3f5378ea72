"""A run whose learner has an encoder: its stages, exact continuation, and a policy by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldrl import api
from worldrl.errors import WorldRLError
from worldrl.models.anchors import anchors, is_anchor_network, seek
from worldrl.training import loop
from worldrl.training.checkpoint import last_checkpoint, load, load_model
from worldrl.training.logged import Logged, logged
from worldrl.training.run_directory import RunDirectory
from worldrl.training.world.anchors import backward
from worldrl.training.world.world_model import load_world

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {
    "population": 2,
    "threads": 1,
    "num_updates": 12,
    "log_every": 3,
    "checkpoint_every": 4,
    "termination.kind": "never",
    "model.hidden": [8],
    "model.num_members": 3,
    "model.num_elites": 2,
    "model.max_epochs": 2,
    "model.batch_size": 8,
    "learner.hidden": [8],
    "learner.batch_size": 8,
    "learner.encoder.kind": "cocoa",
    "learner.encoder.seeker.max_epochs": 2,
    "learner.encoder.seeker.batch_size": 64,
}
IMAGINES = {"imagination.batch_size": 10, "imagination.horizon": 2, "imagination.every": 5}


def train(recipe: str, data: Path, out: Path, **changes: Any) -> Path:
    given = {"dataset": data, **SETTINGS, **changes}
    return api.train(api.load_config("train", recipe, given), out, quiet=True).run


def stages(run: Path) -> list[str]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return list(dict.fromkeys(line["stage"] for line in lines))


def final(run: Path) -> dict[str, torch.Tensor]:
    last = last_checkpoint(RunDirectory.open(run))
    assert last is not None
    saved = load(last)
    return saved.model | saved.state


def test_without_imagination_a_world_is_learned_all_the_same(
    tiny_file: Path, tmp_path: Path
) -> None:
    run = train("iql", tiny_file, tmp_path / "run")
    assert stages(run) == ["pretrain", "reverse", "seeker", "train"]
    policy = api.load_policy(run)
    world = load_world(run / "model", CPU).world.ensemble.of_elites()
    seeker = load_model(run / "encoder" / "seeker").tensors
    own = {name.removeprefix("policy/"): value for name, value in final(run).items()}
    observation = torch.randn(2, 5, policy.observation_size)
    wanted = world.predict(observation, seek(seeker, observation)).mean[..., :-1].mean(1)
    torch.testing.assert_close(anchors(own, observation, 1), wanted)

    before = policy(observation)
    for folder in "model", "encoder":
        shutil.rmtree(run / folder)
    assert api.load_policy(run)(observation).equal(before)


@pytest.mark.parametrize(("recipe", "changes"), [("cocoa", IMAGINES), ("cql", {})])
def test_killed_in_every_stage_it_ends_as_if_it_had_not_been(
    recipe: str,
    changes: dict[str, Any],
    tiny_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = train(recipe, tiny_file, tmp_path / "whole", **changes)
    save = loop.save
    killed: list[str] = []

    def save_and_die(stage: Any, *rest: Any) -> None:
        save(stage, *rest)
        if (stage.name, stage.step) not in killed:
            killed.append((stage.name, stage.step))
            raise MemoryError

    monkeypatch.setattr(loop, "save", save_and_die)
    with pytest.raises(MemoryError):
        train(recipe, tiny_file, tmp_path / "run", **changes)
    for _ in range(1_000):
        try:
            run = api.resume(tmp_path / "run", quiet=True).run
            break
        except MemoryError:
            continue
    assert {stage for stage, _ in killed} == {"pretrain", "reverse", "seeker", "train"}
    found = final(run)
    frozen = [name for name in found if is_anchor_network(name)]
    assert frozen
    assert all(name.startswith("policy/") for name in frozen)  # held once
    for name, value in final(whole).items():
        assert torch.equal(found[name], value), name
    rows = [
        [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (path / "metrics.jsonl").read_text().splitlines()
        ]
        for path in (whole, run)
    ]
    assert rows[0] == rows[1]


def test_a_member_equals_its_lone_run(tiny_file: Path, tmp_path: Path) -> None:
    both = final(train("iql", tiny_file, tmp_path / "both"))
    lone = final(train("iql", tiny_file, tmp_path / "lone", population=1, seed=1))
    for name, value in lone.items():
        assert both[name][1:].equal(value), name


def test_a_given_model_serves_learners_of_the_data_alone(tiny_file: Path, tmp_path: Path) -> None:
    model = {name: value for name, value in SETTINGS.items() if name.startswith("model.")}
    given = {"dataset": tiny_file, "population": 2, "termination.kind": "never", **model}
    api.pretrain(api.load_config("pretrain", "ensemble", given), tmp_path / "m", quiet=True)
    settings = {name: value for name, value in SETTINGS.items() if name not in model}
    given = {"dataset": tiny_file, "model": tmp_path / "m", **settings}
    run = api.train(api.load_config("train", "bc", given), tmp_path / "run", quiet=True).run
    assert stages(run) == ["reverse", "seeker", "train"]
    without = {name: value for name, value in given.items() if "encoder" not in name}
    with pytest.raises(WorldRLError, match="nothing would use the model"):
        api.load_config("train", "bc", without)


def test_data_that_no_reverse_model_can_be_learned_from_is_refused(
    tiny_file: Path, tmp_path: Path
) -> None:
    train("iql", tiny_file, tmp_path / "m", num_updates=1)
    np.savez(  # two steps, and after the second nothing was recorded
        tmp_path / "few.npz",
        observations=np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32),
        actions=np.zeros((2, 2), np.float32),
        rewards=np.arange(2, dtype=np.float32),
        terminated=np.zeros(2, bool),
        truncated=np.array([False, True]),
    )
    settings = {name: value for name, value in SETTINGS.items() if not name.startswith("model.")}
    given = {"dataset": tmp_path / "few.npz", "model": tmp_path / "m", **settings}
    with pytest.raises(WorldRLError, match=r"at least 2 .* Set learner.encoder.kind=none"):
        api.train(api.load_config("train", "iql", given), tmp_path / "run", quiet=True)


def test_the_reverse_model_learns_the_same_rows_backward(tiny_file: Path) -> None:
    rows: Logged = logged(api.load_dataset(tiny_file), CPU)
    back, forth = backward(rows).transitions, rows.transitions
    assert back.observation.equal(forth.next_observation)
    assert back.next_observation.equal(forth.observation)
    assert back.action.equal(forth.action)
    assert backward(rows).next_known.equal(rows.next_known)


def test_a_run_ends_at_a_seeker_that_never_learned(tiny_file: Path, tmp_path: Path) -> None:
    changes = {"learner.encoder.seeker.learning_rate": 1e38}
    with pytest.raises(WorldRLError, match=r"seeker of the encoder diverged for seed.s. \[0, 1\]"):
        train("iql", tiny_file, tmp_path / "run", **changes)
