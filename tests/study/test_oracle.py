"""The patch: targets beyond reach are the returns that are truly earned there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldrl.learners.sac import SAC
from worldrl.rows import pack, unpack
from worldrl.study import point
from worldrl.study.edge_of_reach import (
    ARMS,
    HORIZON,
    beyond_reach,
    learner_settings,
    rollouts,
    train_config,
)
from worldrl.study.oracle import PatchedRollouts
from worldrl.training.logged import logged
from worldrl.types import Batch, Metrics, Parameters, Transitions

DISCOUNT = 0.8


class Outward:
    """A learner that always goes right, whatever the noise."""

    def act(self, policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
        return torch.tensor([1.0, 0.0]).expand_as(observation)


class Given:
    """An imagination that hands out fixed rows; the second member has one less."""

    capacity = 4
    state: dict[str, Tensor] = {}  # noqa: RUF012

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def fill(self, rows: Tensor, number: int, sources: Parameters) -> tuple[Tensor, Metrics]:
        rows.copy_(self.rows)
        return torch.tensor([4, 3]), {"rows": torch.tensor([4.0, 3.0])}


def given_rows() -> Tensor:
    observation = torch.tensor([[0.1, 0.2], [1.35, 0.0], [0.0, 0.0], [0.0, 1.39]]).repeat(2, 1, 1)
    action = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]).repeat(2, 1, 1)
    following = point.step(observation, action)
    reward = point.reward(following)
    return pack(Transitions(observation, action, reward, following, torch.zeros(2, 4)))


def patched(rows: Tensor) -> tuple[Tensor, Metrics]:
    arm = PatchedRollouts(
        Given(rows),  # type: ignore[arg-type]
        point.point_world(2),
        Outward(),  # type: ignore[arg-type]
        beyond_reach,
        DISCOUNT,
        (0, 1),
        2,
        2,
    )
    out = torch.zeros_like(rows)
    counts, health = arm.fill(out, 0, {})
    assert counts.tolist() == [4, 3]
    return out, health


def test_targets_beyond_reach_are_true_returns() -> None:
    before = given_rows()
    after, health = patched(before)
    rows, old = unpack(after, 2, 2), unpack(before, 2, 2)
    # Rows 1 and 3 arrive beyond reach; row 3 of the second member was never written.
    expected = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    assert torch.equal(rows.terminated, expected)
    assert health["patched_share"].tolist() == pytest.approx([0.5, 1 / 3])
    assert torch.equal(after[expected == 0], before[expected == 0])
    for member, row in (0, 1), (0, 3), (1, 1):
        state, total = old.next_observation[member, row].double(), 0.0
        reward = torch.tensor(0.0)
        for ahead in range(21):  # 0.8 ** 21 is the first below 1 %
            state = point.step(state, torch.tensor([1.0, 0.0]))
            reward = point.reward(state)
            total += DISCOUNT**ahead * float(reward)
        total += DISCOUNT**21 / (1 - DISCOUNT) * float(reward)
        target = float(old.reward[member, row]) + DISCOUNT * total
        assert float(rows.reward[member, row]) == pytest.approx(target, rel=1e-4)


def test_rows_inside_reach_are_left_alone() -> None:
    before = given_rows()[:, [0, 2, 0, 2]]
    after, health = patched(before)
    assert torch.equal(after, before)
    assert health["patched_share"].tolist() == [0, 0]


def test_arms_differ_in_what_they_say_and_nothing_else() -> None:
    base, patch, critics, ravl = (learner_settings(arm) for arm in ARMS.values())
    assert base == patch
    assert critics == ravl.model_copy(update={"diversity": 0.0})
    assert ravl.diversity > 0
    assert ARMS["patch"].patched
    assert not ARMS["base"].patched
    assert ravl.num_critics == 10
    assert base.num_critics == 2
    assert not base.entropy_in_target


def test_errors_at_the_edge_of_reach_flow_into_targets_and_not_past_the_patch() -> None:
    """The edge-of-reach trap in true dynamics, without training: states where rollouts end are
    never learned from, and targets hold their values whatever those are."""
    data = logged(point.logged_dataset(0), torch.device("cpu"))
    config = train_config(ARMS["base"], 1, 10, 0)
    learner = SAC(learner_settings(ARMS["base"]), 2, 2, 10)
    state = learner.initialise([0], data.log)
    # Outward, so that many rollouts end beyond what one step less can reach.
    state["actor"]["bias.2"][..., 0] += 10.0
    (base,) = rollouts(config, learner, [[0]], data)
    world = point.point_world(1)
    patch = PatchedRollouts(base, world, learner, beyond_reach, 0.99, (0,), 2, 2)
    rise = {}
    for name, arm in ("base", base), ("patch", patch):
        rows = torch.zeros(1, arm.capacity, 8)
        counts, _ = arm.fill(rows, 0, arm.sources(state))
        assert counts.tolist() == [1_000 * HORIZON]
        held = unpack(rows, 2, 2)
        assert not beyond_reach(held.observation).any()
        edge = beyond_reach(held.next_observation)
        assert 0.001 < edge.float().mean() < 0.05
        batch = Batch(*held, torch.zeros(1, 0, dtype=torch.int64))
        noise = learner.noise(torch.Generator().manual_seed(0), 1, len(rows[0]))
        before, _ = learner.backup(state, batch, noise)
        state["target"]["bias.2"] += 100.0  # every value is that wrong
        after, _ = learner.backup(state, batch, noise)
        state["target"]["bias.2"] -= 100.0
        rise[name] = (after - before)[edge], (after - before)[~edge]
    assert torch.allclose(rise["base"][0], torch.tensor(99.0), atol=1e-2)
    assert not rise["patch"][0].any()
    for name in rise:
        assert torch.allclose(rise[name][1], torch.tensor(99.0), atol=1e-2)
