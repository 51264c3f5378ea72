"""``pretrain``, ``train`` and ``resume`` as commands: arguments in any order, one JSON result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from worldrl.cli.main import main
from worldrl.cli.stage import finish
from worldrl.config.loader import load_config
from worldrl.training.run import RunResult

QUICK = ["num_updates=20", "learner.hidden=16", "learner.batch_size=16", "log_every=10"]
RESULT = {"run", "steps", "seconds", "metrics", "status"}


def result(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    code = main(arguments)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.out.count("\n") == 1, captured.out
    found = json.loads(captured.out)
    assert isinstance(found, dict)
    return found


def test_train_prints_one_json_object(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    found = result(
        ["train", "--json", "sac", f"dataset={tiny_file}", "--out", str(run), *QUICK], capsys
    )
    assert set(found) >= RESULT
    assert (found["run"], found["steps"], found["status"]) == (str(run), 20, "finished")
    saved = load_config("train", str(run / "config.yaml"))
    assert saved == load_config("train", "sac", [f"dataset={tiny_file}", *QUICK])

    assert main(["resume", str(run)]) == 0
    assert f"nothing to resume: {run} is finished" in capsys.readouterr().err
    again = result(["resume", "--json", str(run)], capsys)
    assert (again["steps"], again["status"], again["metrics"]) == (
        20,
        "finished",
        found["metrics"],
    )


def test_settings_may_stand_before_and_after_options(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    result(
        ["train", "bc", "seed=5", "--out", str(run), f"dataset={tiny_file}", "--json", *QUICK],
        capsys,
    )
    assert load_config("train", str(run / "config.yaml")).seed == 5


def test_pretrain_prints_one_json_object(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    small = ["model.hidden=16", "model.max_epochs=2", "termination.kind=never"]
    found = result(
        ["pretrain", "ensemble", f"dataset={tiny_file}", *small, "--out", str(run), "--json"],
        capsys,
    )
    assert set(found) >= RESULT
    assert found["steps"] > 0


def test_without_json_the_result_is_a_table(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", "bc", f"dataset={tiny_file}", "--out", str(run), *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["status", "finished"]
    assert lines[1].split() == ["run", str(run)]


@pytest.mark.parametrize("arguments", [["train", "bc"], ["pretrain", "ensemble"]])
def test_errors_of_the_data_and_the_directory_are_paragraphs(
    arguments: list[str], tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = [*arguments, f"dataset={tmp_path / 'none.npz'}", "--out", str(tmp_path / "a")]
    occupied = [*arguments, f"dataset={tiny_file}", "--out", str(tmp_path)]
    for case in (missing, occupied, ["resume", str(tmp_path / "none")]):
        assert main(case) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("worldrl: ")
        assert "Traceback" not in captured.err


def test_a_stopped_run_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    stopped = RunResult(Path("runs/a"), 10, 1.0, {}, "interrupted", 75)
    with pytest.raises(typer.Exit) as end:
        finish(lambda: stopped, as_json=True)
    assert end.value.exit_code == 75
    assert "stopped and saved; go on with: worldrl resume runs/a" in capsys.readouterr().err


def test_an_option_in_place_of_a_setting_is_told_how_settings_are_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "mopo", "--dataset", "x"]) == 2
    assert "Settings are written key=value: dataset=FILE" in capsys.readouterr().err
