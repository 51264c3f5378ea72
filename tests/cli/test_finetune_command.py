"""``worldrl finetune`` from an offline run to an evaluated one: killed, resumed, and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from worldrl import api
from worldrl.cli.main import main
from worldrl.data.collect import collect
from worldrl.data.export import export
from worldrl.envs import make
from worldrl.training.checkpoint import last_checkpoint, load
from worldrl.training.run_directory import RunDirectory

SMALL = ["learner.batch_size=16", "threads=1", "compile=false"]
QUICK = [*SMALL, "num_steps=420", "warmup_steps=60", "log_every=20", "checkpoint_every=50"]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of several learners, 20 updates on 400 random steps of Pendulum: ``sac`` has two
    members."""
    folder = tmp_path_factory.mktemp("offline")
    export(collect(lambda: make("Pendulum-v1"), 400, seed=0), folder / "pendulum.npz")
    for recipe, population in ("sac", 2), ("bc", 1), ("td3bc", 1):
        settings = {
            "dataset": folder / "pendulum.npz", "num_updates": 20, "learner.hidden": [8, 8],
            "learner.batch_size": 16, "log_every": 10, "threads": 1, "population": population,
        }  # fmt: skip
        config = api.load_config("train", recipe, settings)
        api.train(config, folder / recipe, quiet=True)
    return folder


def command(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "worldrl", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def rows(file: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def test_killed_and_resumed_it_ends_bit_identical(offline: Path, tmp_path: Path) -> None:
    """Twice, in the middle of episodes of 200 steps: every transition, weight and metric."""
    words = [str(offline / "sac"), *QUICK, "eval_every=150", "evaluation.episodes=1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert command("finetune", *words, "--out", str(whole)).wait() == 0
    start = ["finetune", *words, "--out", str(killed)]
    for reached in (110, 260):
        process = command(*start)
        while process.poll() is None and steps(killed) < reached:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.communicate()[1]
        start = ["resume", str(killed)]
    process = command(*start)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    assert "does not come out" not in said

    ends = []
    for run in whole, killed:
        last = last_checkpoint(RunDirectory.open(run))
        assert last is not None
        ends.append(load(last))
    assert ends[0].plain["progress"] == ends[1].plain["progress"]
    for one, other in zip(ends[0][:2], ends[1][:2], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert ends[0].state["refreshes/rows"].shape[1] == 420
    for file in "metrics.jsonl", "eval.jsonl":
        assert rows(whole / file) == rows(killed / file)
    assert [row["step"] for row in rows(whole / "eval.jsonl")] == [0, 150, 300, 420]


def steps(run: Path) -> int:
    try:
        return int(json.loads((run / "status.json").read_text())["step"])
    except (OSError, ValueError):
        return 0


def test_results_say_that_they_are_online(
    offline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["num_steps=30", "warmup_steps=20", *SMALL, "--recipe", "rlpd", "--json"]
    assert main(["finetune", str(offline / "bc"), *words, "--out", str(run)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["status"], printed["steps"]) == ("finished", 30)
    assert printed["metrics"]["updates"] == [200.0]
    assert main(["evaluate", str(run), "--episodes", "1"]) == 0
    said = capsys.readouterr().out
    assert "policy after 200 updates" in said
    assert "Marked: fine-tuned online, 30 steps in the environment a member." in said
    (row,) = rows(run / "eval.jsonl")
    assert (row["stage"], row["step"]) == ("finetune", 30)
    assert (row["online"], row["environment_steps"]) == (True, 30)
    assert main(["resume", str(run)]) == 0
    assert "nothing to resume" in capsys.readouterr().err


def test_a_policy_before_its_first_update_is_the_runs(offline: Path, tmp_path: Path) -> None:
    for recipe in "sac", "td3bc":
        out = tmp_path / recipe
        config = api.load_config(
            "finetune", "wsrl",
            {"run": offline / recipe, "num_steps": 11, "warmup_steps": 10, "learner.batch_size": 8,
             "learner.actor_learning_rate": 1e-30, "checkpoint_every": 5, "threads": 1},
        )  # fmt: skip
        api.finetune(config, out, quiet=True)
        before, after = api.load_policy(offline / recipe), api.load_policy(out)
        seen = torch.randn(before.population, 4, 3)
        torch.testing.assert_close(after(seen), before(seen), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("run", "words", "said"),
    [
        ("sac", ["env_id=Hopper-v5"], "Set allow_other_environment=true"),
        ("sac", ["env_id=Nothing-v9", "allow_other_environment=true"], "no environment is regis"),
        (
            "sac",
            ["env_id=MountainCarContinuous-v0", "allow_other_environment=true"],
            "observes 2 numbers, and the data holds 3",
        ),
        ("bc", [], "--recipe rlpd"),
        ("nowhere", [], "there is no run"),
        ("sac", ["learner.hidden=9,9"], "weights=fresh"),
        ("sac", ["weights=fresh", "footing.steps=3"], "footing would be unused"),
        ("sac", ["dataset={other}"], "learned from other data"),
        ("sac", ["replay_capacity=1000000000000", "num_steps=1000000000000"], "GiB is free"),
    ],
)
def test_what_cannot_go_on_is_refused_and_leaves_no_directory(
    offline: Path, tmp_path: Path, run: str, words: list[str], said: str, capsys: Any
) -> None:
    other = tmp_path / "other.npz"
    if "dataset={other}" in words:
        export(collect(lambda: make("Pendulum-v1"), 20, seed=1), other)
    given = [word.format(other=other) for word in words]
    out = tmp_path / "out"
    assert main(["finetune", str(offline / run), *given, "--out", str(out)]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_without_weights_or_an_environment_it_says_what_is_missing(
    tiny_file: Path, tmp_path: Path
) -> None:
    for recipe, settings, words in (
        ("wsrl", {}, "no run is given to take weights from"),
        ("rlpd", {}, "does not name the environment"),
    ):
        config = api.load_config("finetune", recipe, {"dataset": tiny_file, **settings})
        with pytest.raises(api.ConfigError if recipe == "wsrl" else Exception, match=words):
            api.finetune(config, tmp_path / "run", quiet=True)
