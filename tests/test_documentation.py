"""What the documentation shows works: its commands run, its Python runs, its links lead somewhere.

Commands run in the order of the page, on smaller data and for fewer updates.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from worldrl.cli.main import COMMANDS, main

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *REPOSITORY.glob("docs/*.md")]
)

#: Run by .ci/run and by hand: they make environments of their own.
RUN_ELSEWHERE = {
    "python3 -m venv .venv",
    ".venv/bin/pip install -c constraints.txt .",
    "tools/demo",
    "tools/test",
}
SMALL_MODEL = ["model.max_epochs=1", "model.hidden=16,16"]
SMALL_POLICY = [
    "num_updates=20", "imagination.every=10", "imagination.batch_size=50", "learner.hidden=16,16",
    "learner.batch_size=32", "log_every=10", "threads=1",
]  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    shown = [shlex.split(line, comments=True) for line in lines if line.strip()]
    return [words for words in shown if " ".join(words) not in RUN_ELSEWHERE]


def smaller(words: list[str]) -> list[str]:
    """The same command for a test: less data, fewer updates."""
    if words[1:3] == ["data", "collect"]:
        return [*words, "--steps", "600"]
    if words[1] == "pretrain":
        return [*words, *SMALL_MODEL, "threads=1"]
    if words[1] == "train":
        own_model = not any(word.startswith("model=") for word in words)
        return [*words, *SMALL_POLICY, *(SMALL_MODEL if own_model else [])]
    if words[1] == "finetune":
        return [*words, "num_steps=40", "warmup_steps=20", "learner.batch_size=32", "threads=1"]
    if words[1] == "study":
        return [*words, "--seeds", "1", "--updates", "40"]
    if words[1] == "evaluate":
        return words if "--offline" in words else [*words, "--episodes", "2"]
    return words


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
def test_every_command_of_the_page_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = commands(REPOSITORY / name)
    assert len(shown) >= 5
    for words in shown:
        assert words[0] == "worldrl"
        if "mine.npz" in " ".join(words):
            continue  # stands for the reader's own file
        code = main(smaller(words)[1:])
        assert code == 0, f"{' '.join(words)}\n{capsys.readouterr().err}"


def test_the_readme_shows_every_command() -> None:
    assert {words[1] for words in commands(REPOSITORY / "README.md")} == set(COMMANDS)


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import worldrl
    from worldrl import api

    (code,) = blocks(REPOSITORY / "README.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    assert main(["data", "collect", "Pendulum-v1", "--steps", "600", "--out", "pendulum.hdf5"]) == 0
    small = dict(word.split("=") for word in SMALL_MODEL + SMALL_POLICY)
    plain = api.load_config
    monkeypatch.setattr(
        worldrl.api,
        "load_config",
        lambda stage, recipe, overrides: plain(
            stage, recipe, [f"{key}={value}" for key, value in {**overrides, **small}.items()]
        ),
    )
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("600 -")
    assert printed[-1].startswith("return -")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_recipes_that_pages_name_exist(page: Path) -> None:
    from worldrl.config import recipes

    text = page.read_text("utf-8")
    inline = re.findall(r"`[^`]+`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    for name in re.findall(r"\bworldrl ([a-z]+)\b", " ".join(inline)):
        assert name in COMMANDS, name
    for stage, name in re.findall(r"worldrl (pretrain|train) ([a-z]\w*)", text):
        assert name in recipes.shipped(stage), name


def test_the_tests_of_the_traps_exist() -> None:
    folder = REPOSITORY / "tests"
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (folder / "README.md").read_text("utf-8"))
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (folder / file).read_text("utf-8"), test
