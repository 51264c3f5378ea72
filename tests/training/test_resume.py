"""A run that is killed and resumed ends bit-identical to one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from worldrl.data.dataset import Dataset
from worldrl.data.export import export
from worldrl.training.checkpoint import last_checkpoint, load
from worldrl.training.run_directory import RunDirectory

SETTINGS = [
    "population=2",
    "threads=1",
    "num_updates=600",
    "log_every=70",
    "checkpoint_every=90",
    "eval_every=0",
    "model.hidden=[16,16]",
    "model.num_members=3",
    "model.num_elites=2",
    "model.max_epochs=12",
    "model.batch_size=32",
    "imagination.batch_size=64",
    "imagination.horizon=3",
    "imagination.every=40",
    "imagination.retain=3",
    "learner.hidden=[16,16]",
    "learner.batch_size=32",
]


def write_dataset(path: Path) -> Path:
    """A small linear system with ends, so that rows leave rollouts early."""
    rng = np.random.default_rng(0)
    rows = 1_200
    observation = rng.normal(size=(rows, 3)).astype(np.float32)
    action = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
    following = (0.9 * observation + 0.1 * action.sum(1, keepdims=True)).astype(np.float32)
    terminated = following[:, 0] > 1.2
    truncated = ~terminated
    reward = following.sum(1)
    dataset = Dataset.from_arrays(observation, action, reward, terminated, truncated, following)
    export(dataset, path)
    return path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "worldrl", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def final(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    directory = RunDirectory.open(run)
    last = last_checkpoint(directory)
    assert last is not None
    saved = load(last)
    return saved.model, saved.state


def assert_same(first: Path, second: Path) -> None:
    for one, other in zip(final(first), final(second), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name]), name
    for world in "model/model.safetensors", "reward/model.safetensors":
        assert (first / world).exists() == (second / world).exists()
        if (first / world).exists():
            assert (first / world).read_bytes() == (second / world).read_bytes()
    rows = [
        [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in (first, second)
    ]
    assert rows[0] == rows[1]


def train(out: Path, dataset: Path, *extra: str) -> None:
    done = subprocess.run(
        command("train", "mopo", f"dataset={dataset}", *SETTINGS, *extra, "--out", str(out)),
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


STAGES = ("pretrain", "pretrain", "train", "train")
FILTER = [
    "imagination.filter.kind=dynamics_reward",
    "imagination.filter.reward.hidden=[16,16]",
    "imagination.filter.reward.generator_hidden=[16,16]",
    "imagination.filter.reward.num_updates=600",
    "imagination.filter.reward.snapshots=4",
    "imagination.filter.reward.snapshot_every=50",
]


def reached(run: Path, since: int) -> tuple[str, float]:
    """The stage that a process started at ``since`` (nanoseconds) is in, and the share done."""
    file = run / "status.json"
    if not file.exists() or file.stat().st_mtime_ns < since:
        return "", 0.0
    status = json.loads(file.read_text())
    return status["stage"], status["step"] / status["total"]


def train_killed(
    out: Path,
    dataset: Path,
    rng: random.Random,
    longest: float,
    *extra: str,
    stages: tuple[str, ...] = STAGES,
) -> None:
    """Start, kill at a random moment of each of ``stages``, resume to the end."""
    words = ["train", "mopo", f"dataset={dataset}", *SETTINGS, *extra, "--out", str(out)]
    said = out.with_suffix(".log")
    hit = set()
    for stage in (*stages, None):
        started = time.time_ns()
        with said.open("w") as log:
            process = subprocess.Popen(command(*words), env=environment(), stderr=log)
        words = ["resume", str(out)]
        if stage is None:
            break
        while reached(out, started)[0] < stage and process.poll() is None:  # names are in order
            time.sleep(0.01)
        # On a fast machine the stage would be over by then: never later than in its middle.
        moment = time.monotonic() + rng.uniform(0, longest)
        while time.monotonic() < moment and reached(out, started) < (stage, 0.5):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            hit.add(reached(out, started)[0])
        else:
            assert process.returncode == 0, said.read_text()
    assert process.wait() == 0, said.read_text()
    assert hit == set(stages)


def test_killed_and_resumed_run_is_bit_identical(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data.hdf5")
    train(tmp_path / "whole", dataset, "compile=false")
    train_killed(tmp_path / "killed", dataset, random.Random(1), 1.5, "compile=false")
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_compiled_run_is_bit_identical_after_kills(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data.hdf5")
    train(tmp_path / "whole", dataset, "compile=true")
    train_killed(tmp_path / "killed", dataset, random.Random(2), 8.0, "compile=true")
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_a_run_that_learns_a_dynamics_reward_is_bit_identical_after_kills(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data.hdf5")
    extra = ("compile=false", *FILTER)
    train(tmp_path / "whole", dataset, *extra)
    killed = tmp_path / "killed"
    train_killed(killed, dataset, random.Random(3), 1.5, *extra, stages=("reward", "train"))
    assert_same(tmp_path / "whole", killed)
    assert (killed / "reward").exists()


def test_sigterm_saves_and_exits_75_and_a_finished_run_stays(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data.hdf5")
    train(tmp_path / "whole", dataset, "compile=false")
    out = tmp_path / "stopped"
    start = command("train", "mopo", f"dataset={dataset}", *SETTINGS, "compile=false")
    process = subprocess.Popen([*start, "--out", str(out)], env=environment())
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert json.loads((out / "status.json").read_text())["state"] == "interrupted"
    for _ in range(2):
        done = subprocess.run(
            command("resume", str(out), "--json"),
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["status"] == "finished"
    assert_same(tmp_path / "whole", out)
