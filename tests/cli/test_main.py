"""The entry point as a user meets it: what it prints where, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from worldrl import __version__
from worldrl.cli import main as cli
from worldrl.config.loader import load_config

SCRIPT = Path(sys.executable).with_name("worldrl")


def worldrl(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, timeout=120, cwd=folder
    )


def test_help_names_every_command() -> None:
    done = worldrl("--help")
    assert done.returncode == 0
    for name, command in cli.COMMANDS.items():
        assert f"{name:<10}" in done.stdout
        assert command.summary in done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_exists_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: worldrl {name}")


def test_version() -> None:
    assert worldrl("--version").stdout == f"{__version__}\n"


def test_no_arguments_print_the_help() -> None:
    done = worldrl()
    assert done.returncode in (0, 2)  # click changed its mind about this between versions
    assert "Commands:" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "mopp", "dataset=x"], "did you mean 'mopo'?"),
        (["train", "dataset=x"], "the first argument must be a recipe"),
        (["train", "mopo"], "no dataset is given"),
        (["train", "mopo", "dataset=x", "learner.hiden=3"], "did you mean 'learner.hidden'?"),
        (["train", "ensemble", "dataset=x"], "`worldrl pretrain`"),
        (["config", "show", "mopp"], "did you mean 'mopo'?"),
    ],
)
def test_an_error_is_one_paragraph_without_a_traceback(arguments: list[str], says: str) -> None:
    done = worldrl(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("worldrl: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_unknown_command_and_option() -> None:
    for arguments, says in ((["trian"], "train"), (["train", "mopo", "--jsn"], "--jsn")):
        done = worldrl(*arguments)
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr


def test_config_list(tmp_path: Path) -> None:
    text = worldrl("config", "list", folder=tmp_path).stdout
    table = json.loads(worldrl("config", "list", "--json", folder=tmp_path).stdout)
    assert {"ensemble"} <= set(table["pretrain"])
    assert {"mopo", "mbpo", "sac", "bc"} <= set(table["train"])
    for names in table.values():
        for name, summary in names.items():
            assert f"{name:<8}" in text
            assert summary in text


def test_config_show_loads_back(tmp_path: Path) -> None:
    overrides = ["dataset=d4rl:walker2d-medium-v2", "learner.hidden=64,64"]
    done = worldrl("config", "show", "mopo", *overrides)
    file = tmp_path / "shown.yaml"
    file.write_text(done.stdout, encoding="utf-8")
    assert load_config("train", str(file)) == load_config("train", "mopo", overrides)
    shown = json.loads(worldrl("config", "show", str(file), "--json").stdout)
    assert shown == yaml.safe_load(done.stdout)


def test_config_show_knows_the_stage_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for text, stage in (
        ("stage: pretrain", "pretrain"),
        ("recipe: ensemble", "pretrain"),
        ("recipe: bc", "train"),
        ("seed: 3", "train"),
    ):
        file.write_text(text, encoding="utf-8")
        done = worldrl("config", "show", "mine.yaml", "--json", folder=tmp_path)
        assert json.loads(done.stdout)["stage"] == stage


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [SCRIPT, "config", "show", "mopo"], stdout=write, stderr=subprocess.PIPE, timeout=60
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode in (1, 141)


def test_an_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(selected: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build", interrupted)
    assert cli.main(["doctor"]) == 130


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only errors that a user can act on are put into a paragraph."""

    def broken(selected: str | None) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "build", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])
