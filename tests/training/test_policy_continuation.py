"""A stage that trains policies goes on from a snapshot exactly as if it had not stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from policy_stages import (
    LONE,
    TOGETHER,
    Scribe,
    assert_same,
    both,
    config,
    copied,
    explode,
    run,
    stage_of,
    uninterrupted,
)

from worldrl.config.imagination import RolloutSettings
from worldrl.config.schema import TrainConfig
from worldrl.errors import RunError
from worldrl.learners import LEARNERS
from worldrl.training.policy import PolicyStage
from worldrl.training.stages import flat


@both
@pytest.mark.parametrize("at", [0, 1, 7, 10, 13, 33, 59])
def test_continues_bit_identically_from_a_snapshot(groups, at):
    """At any update: within an interval of reports, of refreshes, of noise blocks."""
    whole, wanted = uninterrupted(groups is TOGETHER)
    first = stage_of(groups)
    run(first, until=at)
    saved = copied(first.snapshot())
    second = stage_of(groups)
    second.restore(saved)
    assert second.step == at
    reports = run(second)
    assert reports == wanted[len(wanted) - len(reports) :]
    assert_same(second, whole)


def adversarial(**changes: Any) -> TrainConfig:
    """As :func:`config`, with a model that changes before every refresh but the first."""
    imagination = config().imagination.model_dump(include=set(RolloutSettings.model_fields))
    own = {"kind": "adversarial", "model_updates": 3, "model_batch_size": 5}
    return TrainConfig.model_validate(
        config(**changes).model_dump() | {"imagination": imagination | own}
    )


@both
@pytest.mark.parametrize("at", [3, 7, 20, 33])
def test_a_model_that_changes_continues_bit_identically(groups, at):
    """Before, at and after a refresh; the live ones were made by other models than today's."""
    settings = adversarial()
    whole, first, second = (stage_of(groups, settings) for _ in range(3))
    wanted = run(whole, until=40)
    run(first, until=at)
    second.restore(copied(first.snapshot()))
    reports = run(second, until=40)
    assert reports == wanted[len(wanted) - len(reports) :]
    assert_same(second, whole)
    names = {n for n in whole.snapshot().state if n.startswith("refreshes/imagination/")}
    assert "refreshes/imagination/model/weight.0" in names
    assert "refreshes/imagination/adam/steps" in names
    model = whole.snapshot().state["refreshes/imagination/model/weight.0"]
    slots = [whole.snapshot().state[f"refreshes/{n}/model/weight.0"] for n in range(3)]
    assert model.equal(slots[-1])
    assert not slots[0].equal(slots[1])


@both
def test_a_snapshot_does_not_change_afterwards(groups):
    stage = stage_of(groups, config(guard={"warmup": 30}))
    run(stage, until=23)
    saved, kept = stage.snapshot(), copied(stage.snapshot())
    run(stage, until=45)
    assert json.loads(json.dumps(saved.plain)) == kept.plain
    for part, same in (saved.model, kept.model), (saved.state, kept.state):
        assert all(part[name].equal(value) for name, value in same.items())


def test_continues_bit_identically_across_noise_blocks():
    settings = config(num_updates=230)
    whole, first, second = (stage_of(LONE[:1], settings) for _ in range(3))
    run(whole, until=230)
    run(first, until=117)
    second.restore(copied(first.snapshot()))
    run(second, until=230)
    assert_same(second, whole)


@both
@pytest.mark.parametrize("at", [13, 33])
def test_continues_bit_identically_with_a_stopped_member(groups, at):
    """A group that stopped long ago holds other refreshes than those that go on."""

    def poisoned(seed: int) -> Callable[[PolicyStage], None]:
        def poison(stage: PolicyStage) -> None:
            group = stage.groups[0] if len(groups) == 1 else stage.groups[seed]
            member = seed if len(groups) == 1 else 0
            group.state["actor"]["weight.0"][member] = math.nan

        return poison

    for seed in (0, 1):
        poison = poisoned(seed)
        whole, first, second = stage_of(groups), stage_of(groups), stage_of(groups)
        for stage in whole, first:
            run(stage, until=3)
            poison(stage)
        run(whole)
        run(first, until=at)
        second.restore(copied(first.snapshot()))
        run(second)
        assert second.trips == whole.trips
        assert second.trips[seed] is not None
        assert_same(second, whole)


@both
@pytest.mark.parametrize("at", [0, 20])
def test_continues_bit_identically_with_one_group_behind(groups, at):
    """A stop request comes when the second group has hardly begun, or not at all."""
    whole, _ = uninterrupted(groups is TOGETHER)
    first = stage_of(groups)
    run(first, until=at)
    calls: list[int] = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) > 1

    first.advance(at + 10, stop)
    second = stage_of(groups)
    second.restore(copied(first.snapshot()))
    assert [g.step for g in second.groups] == [g.step for g in first.groups]
    run(second)
    assert_same(second, whole)


