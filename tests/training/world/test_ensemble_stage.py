"""The stage that trains ensembles: data splits, early stopping, exactness, and learning."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from worldrl.config.model import EnsembleSettings
from worldrl.errors import ModelError
from worldrl.models.ensemble import Ensemble
from worldrl.rows import pack
from worldrl.training.compilation import compiler_available
from worldrl.training.logged import Logged
from worldrl.training.stages import Snapshot
from worldrl.training.world.ensemble import EnsembleGroup, EnsembleStage, holdout_size
from worldrl.types import Parameters, Transitions

S, A = 3, 2
NOISE = torch.tensor([0.1, 0.2, 0.5, 0.15])  # of observations and the reward
CPU = torch.device("cpu")


def linear_world(rows: int, noise: Tensor = NOISE) -> Logged:
    """``s' = s + D [s a] + noise``, reward linear, too."""
    generator = torch.Generator().manual_seed(0)
    observation = 2 * torch.randn(rows, S, generator=generator)
    action = 2 * torch.rand(rows, A, generator=generator) - 1
    mean = true_mean(observation, action)
    sample = mean + noise * torch.randn(rows, S + 1, generator=generator)
    batch = Transitions(observation, action, sample[:, S], sample[:, :S], torch.zeros(rows))
    return Logged(
        pack(batch), torch.ones(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.int64), S, A,
        -np.ones(A, np.float32), np.ones(A, np.float32),
    )  # fmt: skip


def true_mean(observation: Tensor, action: Tensor) -> Tensor:
    matrix = 0.3 * torch.randn(S + A, S + 1, generator=torch.Generator().manual_seed(5))
    change = torch.cat([observation, action], -1) @ matrix
    return torch.cat([observation + change[..., :S], change[..., S:]], -1)


def settings(**changes: Any) -> EnsembleSettings:
    base = {
        "hidden": (8,), "num_members": 3, "num_elites": 2, "batch_size": 16, "max_epochs": 4,
        "weight_decay": (1e-3, 1e-2),
    }  # fmt: skip
    return EnsembleSettings.model_validate(base | changes)


def stage_of(
    groups: Sequence[Sequence[int]], logged: Logged, compile_step: bool = False, **changes: Any
) -> EnsembleStage:
    rows = torch.arange(len(logged.rows))
    return EnsembleStage(settings(**changes), groups, logged, rows, compile_step, autocast=False)


def go_on() -> bool:
    return False


