"""The gate: which policies a run keeps, that it says so, and that a resumed run keeps the same."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

import worldrl
from worldrl.config.loader import load_config
from worldrl.config.schema import TrainConfig
from worldrl.errors import ConfigError, ModelError, RunError
from worldrl.evaluation.off_policy import Estimate
from worldrl.rows import pack
from worldrl.training import run
from worldrl.training.checkpoint import last_checkpoint, load
from worldrl.training.judging.acceptance import Gate, Standing
from worldrl.training.judging.judge import Judge
from worldrl.training.logged import Logged
from worldrl.training.metrics import read_metrics
from worldrl.training.policy import PolicyStage
from worldrl.training.policy_group import members_of
from worldrl.training.run_directory import RunDirectory
from worldrl.training.stages import Snapshot
from worldrl.types import (
    Batch,
    Context,
    LearnerState,
    Log,
    Metrics,
    Noise,
    Parameters,
    Transitions,
)

SEEDS = (4, 5, 6)
both = pytest.mark.parametrize(
    "groups", [[[4], [5], [6]], [[4, 5, 6]]], ids=["groups of one", "one group"]
)


class Counter:
    """A learner whose policy is the number of its updates; a hundred more a seed."""

    phases = 1
    metric_names = ("critic_loss", "value_mean")

    def __init__(self, ruined: int | None = None) -> None:
        self.ruined = ruined  # an update of seed 5 after which values are not finite

    def initialise(self, seeds: Sequence[int], log: Log, first: int = 0) -> LearnerState:
        return {
            "settings": {"discount": torch.full((len(seeds),), 0.9).double()},
            "actor": {"weight": torch.tensor([100.0 * (seed - 4) for seed in seeds])[:, None]},
        }

    def noise(self, generator: torch.Generator, count: int, batch: int) -> Noise:
        return {}

    def update(
        self, state: LearnerState, batch: Batch, noise: Noise, context: Context, phase: int = 0
    ) -> Metrics:
        weight = state["actor"]["weight"]
        weight += 1
        ruin = torch.zeros(len(weight))
        if self.ruined is not None:
            ruin[(weight[:, 0] >= 100 + self.ruined) & (weight[:, 0] < 200)] = torch.nan
        return {"critic_loss": ruin, "value_mean": torch.zeros(len(weight))}

    def policy_parameters(self, state: LearnerState) -> Parameters:
        actor: Parameters = state["actor"]
        return actor

    def act(self, policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
        raise AssertionError


class Table:
    """Two judges that know J of seed 4 by the update; of the others it is as many, and grows."""

    def __init__(
        self, values: dict[int, float], penalties: dict[int, float], broken: Sequence[int] = ()
    ) -> None:
        self.values, self.penalties, self.broken = values, penalties, broken
        self.asked: list[float] = []

    def estimate(self, learner: Counter, policy: Parameters) -> Estimate:
        (number,) = policy["weight"].flatten().tolist()
        self.asked.append(number)
        value = self.values.get(int(number), number) if number < 100 else number
        pair = torch.tensor([value - 0.5, value + 0.5], dtype=torch.float64)
        penalty = torch.full_like(pair, self.penalties.get(int(number), 0.5))
        nothing = torch.zeros_like(pair)
        broken = nothing + (number in self.broken)
        return Estimate(pair, pair, pair, penalty, nothing, nothing, nothing, broken, nothing)


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "dataset": {"source": "none"},
            "learner": {"kind": "td3bc", "batch_size": 2},
            "imagination": {"kind": "none"},
            "num_updates": 60,
            "population": 3,
            **changes,
        }
    )


def logged_rows() -> Logged:
    rows = Transitions(
        torch.randn(9, 3), torch.zeros(9, 2), torch.ones(9), torch.randn(9, 3), torch.zeros(9)
    )
    one = np.ones(2, np.float32)
    return Logged(
        pack(rows), torch.ones(9, dtype=torch.bool), torch.zeros(9, dtype=torch.int64), 3, 2,
        -one, one,
    )  # fmt: skip


def stage_of(
    groups: Sequence[Sequence[int]],
    table: Table,
    learner: Counter | None = None,
    every: int = 10,
) -> PolicyStage:
    gate = Gate(cast(Judge, table), every)
    learner = learner or Counter()
    logged = logged_rows()
    return PolicyStage(config(), learner, members_of(groups, logged.log), logged, False, gate)


def advance(stage: PolicyStage, until: int) -> list[dict[str, list[float]]]:
    """A report every 20 updates."""
    reports = []
    while stage.step < until and not stage.finished:
        stage.advance(min((stage.step // 20 + 1) * 20, until), lambda: False)
        if stage.step % 20 == 0:
            reports.append(stage.report())
    return reports


VALUES = {10: 5.0, 20: 4.0, 30: 7.0, 40: 9.0, 50: 8.0, 60: 6.0}
KEPT = [[10, 110, 210], [10, 120, 220], [30, 130, 230], [30, 140, 240], [30, 150, 250]]


@both
def test_every_member_keeps_its_last_accepted_policy_and_goes_on_from_its_last(groups):
    """At 40 seed 4 leaves the data; at 50 it is better than at 30, but is judged alike by none."""
    table = Table(VALUES | {50: 7.0}, {40: 1.5})
    stage = stage_of(groups, table)
    assert stage.policy_parameters()["weight"].flatten().tolist() == [0, 100, 200]
    found = []
    for until in (10, 20, 30, 40, 50):
        stage.advance(until, lambda: False)
        found.append(stage.policy_parameters()["weight"].flatten().tolist())
    assert found == KEPT
    assert stage.good_steps == [30, 50, 50]
    last = [group.state["actor"]["weight"] for group in stage.groups]
    assert torch.cat(last).flatten().tolist() == [50, 150, 250]
    assert sorted(table.asked) == [n + step for n in (0, 100, 200) for step in (10, 20, 30, 40, 50)]


@both
def test_what_was_accepted_when_is_told(groups):
    stage = stage_of(groups, Table(VALUES, {40: 1.5}))
    first, second, third = advance(stage, 60)
    assert first["judged_value"] == [4.0, 120.0, 220.0]
    assert first["judged_gain"] == [-1.0, 10.0, 10.0]
    assert first["judged_error"] == [0.0] * 3
    assert first["accepted_step"] == [10, 20, 20]
    assert first["accepted_count"] == [1, 2, 2]
    assert second["judged_penalty"] == [1.5, 0.5, 0.5]
    assert second["accepted_step"] == [30, 40, 40]
    assert third["accepted_step"] == [50, 60, 60]  # 8 is more than 7


def test_a_policy_whose_walks_break_is_not_accepted_and_the_state_is_saved():
    stage = stage_of([[4]], Table({}, {}, broken=[20, 30]))
    stage.advance(30, lambda: False)
    assert stage.good_steps == [10]
    found = stage.report()["judged_penalty"]
    assert found == [math.inf]
    again = stage_of([[4]], Table({}, {}))
    saved = stage.snapshot()
    again.restore(saved._replace(plain=json.loads(json.dumps(saved.plain))))
    assert again.groups[0].standings == stage.groups[0].standings


def test_before_the_first_candidate_there_is_nothing_to_tell():
    stage = stage_of([[4]], Table({}, {}))
    stage.advance(5, lambda: False)
    found = stage.report()
    assert math.isnan(found["judged_value"][0])
    assert (found["accepted_step"], found["accepted_count"]) == ([0.0], [0.0])
    assert stage.trips == [None]


def test_the_last_policy_is_a_candidate_too():
    stage = stage_of([[4]], Table({}, {}), every=45)
    stage.advance(60, lambda: False)
    assert stage.good_steps == [60]


@both
def test_a_member_that_is_stopped_goes_back_to_what_was_accepted(groups):
    table = Table(VALUES, {})
    stage = stage_of(groups, table, Counter(ruined=33))
    advance(stage, 60)
    assert [trip and trip.step for trip in stage.trips] == [None, 40, None]
    assert stage.policy_parameters()["weight"].flatten().tolist() == [40, 140, 260]
    assert not any(140 < number < 200 for number in table.asked)


@both
def test_a_restored_stage_keeps_the_same(groups):
    whole, cut = (stage_of(groups, Table(VALUES, {40: 1.5})) for _ in range(2))
    wanted = advance(whole, 60)
    early = advance(cut, 35)
    saved = cut.snapshot()
    assert saved.model["policy/weight"].flatten().tolist() == [30, 130, 230]
    plain = json.loads(json.dumps(saved.plain))
    tensors = {name: value.clone() for name, value in saved.state.items()}
    again = stage_of(groups, Table(VALUES, {40: 1.5}))
    again.restore(Snapshot(saved.model, tensors, plain))
    late = advance(again, 60)
    for one, other in zip(wanted, [*early, *late], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert again.snapshot().plain == whole.snapshot().plain


def test_a_checkpoint_from_before_there_were_gates_is_read():
    assert Standing.from_json(json.loads(json.dumps(Standing().to_json()))) == Standing()
    stage = stage_of([[4]], Table({}, {}))
    saved = stage.snapshot()
    del saved.plain["groups"][0]["standings"]
    stage.restore(saved)


# -- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "there is no model. Name one with model=RUN"),
        ({"imagination": {"kind": "branched"}, "population": 1}, "this run learns one"),
    ],
)
def test_a_gate_without_judges_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(acceptance={"kind": "ope"}, **changes)
    config(acceptance={"kind": "ope"}, **changes, model={"source": "somewhere"})


# -- runs ---------------------------------------------------------------------------------------

SMALL_MODEL = {
    "model.hidden": (8,), "model.num_members": 3, "model.num_elites": 2, "model.max_epochs": 2,
    "model.batch_size": 32, "termination.kind": "never",
    "device": "cpu", "threads": 1, "compile": False,
}  # fmt: skip
SMALL = {
    "num_updates": 60, "learner.hidden": (8,), "learner.batch_size": 16, "log_every": 10,
    "checkpoint_every": 20, "device": "cpu", "threads": 1, "compile": False,
    "acceptance": "ope", "acceptance.every": 15, "acceptance.horizon": 4,
    "acceptance.num_starts": 8, "acceptance.value_updates": 20,
}  # fmt: skip


@pytest.fixture
def worlds(tmp_path: Path, tiny_file: Path) -> Path:
    settings = {"dataset": str(tiny_file), "population": 3, **SMALL_MODEL}
    config = load_config("pretrain", "ensemble", settings)
    return worldrl.pretrain(config, tmp_path / "worlds", quiet=True).run


def trained(tiny_file: Path, out: Path, recipe: str = "td3bc", **changes: Any) -> Path:
    settings = {"dataset": str(tiny_file), **SMALL, **changes}
    result = worldrl.train(load_config("train", recipe, settings), out, quiet=True)
    assert result.status == "finished"
    return result.run


@pytest.mark.parametrize("population", [1, 3])
def test_a_run_without_imagination_keeps_accepted_policies_and_resumes(
    tmp_path: Path, tiny_file: Path, worlds: Path, population: int
) -> None:
    path = trained(tiny_file, tmp_path / "run", model=str(worlds), population=population)
    rows = read_metrics(path / "metrics.jsonl")
    steps = rows[-1]["accepted_step"]
    assert len(steps) == population
    assert set(steps) <= {0, 15, 30, 45, 60}
    assert rows[1]["judged_value"] != rows[0]["judged_value"]
    policy = worldrl.load_policy(path)
    assert list(policy.steps) == steps
    whole = load(last_checkpoint(RunDirectory.open(path)) or path)
    for name, value in whole.state.items():
        if name.startswith("good/actor/"):
            assert whole.model["policy/" + name.removeprefix("good/actor/")].equal(value)

    # As if it had been stopped at update 40: neither the worlds nor the values are needed then.
    shutil.rmtree(worlds)
    shutil.rmtree(path / "values")
    shutil.rmtree(path / "checkpoints" / "train-00000060")
    (path / "checkpoints" / "last").unlink()
    status = json.loads((path / "status.json").read_text())
    (path / "status.json").write_text(json.dumps(status | {"state": "interrupted"}))
    assert worldrl.resume(path, quiet=True).status == "finished"
    again = load(last_checkpoint(RunDirectory.open(path)) or path)
    for one, other in ((whole.model, again.model), (whole.state, again.state)):
        assert one.keys() == other.keys()
        assert all(value.equal(other[name]) for name, value in one.items())
    resumed = read_metrics(path / "metrics.jsonl")
    for one, other in zip(rows, resumed, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_member_of_a_population_is_judged_as_its_lone_run(
    tmp_path: Path, tiny_file: Path, worlds: Path
) -> None:
    values = {"acceptance.values": str(tmp_path / "values"), "model": str(worlds)}
    together = trained(tiny_file, tmp_path / "three", population=3, **values)
    alone = trained(tiny_file, tmp_path / "one", seed=1, **values)
    assert (tmp_path / "values" / "status.json").exists()
    for one, other in zip(
        read_metrics(alone / "metrics.jsonl"), read_metrics(together / "metrics.jsonl"), strict=True
    ):
        for name in ("judged_value", "judged_penalty", "accepted_step", "actor_loss"):
            wanted, found = one.get(name), other.get(name)
            assert (wanted and wanted[0]) == (found and found[1]), name


def test_a_run_that_imagines_is_judged_in_the_worlds_of_all_its_members(
    tmp_path: Path, tiny_file: Path
) -> None:
    own = {"imagination.batch_size": 20, "imagination.every": 20, "imagination.horizon": 2}
    path = trained(tiny_file, tmp_path / "run", "mopo", population=2, **SMALL_MODEL, **own)
    assert read_metrics(path / "metrics.jsonl")[-1]["accepted_count"][0] >= 1


def test_one_world_is_refused(tmp_path: Path, tiny_file: Path) -> None:
    settings = {"dataset": str(tiny_file), **SMALL_MODEL}
    worldrl.pretrain(load_config("pretrain", "ensemble", settings), tmp_path / "w", quiet=True)
    with pytest.raises(ModelError, match="holds one world"):
        trained(tiny_file, tmp_path / "run", model=str(tmp_path / "w"))


def test_values_of_another_kind_are_refused(tmp_path: Path, tiny_file: Path, worlds: Path) -> None:
    def tried(name: str, **changes: Any) -> None:
        settings = {"model": str(worlds), "acceptance.values": str(tmp_path / name), **changes}
        trained(tiny_file, tmp_path / f"of {name}", **settings)

    with pytest.raises(RunError, match="no run of the learner iql"):
        tried("worlds")
    lone = {"dataset": str(tiny_file), **{k: v for k, v in SMALL.items() if "acc" not in k}}
    worldrl.train(load_config("train", "iql", lone), tmp_path / "lone", quiet=True)
    with pytest.raises(RunError, match=r"values of 1 seed\(s\), and the model has 3 world"):
        tried("lone")
    scaled = lone | {"population": 3, "dataset.reward_scale": 2.0}
    worldrl.train(load_config("train", "iql", scaled), tmp_path / "scaled", quiet=True)
    with pytest.raises(RunError, match="learned from rewards times 2"):
        tried("scaled")


def test_a_fit_that_is_stopped_goes_on_when_the_run_does(
    tmp_path: Path, tiny_file: Path, worlds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run.fit_values

    def stopped(*arguments: Any) -> None:
        raise run.StoppedEarly(75)

    settings = {"dataset": str(tiny_file), **SMALL, "model": str(worlds)}
    monkeypatch.setattr(run, "fit_values", stopped)
    result = worldrl.train(load_config("train", "td3bc", settings), tmp_path / "run", quiet=True)
    assert (result.status, result.exit_code) == ("interrupted", 75)
    monkeypatch.setattr(run, "fit_values", plain)
    assert worldrl.resume(tmp_path / "run", quiet=True).status == "finished"


def test_nobody_accepted_is_said(
    tmp_path: Path,
    tiny_file: Path,
    worlds: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = Judge.estimate

    def far_away(self: Judge, *arguments: Any) -> Estimate:
        found = plain(self, *arguments)
        return found._replace(penalty=found.penalty + 100)

    monkeypatch.setattr(Judge, "estimate", far_away)
    path = trained(tiny_file, tmp_path / "run", model=str(worlds))
    assert "no policy of seed 0 was accepted" in capsys.readouterr().err
    assert worldrl.load_policy(path).steps == (0,)


def test_the_setting_is_short() -> None:
    base = {"dataset": "x", "imagination": "none"}
    with pytest.raises(ConfigError, match="there is no model"):
        load_config("train", "td3bc", {**base, "acceptance": "ope"})
