"""``worldrl data label`` as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import worldrl
from worldrl.cli.main import main
from worldrl.config.label import LabelSettings
from worldrl.data import Dataset, load
from worldrl.data.export import export

QUICK = ("--updates", "5", "--members", "2", "--hidden", "8,8", "--device", "cpu")
Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: object, code: int = 0) -> Any:
        capsys.readouterr()
        assert main(["data", "label", *map(str, words)]) == code
        return capsys.readouterr()

    return run


@pytest.fixture
def files(tmp_path: Path, tiny_dataset: Dataset) -> tuple[Path, Path]:
    """Six trajectories without actions, and six with them."""
    free, given = tmp_path / "free.hdf5", tmp_path / "given.hdf5"
    export(tiny_dataset.subset(range(6)), free)
    export(tiny_dataset.subset(range(6, 12)), given)
    with h5py.File(free, "r+") as file:
        del file["actions"]
        file.attrs["env_id"] = np.bytes_("Tiny-v0")
    return free, given


@pytest.mark.parametrize("suffix", ["hdf5", "npz"])
def test_writes_both_with_masks_and_provenance(
    run: Run, files: tuple[Path, Path], tmp_path: Path, suffix: str
) -> None:
    free, given = files
    out = tmp_path / "new" / f"all.{suffix}"
    printed = run(free, "--with", given, "--out", out, *QUICK, "--json").out
    assert printed.count("\n") == 1
    found = json.loads(printed)
    written, known = load(out), load(given)
    n = known.num_transitions
    assert found["episodes"] == written.num_episodes == 12
    assert found["transitions"] == written.num_transitions
    assert found["labels"] == written.num_transitions - n
    assert (found["updates"], found["held_out_episodes"]) == (5, 1)
    for name in ("normalized_mse", "nll", "nll_of_mean", "variance", "unlabelled_variance"):
        assert len(found[name]) == 2
    assert (written.actions[:n] == known.actions).all()
    assert written.metadata.env_id == "Tiny-v0"
    if suffix == "npz":
        with np.load(out, allow_pickle=False) as file:
            pseudo, variance = file["infos/pseudo_labelled"], file["infos/label_variance"]
            notes = json.loads(str(file["metadata/label"]))
    else:
        with h5py.File(out) as file:
            pseudo = file["infos/pseudo_labelled"][()]
            variance = file["infos/label_variance"][()]
            notes = json.loads(file["metadata/label"][()])
    assert (pseudo == (np.arange(len(pseudo)) >= n)).all()
    assert ((variance > 0).all(1) == pseudo).all()
    assert notes["labelled"] == {"source": "given.hdf5", "sha256": known.metadata.sha256}
    assert notes["unlabelled"]["source"] == "free.hdf5"
    assert notes["settings"]["hidden"] == [8, 8]
    assert notes["held_out"]["normalized_mse"] == found["normalized_mse"]


def test_prints_errors_for_people_and_doubts_on_standard_error(
    run: Run, files: tuple[Path, Path], tmp_path: Path
) -> None:
    printed = run(files[0], "--with", files[1], "--out", tmp_path / "all.hdf5", *QUICK)
    assert "normalized_mse" in printed.out
    assert "nll_of_mean" in printed.out
    # Five updates teach nothing, and that is said.
    assert "worldrl: warning: action dimension(s) [0, 1]: more than half" in printed.err


def test_the_same_seed_writes_the_same_bytes(
    run: Run, files: tuple[Path, Path], tmp_path: Path
) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        options = (*QUICK, "--seed", seed, "--history", 0)
        run(files[0], "--with", files[1], "--out", tmp_path / f"{name}.hdf5", *options)
    first, second, third = ((tmp_path / f"{name}.hdf5").read_bytes() for name in "abc")
    assert first == second != third


def test_the_function_does_the_same(run: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    run(files[0], "--with", files[1], "--out", tmp_path / "a.hdf5", *QUICK)
    settings = LabelSettings(num_updates=5, num_members=2, hidden=(8, 8))
    result = worldrl.label(*files, tmp_path / "b.hdf5", settings, device="cpu", quiet=True)
    assert result.out == str(tmp_path / "b.hdf5")
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()


def test_no_file_is_replaced(run: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "all.hdf5"
    out.write_bytes(b"mine")
    printed = run(files[0], "--with", files[1], "--out", out, *QUICK, code=2)
    assert "exists, and no file is replaced" in printed.err
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{given}", "--with", "{given}", "--out", "{tmp}/o.hdf5"], "nothing to label"),
        (["{free}", "--with", "{free}", "--out", "{tmp}/o.hdf5"], "no key 'actions'"),
        (["{tmp}/no.npz", "--with", "{given}", "--out", "{tmp}/o.hdf5"], "does not exist"),
        (["{free}", "--with", "{given}", "--out", "{tmp}/o.csv"], "names no dataset format"),
        (["{free}", "--with", "{given}", "--out", "{free}/o.hdf5"], "cannot be written"),
        (["{free}", "--with", "{given}", "--out", "{tmp}/o.hdf5", "--hidden", "8;8"], "8;8"),
        (["{free}", "--with", "{given}", "--out", "{tmp}/o.hdf5", "--hidden", "0"], "above 0"),
        (["{free}", "--with", "{given}", "--out", "{tmp}/o.hdf5", "--device", "gpu"], "gpu"),
    ],
)
def test_mistakes_are_one_paragraph_and_code_2(
    run: Run, files: tuple[Path, Path], tmp_path: Path, words: list[str], message: str
) -> None:
    free, given = files
    printed = run(*(word.format(free=free, given=given, tmp=tmp_path) for word in words), code=2)
    assert message in printed.err
    assert printed.err.startswith("worldrl: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_another_command_that_meets_such_a_file_names_this_one(
    capsys: pytest.CaptureFixture[str], files: tuple[Path, Path]
) -> None:
    assert main(["data", "info", str(files[0])]) == 2
    assert "worldrl data label" in capsys.readouterr().err
