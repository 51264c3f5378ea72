"""Metrics: every row whole and once, whatever was cut; the CSV and TensorBoard copies agree."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldrl.errors import ConfigError, RunError
from worldrl.training.metrics import MetricsWriter, read_metrics, truncate_after, write_csv


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def write(path: Path, *positions: tuple[str, int]) -> None:
    with MetricsWriter(path) as metrics:
        for stage, step in positions:
            metrics.write(stage, step, 0.1, {"loss": float(step)})


def positions(path: Path) -> list[tuple[str, int]]:
    return [(row["stage"], row["step"]) for row in read_metrics(path)]


def test_rows_hold_what_was_written(path: Path) -> None:
    with MetricsWriter(path) as metrics:
        values = {
            "loss": 0.1,
            "tensor": torch.tensor([0.5, 1.5]),
            "array": np.float32(0.25),
            "per member and head": np.array([[1, 2], [3, 4]]),
            "env_id": "Pendulum-v1",
        }
        metrics.write("train", 10, 1.23456, values)
        # There before the writer is closed, for whoever watches the file.
        assert read_metrics(path) == [
            {"stage": "train", "step": 10, "seconds": 1.235, "loss": 0.1, "tensor": [0.5, 1.5]}
            | {"array": 0.25, "per member and head": [[1, 2], [3, 4]], "env_id": "Pendulum-v1"}
        ]
        metrics.sync()


def test_what_is_not_finite_is_named(path: Path) -> None:
    with MetricsWriter(path) as metrics:
        values = {"a": math.nan, "b": [1.0, -math.inf], "c": torch.ones(2), "d": None}
        metrics.write("train", 1, 0, values)

    def refuse(token: str) -> None:
        pytest.fail(f"{token} is not JSON")

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row["nonfinite"] == ["a", "b"]
    assert (row["a"], row["b"], row["c"], row["d"]) == (None, [1.0, None], [1.0, 1.0], None)


def test_names_and_stages_that_would_confuse_are_refused(path: Path) -> None:
    with MetricsWriter(path) as metrics:
        with pytest.raises(ValueError, match="reserved"):
            metrics.write("train", 1, 0, {"step": 1.0})
        with pytest.raises(ValueError, match="unknown stage"):
            metrics.write("trian", 1, 0, {})
    assert read_metrics(path) == []


def test_truncating_drops_what_comes_again(path: Path) -> None:
    truncate_after(path, "train", 5)  # nothing yet
    assert not path.exists()
    full = [("pretrain", 5), ("pretrain", 10), ("train", 5), ("train", 10), ("train", 15)]
    for stage, step, count in (("train", 10, 4), ("train", 7, 3), ("pretrain", 10, 2)):
        path.unlink(missing_ok=True)
        write(path, *full)
        truncate_after(path, stage, step)
        assert positions(path) == full[:count]
    write(path, ("train", 5))
    assert positions(path) == [*full[:2], ("train", 5)]


@given(cut=st.integers(0, 200), tail=st.sampled_from([b"", b"\x00" * 9, b"\n", b"\xff", b"{}\n"]))
def test_a_file_cut_anywhere_is_repaired(tmp_path_factory, cut: int, tail: bytes) -> None:
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    rows = [("train", step) for step in (1, 2, 3)]
    write(path, *rows)
    content = path.read_bytes()
    path.write_bytes(content[:cut] + tail)
    # The row whose newline alone is missing is whole.
    ends = [index for index, byte in enumerate(content) if byte == 0x0A]
    whole = sum(end <= cut for end in ends)
    if cut in ends and tail and tail != b"\n":
        whole -= 1
    assert positions(path) == rows[:whole]
    write(path, ("train", 9))
    assert positions(path) == [*rows[:whole], ("train", 9)]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_damage_in_the_middle_is_not_hidden(path: Path) -> None:
    write(path, ("train", 1), ("train", 2), ("train", 3))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:9], lines[2], ""]))
    for act in (read_metrics, MetricsWriter, lambda path: truncate_after(path, "train", 1)):
        with pytest.raises(RunError, match=r"metrics\.jsonl is damaged: line 2 of"):
            act(path)


def test_a_missing_file(path: Path) -> None:
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be read"):
        read_metrics(path)


def test_killed_while_writing(path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from worldrl.training.metrics import MetricsWriter
        metrics = MetricsWriter(Path(sys.argv[1]))
        for step in range(10**9):
            metrics.write("train", step, 0, {"losses": [0.1] * 50})
    """
    for _ in range(3):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(path)])
        while not path.exists() or path.stat().st_size < 100_000:
            time.sleep(0.01)
        process.kill()
        process.wait(timeout=60)
        assert [step for _, step in positions(path)] == list(range(len(positions(path))))
        truncate_after(path, "train", 10)
        assert [step for _, step in positions(path)] == list(range(11))


def test_csv_has_a_column_for_every_value(path: Path) -> None:
    with MetricsWriter(path) as metrics:
        metrics.write("pretrain", 1, 0.5, {"nll": [1.0, 2.0]})
        metrics.write("train", 1, 1.5, {"q": [[1.0, math.nan]], "note": 'a "quoted", text'})
    with open(path.with_suffix(".csv"), newline="") as file:
        first, second = csv.DictReader(file)
    assert first["nll.0"] == "1.0"
    assert first["nll.1"] == "2.0"
    assert first["q.0.0"] == ""
    assert second["q.0.0"] == "1.0"
    assert second["q.0.1"] == ""
    assert second["nonfinite"] == "q"
    assert second["note"] == 'a "quoted", text'
    before = path.with_suffix(".csv").read_text()
    assert write_csv(path).read_text() == before


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="needs the package tensorboard"
)
def test_tensorboard_shows_every_step_once_after_a_resume(path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = path.parent / "tensorboard"
    with MetricsWriter(path, folder) as metrics:
        for step in (1, 2, 3):
            metrics.write("train", step, 0, {"loss": [float(step), math.nan]})
    truncate_after(path, "train", 2)
    with MetricsWriter(path, folder) as metrics:
        metrics.write("train", 3, 0, {"loss": [30.0, 0.0]})
    events = EventAccumulator(str(folder))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss/0")]
    assert shown == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [event.step for event in events.Scalars("train/loss/1")] == [3]


def test_tensorboard_that_is_not_installed(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'worldrl\[tensorboard\]'"):
        MetricsWriter(path, path.parent / "tensorboard")


def test_a_full_disk_says_so(path: Path) -> None:
    script = """
        import resource, sys
        from pathlib import Path
        from worldrl.errors import RunError
        from worldrl.training.metrics import MetricsWriter
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))
        try:
            with MetricsWriter(Path(sys.argv[1])) as metrics:
                for step in range(1000):
                    metrics.write("train", step, 0, {"loss": 0.1})
        except RunError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "metrics.jsonl: File too large" in done.stdout, done.stderr
    assert done.stderr == ""
    kept = positions(path)
    assert kept == [("train", step) for step in range(len(kept))]
    assert len(kept) > 50