class Recorder:
    """In place of a gradient step: writes the number of the call into every parameter."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def __call__(
        self, parameters: Parameters, adam: Any, logged_rows: Tensor, rows: Tensor, *rest: Any
    ) -> Tensor:
        self.batches.append(rows.clone())
        for value in parameters.values():
            value.fill_(float(len(self.batches)))
        return torch.full((rows.shape[0],), float(len(self.batches)))


def recorded(
    seeds: Sequence[int], rows: Tensor, until: int, **changes: Any
) -> tuple[EnsembleGroup, list[Tensor]]:
    recorder = Recorder()
    group = EnsembleGroup(settings(**changes), seeds, linear_world(200), rows, recorder)
    group.advance(until, go_on)
    return group, recorder.batches


# -- which rows ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "rows", "wanted"),
    [
        ({}, 1000, 200),
        ({}, 9, 1),
        ({}, 2, 1),
        ({}, 100_000, 1000),
        ({"max_holdout": 7}, 1000, 7),
        ({"holdout_ratio": 0.5}, 101, 50),
    ],
)
def test_size_of_the_holdout(changes, rows, wanted):
    assert holdout_size(settings(**changes), rows) == wanted


def test_training_never_sees_the_holdout_nor_rows_it_was_not_given():
    given = torch.arange(0, 200, 2)  # e.g. where the true next observation is known
    group, batches = recorded((4, 5), given, until=40)
    seen = torch.cat(batches, 2)
    for seed in range(2):
        held, train = set(group.holdout[seed].tolist()), set(group.train[seed].tolist())
        assert len(held) == 20
        assert len(train) == 80
        assert held | train == set(given.tolist())
        assert set(seen[seed].flatten().tolist()) <= train
    assert set(group.holdout[0].tolist()) != set(group.holdout[1].tolist())


def test_the_bootstrap_is_drawn_once_and_epochs_permute_it():
    group, batches = recorded((4, 5), torch.arange(200), until=40)
    steps = group.steps_per_epoch
    assert steps == 160 // 16
    epochs = [torch.cat(batches[k * steps : (k + 1) * steps], 2) for k in range(4)]
    assert epochs[0].shape == (2, 3, 160)
    for seed in range(2):
        for member in range(3):
            rows = [epoch[seed, member] for epoch in epochs]
            assert all(row.sort().values.equal(rows[0].sort().values) for row in rows)
            assert not any(a.equal(b) for a, b in pairwise(rows))
            distinct = len(rows[0].unique()) / 160
            assert distinct == pytest.approx(1 - np.exp(-1), abs=0.08)  # with replacement
    sets = [frozenset(epochs[0][seed, m].tolist()) for seed in range(2) for m in range(3)]
    assert len(set(sets)) == 6


def test_an_epoch_leaves_out_what_does_not_fill_a_batch():
    group, batches = recorded((4,), torch.arange(200), until=7, batch_size=50)
    assert group.steps_per_epoch == 3
    assert group.epoch == 2
    assert all(batch.shape == (1, 3, 50) for batch in batches)


def test_a_batch_is_never_larger_than_the_data():
    group, batches = recorded((4,), torch.arange(10), until=3, batch_size=256)
    assert batches[0].shape == (1, 3, 8)
    assert group.steps_per_epoch == 1


# -- early stopping ------------------------------------------------------------------------


def scripted(
    monkeypatch: pytest.MonkeyPatch,
    script: list[list[list[float]]],
    final: list[list[float]] | None = None,
    **changes: Any,
) -> EnsembleGroup:
    """A group whose holdout errors ``(P, N)`` are given epoch by epoch; a step is an epoch."""

    def holdout_error(self: EnsembleGroup, parameters: Parameters) -> Tensor:
        if parameters is self.best:
            return torch.tensor(final)
        return torch.tensor(script[self.epoch - 1])

    monkeypatch.setattr(EnsembleGroup, "holdout_error", holdout_error)
    own = settings(
        **{"batch_size": 160, "num_members": len(script[0][0]), "max_epochs": None, "num_elites": 1}
        | changes
    )
    seeds = range(len(script[0]))
    return EnsembleGroup(own, list(seeds), linear_world(200), torch.arange(200), Recorder())


def kept_epochs(group: EnsembleGroup) -> list[list[float]]:
    """The epoch that each member's snapshot is from."""
    weight = group.best["weight.0"]
    assert (weight == weight[:, :, :1, :1]).all()
    return weight[:, :, 0, 0].tolist()


def test_a_member_is_kept_when_it_improves_by_more_than_one_percent(monkeypatch):
    script = [
        [[1.0, 1.0]],
        [[0.995, 0.98]],  # half a percent; two percent
        [[0.99, 0.9701]],  # exactly one percent of the best, not of the last; one percent
        [[0.9899, 2.0]],
    ]
    wanted = [
        ([1, 1], [1.0, 1.0]),
        ([1, 2], [1.0, 0.98]),
        ([1, 3], [1.0, 0.9701]),
        ([4, 3], [0.9899, 0.9701]),
    ]
    group = scripted(monkeypatch, script)
    for epoch, (kept, errors) in enumerate(wanted, start=1):
        group.advance(epoch, go_on)
        assert kept_epochs(group) == [kept]
        assert group.best_error[0].tolist() == pytest.approx(errors)
        assert group.best["bias.0"][0, :, 0, 0].tolist() == kept
        # the bounds belong to all members: those of the last snapshot of any
        assert group.best["max_log_variance"].unique().item() == max(kept)


def test_training_ends_after_patience_epochs_without_any_improvement(monkeypatch):
    errors = [1.0, 0.9, 0.895, 0.8, *[0.8] * 20]
    group = scripted(monkeypatch, [[[error, 5.0]] for error in errors], patience=5)
    group.advance(1000, go_on)
    assert group.step == 4 + 5
    assert group.finished
    assert group.total is None
    assert kept_epochs(group) == [[4, 1]]


