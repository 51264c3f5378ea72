"""Rows that stand for a dataset: which are chosen, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import worldrl
from worldrl.cli.main import main
from worldrl.config.loader import load_config
from worldrl.data import Dataset, load
from worldrl.data.export import export
from worldrl.training.select import best_rows, by_turns, random_rows

Run = Callable[..., Any]


@pytest.mark.parametrize("num", [1, 7, 20, 60])
def test_visits_take_the_nearest_points_by_turns(num: int) -> None:
    """Against numpy: in a turn every visit wants the nearest point that was left before it."""
    random = np.random.default_rng(0)
    points, visits = random.normal(size=(60, 3)), random.normal(size=(11, 3))
    chosen: list[int] = []
    while len(chosen) < num:
        left = [n for n in range(60) if n not in chosen]
        distance = np.linalg.norm(points[left][None] - visits[:, None], axis=-1)
        wanted = [left[n] for n in distance.argmin(1)]
        chosen += list(dict.fromkeys(wanted))[: num - len(chosen)]
    found = by_turns(torch.from_numpy(visits), torch.from_numpy(points), num)
    assert sorted(chosen) == found.nonzero().squeeze(1).tolist()


def test_the_best_episodes_come_first_and_the_last_is_cut(tiny_dataset: Dataset) -> None:
    order = np.argsort(-tiny_dataset.returns())
    whole = int(tiny_dataset.lengths[order[:2]].sum())
    keep = best_rows(tiny_dataset, whole + 3)
    episode = tiny_dataset.episode_of_row
    assert set(episode[keep]) == set(order[:3])
    assert keep.sum() == whole + 3
    first = tiny_dataset.starts[order[2]]
    assert keep[first : first + 3].all()


def test_random_rows_are_as_many_as_asked_and_of_the_seed(tiny_dataset: Dataset) -> None:
    one, again, other = (random_rows(tiny_dataset, 40, seed) for seed in (0, 0, 1))
    assert one.sum() == other.sum() == 40
    assert (one == again).all()
    assert (one != other).any()


@pytest.fixture
def trained(tmp_path: Path, tiny_dataset: Dataset) -> Path:
    """A run that imagined, with two worlds; its data is an .hdf5 file."""
    export(tiny_dataset, tmp_path / "tiny.hdf5")
    settings = {
        "dataset": str(tmp_path / "tiny.hdf5"), "population": 2, "num_updates": 10,
        "model.hidden": (8,), "model.num_members": 3, "model.num_elites": 2,
        "model.max_epochs": 2, "model.batch_size": 32, "termination.kind": "never",
        "imagination.batch_size": 20, "imagination.every": 10, "imagination.horizon": 2,
        "learner.hidden": (8,), "learner.batch_size": 16, "log_every": 10,
        "device": "cpu", "threads": 1, "compile": False,
    }  # fmt: skip
    config = load_config("train", "mopo", settings)
    return worldrl.train(config, tmp_path / "run", quiet=True).run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: object, code: int = 0) -> Any:
        capsys.readouterr()
        assert main([*map(str, words)]) == code
        return capsys.readouterr()

    return run


def test_a_selection_is_a_dataset_with_its_provenance(
    run: Run, trained: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    sizes = set()
    for by in ("policy", "random", "return"):
        out = tmp_path / f"{by}.hdf5"
        words = ("data", "select", trained, "--num", 50, "--out", out, "--by", by, "--json")
        walks = ("--horizon", 5, "--member", 1) if by == "policy" else ()
        printed = json.loads(run(*words, *walks).out)
        found = load(out)
        assert printed["transitions"] == found.num_transitions == 50
        with h5py.File(out) as file:
            rows = file["infos/row"][()]
            notes = json.loads(file["metadata/select"][()])
        whole = tiny_dataset.transitions()
        assert (found.actions == whole.action[rows]).all()
        assert (found.transitions().next_observation == whole.next_observation[rows]).all()
        assert (found.transitions().terminated == whole.terminated[rows]).all()
        assert notes["source"] == "tiny.hdf5"
        assert notes["settings"]["by"] == by
        assert ("model_seeds" in notes) == (by == "policy")
        sizes.add(found.num_episodes)
    assert len(sizes) > 1


def test_the_policys_rows_are_near_its_actions(
    run: Run, trained: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """Uniform actions were logged: the rows chosen are more like what the policy does there."""
    run("data", "select", trained, "--num", 30, "--out", tmp_path / "a.npz", "--horizon", 5)
    policy = worldrl.load_policy(trained)

    def error(dataset: Dataset) -> float:
        rows = dataset.transitions()
        return float(np.abs(policy.act(rows.observation) - rows.action).mean())

    assert error(load(tmp_path / "a.npz")) < 0.9 * error(tiny_dataset)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--num", "999", "--out", "{tmp}/o.hdf5"], "has 186 rows, fewer than 999"),
        (["{run}", "--num", "9", "--out", "{tmp}/o.hdf5", "--member", "2"], "has 2 member(s)"),
        (["{run}", "--num", "9", "--out", "{tmp}/tiny.hdf5"], "exists"),
        (["{run}", "--num", "9", "--out", "{tmp}/o.csv"], "names no dataset format"),
        (["{tmp}/no", "--num", "9", "--out", "{tmp}/o.hdf5"], "there is no run"),
    ],
)
def test_mistakes_are_one_paragraph(
    run: Run, trained: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    given = (word.format(run=trained, tmp=tmp_path) for word in words)
    printed = run("data", "select", *given, code=2)
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_a_selection_joined_with_another_task_is_learned(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    """The sequence: a first task's selection, and all of the second task's data."""
    words = ("data", "select", trained, "--num", 40, "--out", tmp_path / "first.hdf5")
    run(*words, "--by", "random")
    both = tmp_path / "both.hdf5"
    run("data", "join", tmp_path / "tiny.hdf5", tmp_path / "first.hdf5", "--out", both, "--json")
    with h5py.File(both) as file:
        assert np.bincount(file["infos/source"][()]).tolist() == [186, 40]
        notes = json.loads(file["metadata/join"][()])
    assert [note["rows"] for note in notes] == [186, 40]
    assert notes[1]["source_sha256"] == load(tmp_path / "first.hdf5").metadata.sha256
    small = ("num_updates=10", "learner.hidden=[8]", "device=cpu", "compile=false", "threads=1")
    for recipe in "bc", "iql":
        run("train", recipe, f"dataset={both}", *small, "--out", tmp_path / recipe)
    assert "at least two" in run("data", "join", both, "--out", tmp_path / "x.npz", code=2).err


# -- judged offline -----------------------------------------------------------------------------


def offline(run: Run, *words: object, **kwargs: Any) -> Any:
    return run("evaluate", *words, "--offline", "--horizon", 3, "--value-updates", 5, **kwargs)


def test_policies_are_judged_by_the_worlds_they_learned_in(run: Run, trained: Path) -> None:
    printed = offline(run, trained, "--json")
    found = json.loads(printed.out)
    assert found["offline"] is True
    assert [row["member"] for row in found["policies"]] == [0, 1]
    assert all(row["own_worlds"] and row["value_error"] >= 0 for row in found["policies"])
    assert found["judges"]["seeds"] == [0, 1]
    assert not (trained / "eval.jsonl").exists()
    # The critics are kept, and what is said does not change; the last checkpoint is the run.
    (values,) = trained.glob("values-*")
    before = (values / "metrics.jsonl").read_bytes()
    last = trained / "checkpoints" / "last"
    again = json.loads(offline(run, last, trained / "checkpoints" / "train-00000010", "--json").out)
    assert len(again["policies"]) == 2
    for one, other in zip(found["policies"], again["policies"], strict=True):
        assert {**one, "path": ""} == {**other, "path": ""}
    assert (values / "metrics.jsonl").read_bytes() == before
    assert "Estimates, no scores" in offline(run, trained).out


def test_other_worlds_and_values_may_judge(run: Run, trained: Path, tmp_path: Path) -> None:
    settings = ("num_updates=5", "learner.hidden=[8]", "device=cpu", "compile=false", "threads=1")
    data = tmp_path / "tiny.hdf5"
    run("train", "bc", f"dataset={data}", *settings, "--out", tmp_path / "bc")
    place = ("--model", trained, "--values", tmp_path / "values")
    found = json.loads(offline(run, tmp_path / "bc", trained, *place, "--json").out)
    assert [row["own_worlds"] for row in found["policies"]] == [False, True, True]
    assert (tmp_path / "values" / "status.json").exists()
    assert not list(trained.glob("values-*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "{run}"], "judged with --offline"),
        (["{run}", "--model", "{run}"], "--model would be unused"),
        (["{run}", "--offline", "--episodes", "3"], "nothing is played without --env-id"),
        (["{tmp}/bc", "--offline"], "learned without a world model"),
        (["{run}", "--offline", "--values", "{tmp}/bc"], "no run of the learner iql"),
        (["{run}", "--offline", "--dataset", "{tmp}/other.npz"], "observations of size 4"),
    ],
)
def test_mistakes_of_judging_are_one_paragraph(
    run: Run, trained: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    settings = ("num_updates=5", "learner.hidden=[8]", "device=cpu", "compile=false", "threads=1")
    data = f"dataset={tmp_path / 'tiny.hdf5'}"
    run("train", "bc", data, *settings, "--out", tmp_path / "bc")
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "other.npz", observations=random.normal(size=(9, 5)),
        actions=random.uniform(-1, 1, size=(9, 2)), rewards=np.ones(9), terminals=np.zeros(9),
        timeouts=np.arange(9) == 8,
    )  # fmt: skip
    given = (word.format(run=trained, tmp=tmp_path) for word in words)
    printed = run("evaluate", *given, code=2)
    assert message in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--by", "random", "--horizon", "5"], "--horizon"),
        (["--by", "return", "--seed", "1"], "--seed"),
    ],
)
def test_options_that_nothing_uses_are_refused(
    run: Run, tmp_path: Path, words: list[str], named: str
) -> None:
    out = ("--num", 3, "--out", tmp_path / "x.npz")
    assert f"{named} would be unused" in run("data", "select", tmp_path, *out, *words, code=2).err
