"""The studies as commands: tiny runs, wrong arguments, and, slowly, what they are there to show."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from worldrl.cli.main import main
from worldrl.data.collect import collect
from worldrl.data.dataset import load
from worldrl.data.export import export
from worldrl.envs import make
from worldrl.study import edge_of_reach, point
from worldrl.study.arms import Curve
from worldrl.study.edge_report import criteria
from worldrl.study.true_settings import arm_configs
from worldrl.training.logged import logged


def test_a_tiny_run_writes_numbers_figures_and_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    given = ["--seeds", "2", "--updates", "4", "--out", str(out), "--json"]
    assert main(["study", "edge-of-reach", *given]) == 0
    printed = json.loads(capsys.readouterr().out)
    saved = json.loads((out / "study.json").read_text())
    assert printed["criteria"] == saved["criteria"]
    assert saved["seeds"] == [0, 1]
    assert saved["environment"]
    assert set(saved["curves"]) == {"base", "patch", "critics", "ravl"}
    assert np.array(saved["curves"]["patch"]["patched_share"]).shape == (5, 2)
    for curve in saved["curves"].values():
        assert curve["updates"] == [0, 1, 2, 3, 4]
        assert np.array(curve["return"]).shape == (5, 2)
        assert curve["return"][0] != curve["return"][-1]  # something was learned
    page = (out / "index.html").read_text()
    figures = sorted(path.stem for path in out.glob("*.svg"))
    lines = ["return", "values", "values-edge", "spread-inside", "spread-edge", "ends"]
    assert figures == sorted([*lines, "map-base", "map-critics", "map-patch", "map-ravl"])
    for name in figures:
        assert (out / f"{name}.svg").read_text() in page


def test_a_run_is_a_function_of_its_seed(tmp_path: Path) -> None:
    def returns(name: str, seeds: int, seed: int) -> np.ndarray:
        found = edge_of_reach.edge_of_reach(seeds, 3, seed, tmp_path / name, quiet=True)
        return np.array(found.record["curves"]["base"]["return"])

    both = returns("both", 2, 0)
    assert np.array_equal(both, returns("again", 2, 0))
    assert not np.array_equal(both[:, 0], both[:, 1])


def test_arguments_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "edge-of-reach", "--seeds", "0"]) == 2
    assert main(["study", "edge-of-reach", "--updates", "many"]) == 2
    (tmp_path / "occupied").write_text("")
    assert main(["study", "edge-of-reach", "--out", str(tmp_path)]) == 2
    assert "holds something already" in capsys.readouterr().err
    given = ["study", "true-dynamics", "Hopper-v5", "dataset=x.npz"]
    assert main([*given, "population=2"]) == 2
    assert "use --seeds" in capsys.readouterr().err
    for setting in "eval_every=5", "acceptance=ope", "guard.value_bound=2", "model=RUN":
        assert main([*given, setting]) == 2
        assert f"{setting.partition('=')[0]} cannot be set here" in capsys.readouterr().err
    assert main([*given, "learner.hiden=3"]) == 2
    assert "learner.hidden" in capsys.readouterr().err
    assert main([*given, "learner.kind=bc"]) == 2
    assert main([*given, "learner.encoder.kind=cocoa"]) == 2
    assert "the simulator is the model" in capsys.readouterr().err
    assert main(given[:3]) == 2  # no data


def test_settings_of_the_true_dynamics_arms() -> None:
    given = ["dataset=x.npz", "imagination.horizon=3"]
    configs = arm_configs("Hopper-v5", given, seeds=2, updates=7, seed=5)
    base, ravl = configs["base"], configs["ravl"]
    assert (base.population, base.num_updates, base.seed) == (2, 7, 5)
    assert base.imagination.kind == "branched"
    assert base.imagination.horizon == 3
    assert base.imagination.clip_range is None
    assert base.imagination.penalty.kind == "none"
    assert not base.guard.enabled
    assert base.learner.kind == ravl.learner.kind == "sac"
    assert (base.learner.num_critics, ravl.learner.num_critics) == (2, 10)
    same = {"num_critics": 2, "init": "default"}
    assert base.learner.model_dump(exclude={"diversity"}) == {
        **ravl.learner.model_dump(exclude={"diversity"}),
        **same,
    }


@pytest.fixture
def hopper_file(tmp_path: Path) -> Path:
    path = tmp_path / "hopper.npz"
    export(collect(partial(make, "Hopper-v5"), 300, seed=0), path)
    return path


def test_true_dynamics_learns_in_the_simulator(
    tmp_path: Path, hopper_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    settings = ["learner.hidden=8", "imagination.batch_size=16", "evaluation.episodes=1"]
    settings += ["dataset.reward_scale=10"]
    given = ["Hopper-v5", f"dataset={hopper_file}", *settings]
    options = ["--updates", "3", "--seeds", "2", "--out", str(out), "--json"]
    assert main(["study", "true-dynamics", *given, *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["agreement"] > 0.95
    largest = float(np.abs(load(str(hopper_file)).rewards).max())
    assert printed["value_limit"] == pytest.approx(10 * largest / (1 - 0.99), rel=1e-5)
    for arm in "base", "ravl":
        curve = printed["curves"][arm]
        assert np.array(curve["max_abs_q"]).shape == (4, 2)
        assert np.array(curve["return"]).shape == (4, 2)
    assert (out / "index.html").read_text().count("<svg") == 3


def test_data_of_another_world_is_refused(
    tmp_path: Path, hopper_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["Walker2d-v5", f"dataset={hopper_file}", "--out", str(tmp_path / "study")]
    assert main(["study", "true-dynamics", *given]) == 2
    assert "shape" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_criteria_tell_collapse_from_success() -> None:
    true, best = point.best_value(0.99), edge_of_reach.best_return(0)

    def curve(value: float, share: float) -> Curve:
        values = {"max_abs_q_inside": [[value]], "return": [[share * best]]}
        values |= {"critic_spread_edge": [[2.0]], "critic_spread_inside": [[1.0]]}
        return Curve([1], values, 0.0)

    def met(base: Curve, other: Curve) -> dict[str, bool]:
        found = criteria(
            {"base": base, "patch": other, "critics": other, "ravl": other}, true, best
        )
        return {name: row["met"] for name, row in found.items()}

    assert all(met(curve(11 * true, 0.1), curve(1.1 * true, 0.95)).values())
    assert all(met(curve(float("nan"), 0.1), curve(0.9 * true, 0.95)).values())
    worse = met(curve(9 * true, 1.0), curve(1.3 * true, 0.8))
    assert not worse["base overestimates"]
    assert not worse["patch values"]
    assert not worse["ravl return"]


@pytest.mark.slow
def test_base_runs_away_and_the_patch_does_not() -> None:
    """By 6,000 updates, beyond 10 times the largest true value."""
    data = logged(point.logged_dataset(0), torch.device("cpu"))
    true = point.best_value(edge_of_reach.config_discount())
    largest = {}
    for name in "base", "patch":
        found = edge_of_reach.run_arm(name, 2, 6_000, 0, data, quiet=True)
        largest[name] = [value / true for value in found.curve.last("max_abs_q_inside")]
    assert min(largest["base"]) > 10, largest
    assert max(largest["patch"]) < 3, largest