def test_one_improving_member_keeps_its_ensemble_going(monkeypatch):
    script = [[[1.0, 0.9**epoch]] for epoch in range(12)]
    group = scripted(monkeypatch, script, patience=2)
    group.advance(12, go_on)
    assert group.step == 12
    assert not group.finished
    assert kept_epochs(group) == [[1, 12]]


def test_a_stopped_seed_is_frozen_while_its_group_goes_on(monkeypatch):
    errors = [(1, 1), (1, 0.9), (1, 0.8), (0.01, 0.7), (0.01, 0.7), (0.001, 0.7)]
    script = [[[float(value)] for value in epoch] for epoch in errors]
    group = scripted(monkeypatch, script, patience=2)
    group.advance(3, go_on)
    assert group.stopped.tolist() == [True, False]
    assert not group.finished
    group.advance(1000, go_on)
    assert group.finished
    assert group.step == 6
    assert kept_epochs(group) == [[1], [4]]
    assert group.best_error.flatten().tolist() == pytest.approx([1.0, 0.7])


def test_errors_that_are_not_finite_are_no_improvement(monkeypatch):
    script = [[[np.nan, 1.0]], [[np.inf, np.nan]], [[2.0, 0.5]]]
    group = scripted(monkeypatch, script)
    group.advance(3, go_on)
    assert kept_epochs(group) == [[3, 3]]
    assert group.best_error[0].tolist() == [2.0, 0.5]


def test_an_ensemble_that_diverged_is_refused():
    logged = linear_world(64)
    stage = stage_of([[7], [8]], logged, learning_rate=1e-3, max_epochs=1)
    stage.advance(100, go_on)
    stage.check_learned()
    stage = stage_of([[7]], logged._replace(rows=logged.rows * 1e30), max_epochs=1)
    stage.advance(100, go_on)
    with pytest.raises(ModelError, match=r"diverged for seed\(s\) \[7\]"):
        stage.check_learned()


def test_elites_are_chosen_by_errors_computed_again_from_the_snapshots(monkeypatch):
    script = [[[0.1, 0.2, 0.3, 0.4]], [[9.0, 9.0, 9.0, 9.0]]]
    group = scripted(monkeypatch, script, final=[[0.4, 0.3, 0.1, 0.2]], num_elites=3)
    group.advance(2, go_on)
    assert group.ensemble().elites.tolist() == [[2, 3, 1]]
    assert group.ensemble().parameters is group.best


def test_holdout_error_is_that_of_the_mean_prediction():
    logged = linear_world(200)
    stage = stage_of([[0, 1]], logged, normalize_targets=False)
    stage.advance(10, go_on)
    group = stage.groups[0]
    ensemble = Ensemble(group.parameters, group.inputs, group.targets, torch.zeros(2, 1).long())
    errors = group.holdout_error(group.parameters)
    for seed in range(2):
        held = logged.at(group.holdout[seed])
        pair = held.observation.expand(2, -1, -1), held.action.expand(2, -1, -1)
        predicted = ensemble.predict(*pair).mean[seed]
        truth = torch.cat([held.next_observation, held.reward[:, None]], 1)
        torch.testing.assert_close(errors[seed], (predicted - truth).square().mean((1, 2)))


