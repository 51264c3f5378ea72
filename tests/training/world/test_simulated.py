"""Runs that imagine in a given simulator: what it steps, exact continuation, what is refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldrl import api
from worldrl.config.schema import TrainConfig
from worldrl.data.collect import collect
from worldrl.data.dataset import load
from worldrl.data.export import export
from worldrl.data.simulator import state_setter
from worldrl.envs import make, make_altered
from worldrl.errors import WorldRLError
from worldrl.imagination import IMAGINATIONS
from worldrl.imagination.setup import Setup
from worldrl.learners import LEARNERS
from worldrl.rows import row_width, unpack
from worldrl.systems import simulator
from worldrl.systems import systems as own_systems
from worldrl.training import run as runs
from worldrl.training.checkpoint import last_checkpoint
from worldrl.training.checkpoint import load as load_checkpoint
from worldrl.training.execution import Execution
from worldrl.training.run_directory import RunDirectory
from worldrl.training.systems import Systems
from worldrl.training.train import _worlds
from worldrl.training.world.simulated import simulated_world
from worldrl.training.world.world_model import ends_function

SMALL: dict[str, Any] = {
    "num_updates": 30, "log_every": 10, "checkpoint_every": 10, "threads": 1, "compile": False,
    "learner.hidden": [8], "learner.discriminator_hidden": [8], "learner.batch_size": 8,
    "imagination.batch_size": 6, "imagination.horizon": 3, "imagination.every": 7,
    "imagination.retain": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cheetah.hdf5"
    export(collect(partial(make, "HalfCheetah-v5"), 120, seed=0), path)
    return path


def config_of(data: Path, **changes: Any) -> TrainConfig:
    found = api.load_config("train", "h2o", {"dataset": data, **SMALL, **changes})
    assert isinstance(found, TrainConfig)
    return found


def final(path: Path) -> dict[str, torch.Tensor]:
    last = last_checkpoint(RunDirectory.open(path))
    assert last is not None
    saved = load_checkpoint(last)
    return saved.model | saved.state


def test_altered_physics_are_those_of_the_model_and_only_where_asked() -> None:
    build = partial(make, "HalfCheetah-v5")
    plain: Any = build().unwrapped.model
    changed: Any = make_altered(build, 2.0, 0.5, 3.0).unwrapped.model
    same: Any = make_altered(build, 1.0, 1.0, 1.0).unwrapped.model
    for mine, factors in (changed, (2.0, 0.5, 3.0)), (same, (1.0, 1.0, 1.0)):
        np.testing.assert_allclose(mine.opt.gravity, factors[0] * plain.opt.gravity)
        np.testing.assert_allclose(mine.geom_friction, factors[1] * plain.geom_friction)
        np.testing.assert_allclose(mine.dof_damping, factors[2] * plain.dof_damping)


def test_imagined_rows_are_steps_of_the_altered_simulator(cheetah: Path, tmp_path: Path) -> None:
    """In the run's units of rewards, from logged states onward."""
    physics = {"imagination.gravity": 2.0, "imagination.friction": 0.5}
    units = {"dataset.reward_scale": 10.0, "dataset.reward_shift": 0.5}
    config = config_of(cheetah, **physics, **units, population=2)
    assert config.imagination.kind == "simulator"
    with RunDirectory.create(tmp_path / "run", config) as directory:
        execution = Execution(directory, config, None)
        model = simulated_world(execution, simulator)
        worlds = _worlds(execution, model)
    logged = execution.logged
    size, width = logged.observation_size, logged.action_size
    learner = LEARNERS["h2o"](config.learner, size, width, 30)
    setup = Setup(
        execution.groups, learner, worlds, ends_function(model.facts["termination"], size),
        logged.log, 30, lambda step, calls: step,
    )  # fmt: skip
    first, second = IMAGINATIONS["simulator"](config.imagination, setup)
    rows = torch.zeros(1, first.capacity, row_width(size, width))
    state = learner.initialise([0], logged.log)
    counts, health = first.fill(rows, 0, first.sources(state))
    assert counts.tolist() == [18]
    assert health["nonfinite"].tolist() == [0]
    found = unpack(rows[0], size, width)
    starts = logged.transitions.observation
    assert all((starts == start).all(1).any() for start in found.observation[:6])
    reached = sorted(found.next_observation[:6].tolist())
    assert sorted(found.observation[6:12].tolist()) == reached  # rows are dealt out anew
    bare: Any = make_altered(partial(make, "HalfCheetah-v5"), 2.0, 0.5, 1.0).unwrapped
    bare.reset(seed=0)
    set_state = state_setter(bare, starts.numpy())
    assert set_state is not None
    for observation, action, reward, following, _ in zip(*found, strict=True):
        assert set_state(observation.numpy().astype(np.float64))
        truth, earned = bare.step(action.numpy())[:2]
        np.testing.assert_allclose(following, truth, rtol=1e-3, atol=1e-3)
        assert reward.item() == pytest.approx(10 * earned + 0.5, abs=1e-2)
    # Another member has other noise, and the same number makes the same rows again.
    again, other = torch.zeros_like(rows), torch.zeros_like(rows)
    first.fill(again, 0, first.sources(state))
    second.fill(other, 0, second.sources(state))
    assert again.equal(rows)
    assert not other.equal(rows)


