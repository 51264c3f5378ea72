"""The scripts of tools/ at least start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from worldrl.config import yaml_subset
from worldrl.config.loader import load_config, load_saved

REPOSITORY = Path(__file__).resolve().parents[1]
TOOLS = REPOSITORY / "tools"
RESULTS = REPOSITORY / "docs" / "results"
RECORDS = sorted([*RESULTS.glob("*.json"), *RESULTS.glob("methods/*.json")])
sys.path.insert(0, str(TOOLS))


def name_of(record: Path) -> str:
    return record.relative_to(RESULTS).with_suffix("").as_posix()


@pytest.mark.parametrize("name", ["bench", "bench_baselines", "make_datasets", "records"])
def test_scripts_explain_themselves(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(TOOLS / f"{name}.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.fixture(scope="module")
def experiments() -> dict[str, Any]:
    import records

    return records.load_experiments()


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: name_of(path))
def test_a_record_is_what_its_command_would_run(
    path: Path, experiments: dict[str, Any], tmp_path: Path
) -> None:
    record = json.loads(path.read_text())
    experiment = experiments[record["name"]]
    assert record["name"] == name_of(path)
    assert record["command"] == f"tools/records run {name_of(path)}"
    assert record["environment"]["git"]["modified"] is False
    assert record["dataset"]["file"] == experiment["dataset"]
    overrides = {"dataset.source": "x", **experiment["overrides"]}
    if "model" in experiment:  # a given model brings the settings it was trained with
        given = experiment["model"]["settings"]
        overrides |= {f"model.{name}": value for name, value in given.items()}
    settings = record["settings"]
    settings["dataset"]["source"] = "x"
    (tmp_path / "config.yaml").write_text(yaml_subset.dump(settings))
    found = load_saved(str(tmp_path / "config.yaml"))
    assert found == load_config("train", experiment["recipe"], overrides)


def test_every_experiment_has_its_record(experiments: dict[str, Any]) -> None:
    """But for cells of the table of methods, which grows cell by cell."""
    wanted = {name for name in experiments if not name.startswith("methods/")}
    found = {name_of(path) for path in RECORDS}
    assert wanted == {name for name in found if not name.startswith("methods/")}
    assert found <= set(experiments)


def test_the_pages_are_those_of_the_records() -> None:
    import tables

    for name, text in tables.pages().items():
        assert (RESULTS / name).read_text() == text, name


def test_studies_and_judgements_name_their_command() -> None:
    from experiments import OFFLINE, STUDIES, load_methods, load_studies

    for prefix, command, known in (
        (STUDIES, "study", load_studies()),
        (OFFLINE, "offline", load_methods()["datasets"]),
    ):
        for path in RESULTS.glob(f"{prefix}*.json"):
            record = json.loads(path.read_text())
            assert path.stem in known
            assert record["command"] == f"tools/records {command} {path.stem}"
            assert record["environment"]["git"]["modified"] is False