# -- gradient steps ------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
def test_steps_equal_plain_autograd_with_coupled_decay(normalize):
    """Weights decay, biases and bounds do not; one torch optimiser a seed."""
    logged, changes = linear_world(100), {"normalize_targets": normalize, "learning_rate": 1e-2}
    changes |= {"weight_decay": (0.5, 0.1)}
    recorder = Recorder()
    groups = EnsembleGroup(settings(**changes), (0, 1), logged, torch.arange(100), recorder)
    groups.advance(4, go_on)
    stage = stage_of([[0, 1]], logged, **changes)
    group = stage.groups[0]
    start = {name: value.clone() for name, value in group.parameters.items()}
    stage.advance(4, go_on)
    for seed in range(2):
        leaves = {k: v[seed].clone().requires_grad_() for k, v in start.items()}
        decay = {"weight.0": 0.5, "weight.1": 0.1}
        adam = torch.optim.Adam(
            [{"params": [v], "weight_decay": decay.get(k, 0.0)} for k, v in leaves.items()], lr=1e-2
        )
        for batch in recorder.batches:
            loss = 0.01 * (leaves["max_log_variance"] - leaves["min_log_variance"]).sum()
            for member in range(3):
                rows = logged.rows[batch[seed, member]]
                pair = rows[:, : S + A]
                delta = torch.cat([rows[:, -1 - S : -1] - rows[:, :S], rows[:, S + A, None]], 1)
                if normalize:
                    train = logged.rows[group.train[seed]]
                    truth = torch.cat(
                        [train[:, -1 - S : -1] - train[:, :S], train[:, S + A, None]], 1
                    )
                    delta = (delta - truth.mean(0)) / truth.std(0, correction=0)
                train = logged.rows[group.train[seed]][:, : S + A]
                hidden = (pair - train.mean(0)) / train.std(0, correction=0)
                hidden = hidden @ leaves["weight.0"][member] + leaves["bias.0"][member]
                hidden = hidden * hidden.sigmoid()
                output = hidden @ leaves["weight.1"][member] + leaves["bias.1"][member]
                mean, raw = output.chunk(2, 1)
                upper, lower = leaves["max_log_variance"], leaves["min_log_variance"]
                raw = upper - torch.nn.functional.softplus(upper - raw)
                raw = lower + torch.nn.functional.softplus(raw - lower)
                loss = loss + ((mean - delta) ** 2 * (-raw).exp() + raw).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        for name, value in leaves.items():
            found = group.parameters[name][seed]
            assert not found.equal(start[name][seed])
            torch.testing.assert_close(found, value.data, rtol=2e-4, atol=2e-5)


def test_a_seed_of_a_population_equals_its_lone_run():
    logged = linear_world(300)
    together, alone = stage_of([[7, 8, 9]], logged), stage_of([[7], [8], [9]], logged)
    for stage in together, alone:
        stage.advance(20, go_on)
    close = {"rtol": 1e-4, "atol": 1e-5}
    for name, value in together.snapshot().model.items():
        found = alone.snapshot().model[name]
        torch.testing.assert_close(value, found, **close)
    reports = [stage.report() for stage in (together, alone)]
    for name, values in reports[0].items():
        assert values == pytest.approx(reports[1][name], rel=1e-4)


def test_compiled_equals_eager():
    """Within 1e-4 after 12 steps: fusion reorders sums."""
    if not compiler_available(CPU):
        pytest.skip("no C++ compiler")
    logged = linear_world(100)
    eager, fast = stage_of([[0, 1]], logged), stage_of([[0, 1]], logged, compile_step=True)
    for stage in eager, fast:
        stage.advance(12, go_on)
    state = fast.snapshot().state
    for name, value in eager.snapshot().state.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-4)


# -- the stage -----------------------------------------------------------------------------


def test_reports_mean_errors_since_the_last_report():
    group, _ = recorded((0, 1), torch.arange(200), until=4)  # errors 1, 2, 3, 4
    group.best_error[:] = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    report = group.report()
    assert report["train_mse"].tolist() == [2.5, 2.5]
    assert report["holdout_mse"].tolist() == [3.0, 1.0]
    assert report["epoch"].tolist() == [0.0, 0.0]
    group.advance(6, go_on)
    assert group.report()["train_mse"].tolist() == [5.5, 5.5]
    assert group.report()["train_mse"].isnan().all()  # no step since then


def test_ends_at_the_most_epochs():
    stage = stage_of([[0], [1]], linear_world(200), max_epochs=3)
    assert stage.total == 30
    stage.advance(1000, go_on)
    assert stage.finished
    assert stage.step == 30
    assert stage_of([[0]], linear_world(200), max_epochs=None).total is None


def test_a_request_to_stop_is_obeyed_soon_and_the_stage_is_as_far_as_its_last_group():
    stage = stage_of([[0], [1]], linear_world(2000), max_epochs=10)
    calls: list[int] = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) > 2

    stage.advance(120, stop)
    assert [group.step for group in stage.groups] == [100, 0]
    assert stage.step == 0  # nothing up to step 100 is done in every group
    stage.advance(120, go_on)
    assert stage.step == 120


