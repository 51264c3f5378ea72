"""The stage that learns the seeker: its loss, its data, early stopping, exactness, and learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support import of_member
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

from worldrl.config.learners import SeekerSettings
from worldrl.errors import ModelError
from worldrl.imagination.reverse import WaysBack
from worldrl.models.anchors import init_seeker, seek
from worldrl.models.ensemble import Standardizer
from worldrl.optim import adam_init
from worldrl.random import generator
from worldrl.training.compilation import compiler_available
from worldrl.training.stages import Snapshot, flat
from worldrl.training.world.seeker import SeekerGroup, SeekerStage, train_step
from worldrl.types import Parameters

S, A, H, ENDS = 3, 2, 2, 40
SEEDS = (4, 5, 6)
LONE = [[seed] for seed in SEEDS]


def ways_of(seeds: Sequence[int], ends: int = ENDS, noise: float = 0.1) -> WaysBack:
    """The action towards the data is a function of where the rollout is."""
    parts = []
    matrix = torch.randn(S, A, generator=torch.Generator().manual_seed(99))
    for seed in seeds:
        source = torch.Generator().manual_seed(seed)
        observation = torch.randn(H, ends, S, generator=source)
        action = (observation @ matrix).tanh()
        parts.append((observation, action + noise * torch.randn(H, ends, A, generator=source)))
    return WaysBack(*(torch.stack(values) for values in zip(*parts, strict=True)))


def inputs() -> Standardizer:
    return Standardizer(torch.full((1, S), 0.1), torch.full((1, S), 1.5))


def settings(**changes: Any) -> SeekerSettings:
    return SeekerSettings(hidden=(8,), batch_size=16, max_epochs=6, **changes)


def stage_of(groups: Sequence[Sequence[int]], compile_step: bool = False, **changes: Any) -> Any:
    ways = [ways_of(seeds) for seeds in groups]
    return SeekerStage(settings(**changes), groups, ways, inputs(), compile_step)


def go_on() -> bool:
    return False


def test_a_step_is_adam_on_the_mean_squared_error_of_each_member() -> None:
    ways = ways_of(SEEDS)
    observation, action = (value.flatten(1, 2).double() for value in ways)
    scaling = Standardizer(*(value.expand(3, -1).clone() for value in inputs()))
    fresh = init_seeker([generator(seed, "s") for seed in SEEDS], scaling, A, (8,))
    whole = {name: value.double() for name, value in fresh.items()}
    fixed = {name: value for name, value in whole.items() if name.startswith("input_")}
    network = {name: value for name, value in whole.items() if name not in fixed}
    rows = torch.randint(H * ENDS, (3, 16), generator=torch.Generator().manual_seed(0))

    def loss(network: Parameters) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for member in range(3):
            own = {name: value[member] for name, value in network.items()}
            hidden = (observation[member, rows[member]] - 0.1) / 1.5
            hidden = hidden @ own["weight.0"] + own["bias.0"]
            hidden = F.layer_norm(hidden, (8,), own["scale.0"][0], own["shift.0"][0]).relu()
            said = (hidden @ own["weight.1"] + own["bias.1"]).tanh()
            total = total + F.mse_loss(said, action[member, rows[member]])
        return total

    # The scale is 1.5 in float32 in both.
    wanted, before = grad(loss)(network), {n: value.clone() for n, value in network.items()}
    expected = loss(network)
    errors = train_step(settings())(network, fixed, adam_init(network), observation, action, rows)
    torch.testing.assert_close(errors.sum(), expected, rtol=1e-6, atol=1e-6)
    for name, value in wanted.items():
        stepped = before[name] - 1e-3 * value / (value.abs() + 1e-8)
        torch.testing.assert_close(network[name], stepped, rtol=1e-6, atol=2e-6)


def test_whole_rollouts_are_held_out_and_an_epoch_sees_every_other_pair_once() -> None:
    group = stage_of([[4]]).groups[0]
    held, train = group.holdout[0] % ENDS, group.train[0] % ENDS
    assert len(held) == H * 4  # a tenth
    assert not set(held.tolist()) & set(train.tolist())
    assert len(set(group.train[0].tolist()) | set(group.holdout[0].tolist())) == H * ENDS
    seen: list[Tensor] = []

    def record(network: Parameters, fixed: Any, adam: Any, a: Any, b: Any, rows: Tensor) -> Tensor:
        seen.append(rows)
        return torch.zeros(1)

    group._step = record
    group.advance(2 * group.steps_per_epoch, go_on)
    first, second = (torch.cat(seen[i : i + 4], 1)[0] for i in (0, 4))
    assert len(set(first.tolist())) == len(first) == 4 * 16
    assert set(first.tolist()) <= set(group.train[0].tolist())
    assert first.tolist() != second.tolist()


def test_it_stops_when_no_epoch_helped_and_keeps_the_best() -> None:
    stage = stage_of([[4]], patience=2, improvement=0.5)
    group = stage.groups[0]
    said = iter([1.0, 0.8, 0.4, 0.3, 0.25])
    group.errors = lambda rows: torch.tensor([next(said)])
    kept = []
    for epoch in range(1, 6):
        stage.advance(epoch * group.steps_per_epoch, go_on)
        kept.append({name: value.clone() for name, value in group.network.items()})
    assert stage.step == 5 * group.steps_per_epoch
    assert stage.finished
    assert group.best_error.tolist() == pytest.approx([0.4])
    for name, value in stage.seekers().items():
        assert value.equal(kept[2].get(name, value)), name


def test_it_learns_the_way_back() -> None:
    ways = [ways_of([seed], 2_000) for seed in SEEDS]
    stage = SeekerStage(settings(learning_rate=1e-2), LONE, ways, inputs(), False)
    before = torch.cat([group.errors(group.holdout) for group in stage.groups])
    stage.advance(10**6, go_on)
    report = stage.report()
    assert set(report) == {"train_mse", "holdout_mse", "epoch"}
    for error, first in zip(report["holdout_mse"], before.tolist(), strict=True):
        assert error < 0.02  # the noise is 0.01
        assert error < first / 10
    observation = ways[0].observation[:, 0]
    assert seek(of_member(stage.seekers(), 0), observation).shape == (1, 2_000, A)


@pytest.mark.parametrize("groups", [LONE, [list(SEEDS)]], ids=["groups of one", "one group"])
def test_a_restored_stage_goes_on_bit_identically(groups: list[list[int]]) -> None:
    whole, first, second = (stage_of(groups) for _ in range(3))
    whole.advance(15, go_on)
    first.advance(7, go_on)
    saved = first.snapshot()
    copied = {name: value.clone() for name, value in saved.state.items()}
    second.restore(Snapshot(saved.model, copied, saved.plain))
    second.advance(15, go_on)
    for name, value in flat(whole.snapshot().state).items():
        assert value.equal(second.snapshot().state[name]), name
    for name, value in whole.seekers().items():
        assert value.equal(second.seekers()[name]), name
    assert whole.report()["holdout_mse"] == second.report()["holdout_mse"]


def test_a_member_of_a_population_learns_as_alone() -> None:
    together, lone = stage_of([list(SEEDS)]), stage_of(LONE)
    for stage in together, lone:
        stage.advance(12, go_on)
    for name, value in together.seekers().items():
        torch.testing.assert_close(value, lone.seekers()[name], rtol=1e-4, atol=1e-5)


def test_compiled_equals_eager() -> None:
    if not compiler_available(torch.device("cpu")):
        pytest.skip("no C++ compiler")
    eager, fast = stage_of([list(SEEDS)]), stage_of([list(SEEDS)], True)
    for stage in eager, fast:
        stage.advance(12, go_on)
    for name, value in eager.seekers().items():
        torch.testing.assert_close(fast.seekers()[name], value, rtol=1e-4, atol=1e-5)


def test_a_group_of_a_single_pair_of_ends_can_be_learned_from() -> None:
    group = SeekerGroup(settings(), [4], ways_of([4], 2), inputs(), train_step(settings()))
    assert group.steps_per_epoch == 1
    assert group.holdout.shape == group.train.shape == (1, H)


@pytest.mark.parametrize("groups", [LONE, [list(SEEDS)]], ids=["groups of one", "one group"])
def test_a_seeker_that_never_learned_is_refused(groups: list[list[int]]) -> None:
    ways = [ways_of(seeds) for seeds in groups]
    ways[-1].observation[-1, 0] = torch.nan  # of seed 6, all of it
    stage = SeekerStage(settings(), groups, ways, inputs(), False)
    stage.advance(10**6, go_on)
    with pytest.raises(ModelError, match=r"seeker .* seed\(s\) \[6\].*learning_rate"):
        stage.check_learned()
    fine = stage_of(groups)
    fine.advance(10**6, go_on)
    fine.check_learned()