def test_a_member_of_a_population_equals_its_lone_run(cheetah: Path, tmp_path: Path) -> None:
    together = config_of(cheetah, population=3, **{"imagination.gravity": 2.0})
    api.train(together, tmp_path / "three", quiet=True)
    lone = config_of(cheetah, seed=1, **{"imagination.gravity": 2.0})
    api.train(lone, tmp_path / "one", quiet=True)
    three, one = final(tmp_path / "three"), final(tmp_path / "one")
    assert three.keys() == one.keys()
    for name, value in one.items():
        assert three[name][1:2].equal(value), name


def scorers(at: int | None) -> Callable[..., Any]:
    """Scores nothing, and asks the process to stop at its ``at``-th evaluation."""

    def build(config: TrainConfig, recorded: str | None) -> Any:
        seen = []

        def score(*_: Any) -> dict[str, Any]:
            seen.append(0)
            if len(seen) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return {"return_mean": 0.0}

        return score

    return build


def systems(at: int | None, simulator: Any = simulator) -> Systems:
    return own_systems()._replace(scorer=scorers(at), simulator=simulator)


def test_a_stopped_run_goes_on_exactly(cheetah: Path, tmp_path: Path) -> None:
    config = config_of(cheetah, eval_every=5, **{"imagination.gravity": 2.0})
    runs.start(config, tmp_path / "whole", True, systems(None))
    cut = runs.start(config, tmp_path / "cut", True, systems(3))
    assert (cut.status, cut.steps) == ("interrupted", 15)
    done = runs.resume(tmp_path / "cut", True, systems(None))
    assert done.steps == 30
    whole, resumed = final(tmp_path / "whole"), final(tmp_path / "cut")
    assert all(resumed[name].equal(value) for name, value in whole.items())


def test_another_simulator_than_the_runs_is_noticed(
    cheetah: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(cheetah, eval_every=5)
    runs.start(config, tmp_path / "run", True, systems(3))

    def heavier(config: TrainConfig, dataset: Any) -> Any:
        own = config.imagination.model_copy(update={"gravity": 1.5})
        return simulator(config.model_copy(update={"imagination": own}), dataset)

    with pytest.raises(WorldRLError, match="came out differently"):
        runs.resume(tmp_path / "run", True, systems(None, heavier))


def refused_data(kind: str, path: Path) -> Path:
    if kind == "cheetah":
        return path
    env_id = {"hidden": "Reacher-v5", "pendulum": "Pendulum-v1", "hopper": "Hopper-v5"}[kind]
    out = path.with_name(f"{kind}.hdf5")
    if not out.exists():
        export(collect(partial(make, env_id), 60, seed=0), out)
    return out


@pytest.mark.parametrize(
    ("data", "changes", "words"),
    [
        ("hidden", {}, "its state cannot be set from its observations"),
        ("cheetah", {"imagination.env_id": "Hopper-v5"}, r"\(11,\) and \(3,\).*\(17,\) and \(6,\)"),
        ("cheetah", {"imagination.env_id": "HalfCheetah"}, "names no version"),
        ("pendulum", {"imagination.gravity": 2.0}, "no MuJoCo model"),
    ],
)
def test_a_simulator_that_does_not_fit_is_refused_before_any_work(
    data: str, changes: dict[str, Any], words: str, cheetah: Path, tmp_path: Path
) -> None:
    config = config_of(refused_data(data, cheetah), **changes)
    with pytest.raises(WorldRLError, match=words):
        api.train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_data_without_an_environment_needs_a_name(tiny_file: Path, tmp_path: Path) -> None:
    assert load(str(tiny_file)).metadata.env_id is None
    with pytest.raises(WorldRLError, match=r"Set\s+imagination.env_id"):
        api.train(config_of(tiny_file), tmp_path / "run", quiet=True)


def test_an_end_that_no_formula_tells_must_be_named(cheetah: Path, tmp_path: Path) -> None:
    data = refused_data("hopper", cheetah)
    config = config_of(data, **{"termination.kind": "learned"})
    with pytest.raises(WorldRLError, match=r"Name one with termination.task"):
        api.train(config, tmp_path / "run", quiet=True)
    hopper = config_of(data)
    assert api.train(hopper, tmp_path / "run", quiet=True).status == "finished"
