"""What a run refuses before any work, and what a resumed run says at its end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldrl import api
from worldrl.errors import WorldRLError
from worldrl.training import checkpoint
from worldrl.training.environment import settings_restored
from worldrl.training.execution import Execution
from worldrl.training.run_directory import RunDirectory

QUICK = {"num_updates": 20, "learner.hidden": [8], "learner.batch_size": 8, "log_every": 10}
MODEL = {"model.hidden": [8], "model.max_epochs": 1, "threads": 1}


@pytest.mark.parametrize(
    ("recipe", "settings", "words"),
    [
        ("mopo", {"dataset": "none.npz"}, "does not exist"),
        ("mopo", {"termination.kind": "formula"}, "no formula is known"),
        ("sac", {"eval_every": 10}, "does not name the environment"),
        ("sac", {"eval_every": 10, "evaluation.env_id": "Nothing-v1"}, "no environment"),
        ("mopo", {"model": "none"}, "there is no run"),
        ("mopo", {"imagination.batch_size": 10**12}, "synthetic buffer needs"),
    ],
)
def test_what_cannot_run_is_refused_before_any_work_and_leaves_no_directory(
    recipe: str, settings: dict[str, object], words: str, tiny_file: Path, tmp_path: Path
) -> None:
    model = {} if "model" in settings or recipe == "sac" else MODEL
    given = {"dataset": tiny_file, **QUICK, **model, **settings}
    with pytest.raises(WorldRLError, match=words):
        api.train(api.load_config("train", recipe, given), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_data_that_cannot_be_drawn_as_asked_is_refused_before_a_model_is_trained(
    tmp_path: Path,
) -> None:
    ends = np.arange(30) % 10 == 9
    random = np.random.default_rng(0)
    observations = random.normal(size=(30, 4)).astype(np.float32)
    np.savez(
        tmp_path / "few.npz",
        observations=observations,
        actions=np.zeros((30, 1), np.float32),
        rewards=random.normal(size=30).astype(np.float32),
        next_observations=np.roll(observations, -1, 0),
        terminated=ends,
        truncated=np.zeros(30, bool),
    )
    given = {"dataset": tmp_path / "few.npz", **QUICK, **MODEL, "sampling": "advantage_weighted"}
    config = api.load_config("train", "mopo", {**given, "imagination.real_ratio": 0.5})
    with pytest.raises(WorldRLError, match=r"3 episodes .* too few"):
        api.train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ({"device": "cuda"}, "finds no CUDA device here"),
        ({"flush_denormal": True}, "in a process of its own"),
    ],
)
def test_a_resumed_run_keeps_to_what_was_decided(
    before: dict[str, object], words: str, tiny_file: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("worldrl.training.environment._flushes_denormals", lambda *_, **__: False)
    config = api.load_config("train", "bc", {"dataset": tiny_file, "device": "auto"})
    saved = checkpoint.Checkpoint({}, {}, before)
    with (
        RunDirectory.create(tmp_path / "run", config) as run,
        settings_restored(),
        pytest.raises(WorldRLError, match=words),
    ):
        Execution(run, config, saved)


def test_warnings_of_the_data_are_said_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zeros = np.zeros(40, np.float32)
    np.savez(
        tmp_path / "zero.npz",
        observations=np.random.default_rng(0).normal(size=(40, 2)),
        actions=np.zeros((40, 1), np.float32),
        rewards=zeros,
        terminated=zeros,
    )
    config = api.load_config("train", "bc", {"dataset": tmp_path / "zero.npz", **QUICK})
    result = api.train(config, tmp_path / "run", quiet=True)
    assert "worldrl: warning: all rewards are zero" in capsys.readouterr().err
    recorded = json.loads((result.run / "dataset.json").read_text())["measures"]["warnings"]
    assert any("all rewards are zero" in warning for warning in recorded)


@pytest.mark.parametrize("stage", ["pretrain", "train"])
def test_killed_after_its_last_checkpoint_a_run_still_ends_with_its_metrics(
    stage: str, tiny_file: Path, tmp_path: Path
) -> None:
    given = {"dataset": tiny_file, **MODEL, "termination.kind": "never"}
    if stage == "pretrain":
        config = api.load_config("pretrain", "ensemble", given)
        done = api.pretrain(config, tmp_path / "run", quiet=True)
        model = tmp_path / "run" / "model"
        before = (model / "model.json").read_bytes()
        for file in model.iterdir():
            file.unlink()
        model.rmdir()
    else:
        config = api.load_config("train", "sac", {"dataset": tiny_file, **QUICK})
        done = api.train(config, tmp_path / "run", quiet=True)
    with RunDirectory.open(tmp_path / "run", exclusive=True) as run:
        run.write_status(replace(run.read_status(), state="running", metrics={}))
    again = api.resume(tmp_path / "run", quiet=True)
    assert again.metrics.keys() == done.metrics.keys()
    assert again.metrics == done.metrics
    if stage == "pretrain":
        assert (model / "model.json").read_bytes() == before


def test_the_world_model_records_how_good_it_is(tiny_file: Path, tmp_path: Path) -> None:
    given = {"dataset": tiny_file, **MODEL, "termination.kind": "never", "population": 2}
    api.pretrain(api.load_config("pretrain", "ensemble", given), tmp_path / "run", quiet=True)
    facts = json.loads((tmp_path / "run" / "model" / "model.json").read_text())["plain"]
    quality = facts["quality"]
    assert len(quality["one_step"]["nll"]) == len(facts["metrics"]["test_nll"]) == 2
    assert quality["terminal"]["precision"] == [None, None]  # never: it predicts no end
    assert len(quality["terminal"]["recall"]) == 2
    assert quality["open_loop"] is None  # 12 episodes: none can be spared


def test_a_run_on_a_given_model_records_that_models_settings(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"dataset": tiny_file, **MODEL, "termination.kind": "never"}
    api.pretrain(api.load_config("pretrain", "ensemble", given), tmp_path / "m", quiet=True)
    monkeypatch.chdir(tmp_path)  # the path is relative when it is given, and whole afterwards
    imagination = {"imagination.batch_size": 8, "imagination.horizon": 2}
    settings = {"dataset": tiny_file, "model": "m", **QUICK, **imagination}
    result = api.train(api.load_config("train", "mopo", settings), tmp_path / "run", quiet=True)
    recorded = api.load_config("train", str(result.run / "config.yaml")).model
    assert recorded.hidden == (8,)
    assert recorded.max_epochs == 1
    assert recorded.source == str(tmp_path / "m")