def copied(snapshot: Snapshot) -> Snapshot:
    """As a checkpoint gives it back: memory of its own."""
    return Snapshot(
        {name: value.clone() for name, value in snapshot.model.items()},
        {name: value.clone() for name, value in snapshot.state.items()},
        snapshot.plain,
    )


@pytest.mark.parametrize("groups", [[[0], [1]], [[0, 1]]], ids=str)
@pytest.mark.parametrize("at", [0, 1, 9, 10, 13, 27])
def test_continues_bit_identically_from_a_snapshot(groups, at):
    logged = linear_world(200)
    whole = stage_of(groups, logged)
    whole.advance(1000, go_on)
    wanted = whole.snapshot()

    first = stage_of(groups, logged)
    first.advance(at, go_on)
    saved = copied(first.snapshot())
    first.advance(1000, go_on)  # must not reach into what was saved
    second = stage_of(groups, logged)
    second.restore(saved)
    assert second.step == at
    second.advance(1000, go_on)
    _assert_same(second.snapshot(), wanted)


def test_continues_bit_identically_with_one_group_ahead_and_one_stopped():
    logged, groups = linear_world(200), [[0], [1], [2]]
    changes = {"max_epochs": None, "patience": 1, "improvement": 0.1, "learning_rate": 1e-2}

    def build() -> EnsembleStage:
        return stage_of(groups, logged, **changes)

    whole = build()
    whole.advance(10_000, go_on)
    ends = [group.step for group in whole.groups]
    assert whole.finished
    assert len(set(ends)) > 1
    middle = sorted(ends)[1]
    first = build()
    first.advance(middle - 5, go_on)
    first.groups[2].advance(middle - 2, go_on)
    second = build()
    second.restore(copied(first.snapshot()))
    assert [g.step for g in second.groups] == [g.step for g in first.groups]
    assert [g.finished for g in second.groups] == [g.finished for g in first.groups]
    second.advance(10_000, go_on)
    _assert_same(second.snapshot(), whole.snapshot())


def _assert_same(found: Snapshot, wanted: Snapshot) -> None:
    assert found.plain == wanted.plain
    for one, other in (found.model, wanted.model), (found.state, wanted.state):
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in other)


# -- learning ------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
def test_learns_a_linear_gaussian_world(normalize):
    logged = linear_world(3000)
    changes = {
        "hidden": (24,), "batch_size": 64, "learning_rate": 3e-3, "max_epochs": 40,
        "weight_decay": (0.0,), "normalize_targets": normalize, "num_members": 2,
        "improvement": 1e-4, "patience": 20,
    }  # fmt: skip
    stage = stage_of([[0]], logged, **changes)
    stage.advance(10_000, go_on)
    generator = torch.Generator().manual_seed(9)
    observation = 2 * torch.randn(1, 500, S, generator=generator)
    action = 2 * torch.rand(1, 500, A, generator=generator) - 1
    found = stage.ensembles()[0].predict(observation, action)
    truth = true_mean(observation, action)
    error = (found.mean[0] - truth).square().mean((0, 1)).sqrt()
    spread = truth.sub(torch.nn.functional.pad(observation, (0, 1))).std((0, 1))
    assert (error < 0.03 * spread + 0.2 * NOISE).all()
    ratio = found.std[0].median(1).values / NOISE
    assert ((ratio > 0.75) & (ratio < 1.3)).all(), ratio


def test_a_constant_dimension_does_no_harm():
    logged = linear_world(500)
    logged.rows[:, 1] = 0.1  # of the observation and of the next
    logged.rows[:, -1 - S + 1] = 0.1
    stage = stage_of([[0]], logged, max_epochs=20, learning_rate=1e-2)
    stage.advance(1000, go_on)
    observation = torch.randn(1, 50, S)
    observation[..., 1] = 0.1
    there = stage.ensembles()[0].predict(observation, torch.zeros(1, 50, A))
    observation[..., 1] = 0.1 + 1e-7  # rounding, as an imagined step makes it
    near = stage.ensembles()[0].predict(observation, torch.zeros(1, 50, A))
    torch.testing.assert_close(there.mean, near.mean, atol=1e-4, rtol=1e-4)
    assert (there.mean[..., 1] - 0.1).abs().max() < 0.2
