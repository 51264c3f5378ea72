"""The scripts of tools/ at least start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from worldrl.config import yaml_subset
from worldrl.config.loader import load_config, load_saved

REPOSITORY = Path(__file__).resolve().parents[1]
TOOLS = REPOSITORY / "tools"
RECORDS = sorted((REPOSITORY / "docs" / "results").glob("*.json"))


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
    found: dict[str, Any] = yaml.safe_load((TOOLS / "experiments.yaml").read_text())
    return found


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_is_what_its_command_would_run(
    path: Path, experiments: dict[str, Any], tmp_path: Path
) -> None:
    record = json.loads(path.read_text())
    experiment = experiments[record["name"]]
    assert record["command"] == f"tools/records run {path.stem}"
    assert record["environment"]["git"]["modified"] is False
    assert record["dataset"]["file"] == experiment["dataset"]
    overrides = {"dataset.source": "x", **experiment["overrides"]}
    settings = record["settings"]
    settings["dataset"]["source"] = "x"
    (tmp_path / "config.yaml").write_text(yaml_subset.dump(settings))
    found = load_saved(str(tmp_path / "config.yaml"))
    assert found == load_config("train", experiment["recipe"], overrides)


def test_every_experiment_has_its_record(experiments: dict[str, Any]) -> None:
    assert sorted(experiments) == [path.stem for path in RECORDS]


def test_the_table_is_that_of_the_records(experiments: dict[str, Any]) -> None:
    sys.path.insert(0, str(TOOLS))
    import records

    assert (records.RESULTS / "README.md").read_text() == records.table(experiments)