@both
def test_reference_losses_and_trips_survive_a_snapshot(groups):
    guard = {"warmup": 20, "critic_loss_growth": 10.0}

    def build(learner: Scribe) -> PolicyStage:
        return stage_of(groups, config(guard=guard), learner)

    first = build(Scribe(ruin=explode))
    run(first, until=40)
    saved = copied(first.snapshot())
    # from here on the loss is large: only who knows its reference can tell
    second = build(Scribe(loss=lambda seed, update: 1e4 if seed == 6 else 1.0))
    second.restore(saved)
    assert second.trips[1] == first.trips[1] is not None
    run(second, until=50)
    assert [trip and trip.step for trip in second.trips] == [None, 30, 50]


@both
def test_the_last_good_policy_survives_a_snapshot(groups):
    first = stage_of(groups, learner=Scribe())
    run(first, until=34)  # the last report, and so the last good policy, was at 30
    second = stage_of(groups, learner=Scribe(ruin=lambda seed, update: math.nan))
    second.restore(copied(first.snapshot()))
    run(second, until=40)
    assert [trip and trip.step for trip in second.trips] == [40] * 3
    assert second.policy_parameters()["weight"].flatten().tolist() == [30.0] * 3


@both
def test_a_buffer_that_comes_out_differently_is_refused(groups):
    first = stage_of(groups)
    run(first, until=33)
    saved = copied(first.snapshot())
    blocks = saved.plain["groups"][-1]["refreshes"]
    assert [refresh for refresh, _ in blocks] == [2, 3, 4]
    digest = blocks[1][1]
    digest[-1] = ("0" if digest[-1][0] != "0" else "1") + digest[-1][1:]
    with pytest.raises(RunError, match="came out differently") as refusal:
        stage_of(groups).restore(saved)
    assert "\n" not in str(refusal.value)

    other_policy = copied(first.snapshot())
    other_policy.state["refreshes/1/weight.0"][-1] += 1e-3
    with pytest.raises(RunError, match="came out differently"):
        stage_of(groups).restore(other_policy)


def test_snapshot_holds_the_live_refreshes_only():
    stage = stage_of(TOGETHER)
    run(stage, until=50)
    saved = stage.snapshot()
    assert [refresh for refresh, _ in saved.plain["groups"][0]["refreshes"]] == [5, 6, 7]
    policy = {name for name in saved.state if name.startswith("refreshes/")}
    names = stage.groups[0].learner.policy_parameters(stage.groups[0].state)
    assert policy == {f"refreshes/{slot}/{name}" for slot in range(3) for name in names}


def test_restoring_keeps_references_good():
    """Compiled updates and evaluations hold on to the tensors they were given."""
    stage = stage_of(TOGETHER)
    run(stage, until=10)
    saved = copied(stage.snapshot())
    before = flat(stage.groups[0].state)
    run(stage, until=20)
    stage.restore(saved)
    after = flat(stage.groups[0].state)
    assert all(after[name] is before[name] for name in before)
    for name, value in saved.model.items():
        assert stage.policy_parameters()[name.removeprefix("policy/")].equal(value)


#: What a learner needs beside the settings of :func:`config`.
NEEDS: dict[str, dict[str, Any]] = {
    "bc": {"imagination": {"kind": "none"}},
    "mobile": {"imagination": {"kind": "branched", "penalty": {"kind": "none"}}},
    "h2o": {"imagination": {"kind": "simulator", "real_ratio": 0.4}},
}


@pytest.mark.parametrize("at", [7, 10])
@pytest.mark.parametrize("kind", sorted(LEARNERS))
def test_every_learner_continues_bit_identically(kind, at):
    """Also between the two phases of TD3's turn."""
    base = config().model_dump()
    given = {"kind": kind, "hidden": (8, 8), "batch_size": 10}
    changed = NEEDS.get(kind, {}).get("imagination", {})
    if "kind" in changed:
        kept = set(RolloutSettings.model_fields) if changed["kind"] != "none" else set()
        base["imagination"] = {k: v for k, v in base["imagination"].items() if k in kept} | changed
    settings = TrainConfig.model_validate(base | {"learner": given, "num_updates": 30})
    whole, first, second = (stage_of(LONE, settings) for _ in range(3))
    wanted = run(whole, until=30)
    run(first, until=at)
    second.restore(copied(first.snapshot()))
    reports = run(second, until=30)
    assert reports == wanted[len(wanted) - len(reports) :]
    assert_same(second, whole)
