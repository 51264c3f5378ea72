"""Imaginations, encoders, gates, filters and fine-tuning in every combination: each is refused with
a reason, or runs, can be evaluated both ways, and can be gone on from."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from worldrl import api
from worldrl.config.fields import group_of
from worldrl.config.judging import JudgeSettings
from worldrl.config.schema import TrainConfig
from worldrl.data.collect import collect
from worldrl.data.export import export
from worldrl.envs import make
from worldrl.errors import ConfigError, ModelError, WorldRLError
from worldrl.training.checkpoint import last_checkpoint, load
from worldrl.training.judging.acceptance import Gate
from worldrl.training.online.warm_start import trained_state
from worldrl.training.run_directory import RunDirectory

SMALL: dict[str, Any] = {
    "num_updates": 6, "log_every": 3, "threads": 1, "compile": False, "population": 2,
    "learner.hidden": [8], "learner.batch_size": 8,
    "model.hidden": [8], "model.num_members": 3, "model.num_elites": 2,
    "model.max_epochs": 1, "model.batch_size": 64,
}  # fmt: skip
IMAGINED = {"imagination.batch_size": 6, "imagination.horizon": 2, "imagination.every": 3}
ADVERSARY = {"imagination.model_updates": 2, "imagination.model_batch_size": 8}
ENCODER = {
    "learner.encoder": "cocoa",
    "learner.encoder.seeker.max_epochs": 1,
    "learner.encoder.seeker.batch_size": 64,
}
GATE = {
    "acceptance": "ope", "acceptance.every": 3, "acceptance.horizon": 2,
    "acceptance.num_starts": 4, "acceptance.value_updates": 4,
}  # fmt: skip
FILTER = {
    "imagination.filter": "dynamics_reward",
    "imagination.filter.reward.num_updates": 4,
    "imagination.filter.reward.snapshots": 2,
    "imagination.filter.reward.snapshot_every": 2,
    "imagination.filter.reward.hidden": [8],
    "imagination.filter.reward.generator_hidden": [8],
    "imagination.filter.limit": 0.0,
}
KINDS = {
    "none": {},
    "branched": IMAGINED,
    "filtered": {**IMAGINED, **FILTER},
    "adversarial": {**IMAGINED, **ADVERSARY},
    "simulator": {**IMAGINED, "imagination.gravity": 2.0},
}


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cheetah.hdf5"
    export(collect(partial(make, "HalfCheetah-v5"), 120, seed=0), path)
    return path


@pytest.fixture(scope="module")
def worlds(cheetah: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("threads", "compile", "population")
    given = {key: value for key, value in SMALL.items() if key in names or key.startswith("model.")}
    config = api.load_config("pretrain", "ensemble", {"dataset": cheetah, **given})
    return api.pretrain(config, tmp_path_factory.mktemp("worlds") / "run", quiet=True).run


def test_all_kinds_of_imagination_are_here() -> None:
    group = group_of(TrainConfig.model_fields["imagination"])
    assert group is not None
    assert set(KINDS) - {"filtered"} == set(group.classes)


@pytest.mark.parametrize("gated", [False, True], ids=["all pass", "gate"])
@pytest.mark.parametrize("encoded", [False, True], ids=["as it is", "encoder"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_combination_is_refused_or_can_be_gone_on_from(
    kind: str, encoded: bool, gated: bool, cheetah: Path, worlds: Path, tmp_path: Path
) -> None:
    imagination = "branched" if kind == "filtered" else kind
    recipe = "h2o" if kind == "simulator" else ""
    chosen = {"imagination": imagination, **KINDS[kind]}
    chosen |= {**(ENCODER if encoded else {}), **(GATE if gated else {})}
    if kind == "simulator":
        chosen["learner.discriminator_hidden"] = [8]
    given = {"dataset": cheetah, **SMALL, **chosen}
    without_a_world = kind in ("none", "simulator") and not encoded
    if without_a_world and not gated:
        given = {key: value for key, value in given.items() if not key.startswith("model.")}
    if (kind == "simulator" and encoded) or (gated and without_a_world):
        with pytest.raises(ConfigError, match="imagination is"):
            api.load_config("train", recipe, given)
        return
    run = api.train(api.load_config("train", recipe, given), tmp_path / "run", quiet=True).run
    assert api.evaluate(run, episodes=1).members == 2
    settings = JudgeSettings(horizon=2, num_starts=4, value_updates=4, values=str(tmp_path / "v"))
    judged = api.evaluate_offline([run], worlds, settings=settings, quiet=True)
    assert len(judged.policies) == 2
    assert not any(one.own_worlds for one in judged.policies)

    online = {
        "run": str(run), "num_steps": 8, "warmup_steps": 4, "log_every": 4,
        "learner.batch_size": 4, "threads": 1, "compile": False,
    }  # fmt: skip
    config = api.load_config("finetune", "wsrl", {**online, "footing.steps": 0})
    tuned = api.finetune(config, tmp_path / "online", quiet=True)
    assert tuned.status == "finished"
    assert api.evaluate(tuned.run, episodes=1).members == 2
    again = api.evaluate_offline([tuned.run], worlds, settings=settings, quiet=True)
    assert len(again.policies) == 2


def test_fine_tuning_begins_from_what_the_gate_let_pass(
    cheetah: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing passes here: training goes on, and the result stays the untrained policy."""
    monkeypatch.setattr(Gate, "consider", lambda self, learner, policy, standing: standing)
    given = {"dataset": cheetah, **SMALL, "imagination": "branched", **IMAGINED, **GATE}
    run = api.train(api.load_config("train", "", given), tmp_path / "run", quiet=True).run
    policy = api.load_policy(run).parameters
    state = trained_state(str(run), api.load_dataset(str(cheetah)).metadata.sha256)
    last = last_checkpoint(RunDirectory.open(run))
    assert last is not None
    trained = load(last).state
    for name in policy:
        assert torch.equal(policy[name], state[f"actor/{name}"]), name
    assert any(not torch.equal(policy[name], trained[f"learner/actor/{name}"]) for name in policy)


def test_one_world_cannot_judge_and_is_refused_at_once(
    cheetah: Path, worlds: Path, tmp_path: Path
) -> None:
    names = ("threads", "compile")
    given = {key: value for key, value in SMALL.items() if key in names or key.startswith("model.")}
    config = api.load_config("pretrain", "ensemble", {"dataset": cheetah, **given})
    lone = api.pretrain(config, tmp_path / "lone", quiet=True).run
    asked = {"dataset": cheetah, **SMALL, "imagination": "none", **GATE}
    asked = {key: value for key, value in asked.items() if not key.startswith("model.")}
    config = api.load_config("train", "", {**asked, "model": str(lone)})
    with pytest.raises(ModelError, match="holds one world"):
        api.train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_no_simulator_is_held_against_data_while_fine_tuning() -> None:
    with pytest.raises(WorldRLError, match="here is none"):
        api.load_config("finetune", "rlpd", {"dataset": "x", "learner": "h2o"})
