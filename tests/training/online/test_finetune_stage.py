"""Fine-tuning: what members live through, when they learn, and exact continuation."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import log_of
from torch import Tensor

from worldrl.config.schema import FinetuneConfig
from worldrl.errors import EnvironmentSetupError
from worldrl.learners import LEARNERS
from worldrl.rows import pack, unpack
from worldrl.training.logged import Logged
from worldrl.training.online import stage as finetune_stage
from worldrl.training.online.experience import OnlineExperience
from worldrl.training.online.footing import advice
from worldrl.training.online.stage import FinetuneStage
from worldrl.training.policy import PolicyStage
from worldrl.training.policy_group import members_of
from worldrl.training.rewards import RewardTransform
from worldrl.training.stages import Snapshot, flat
from worldrl.types import Batch, Context, LearnerState, Log, Metrics, Noise, Parameters

S, A, ROWS = 3, 2, 50
SEEDS = (4, 5, 6)
LONE, TOGETHER = [[4], [5], [6]], [[4, 5, 6]]
both = pytest.mark.parametrize("groups", [LONE, TOGETHER], ids=["groups of one", "one group"])
LOW, HIGH = np.array([-1.0, -2.0], np.float32), np.array([1.0, 4.0], np.float32)


def go_on() -> bool:
    return False


class Walk:
    """A noisy walk: it terminates beyond 2, is cut off after 9 steps, and remembers its steps."""

    def __init__(self, observation_size: int = S, action_size: int = A, broken: str = "") -> None:
        self.observation_space = SimpleNamespace(shape=(observation_size,))
        bound = np.full(action_size, 10.0)
        self.action_space = SimpleNamespace(low=-bound, high=bound)
        self.broken = broken
        self.steps: list[tuple[Any, ...]] = []
        self.resets: list[int] = []
        self.closed = False

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        assert seed is not None
        self.resets.append(seed)
        self.random = np.random.default_rng(None if self.broken == "random" else seed)
        self.state = self.random.normal(size=S)
        self.age = 0
        return self.state, {}

    def step(self, action: Any, /) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        before = self.state
        self.state = before + 0.3 * action.sum() / 5 + 0.3 * self.random.normal(size=S)
        self.age += 1
        reward = math.nan if self.broken == "nan" else float(before.sum())
        ended = bool(abs(self.state[0]) > 2)
        found = self.state, reward, ended, self.age == 9 and not ended
        self.steps.append((before, action, *found))
        return *found, {}

    def close(self) -> None:
        self.closed = True


def logged_rows(**changes: Any) -> Logged:
    log = log_of(ROWS, S, A)
    rows = Logged(
        pack(log.transitions), torch.ones(ROWS, dtype=torch.bool), torch.arange(ROWS) // 10, S, A,
        LOW, HIGH,
    )  # fmt: skip
    return rows._replace(**changes)


def config(**changes: Any) -> FinetuneConfig:
    base = {
        "dataset": {"source": "none"},
        "learner": {
            "kind": "sac", "hidden": (8, 8), "batch_size": 10, "num_critics": 4,
            "target_critics": 2, "actor_every": 3, "actor_schedule": "constant",
        },
        "num_steps": 60, "warmup_steps": 20, "updates_per_step": 3, "population": 3,
    }  # fmt: skip
    return FinetuneConfig.model_validate(base | changes)


def stage_of(
    groups: Sequence[Sequence[int]] = LONE,
    settings: FinetuneConfig | None = None,
    learner: Any = None,
    logged: Logged | None = None,
    broken: str = "",
) -> tuple[FinetuneStage, list[list[Walk]]]:
    settings, logged = settings or config(), logged or logged_rows()
    if learner is None:
        learner = LEARNERS[settings.learner.kind](settings.learner, S, A, settings.num_updates)  # type: ignore[call-arg]
    walks = [[Walk(broken=broken) for _ in seeds] for seeds in groups]
    online = [
        OnlineExperience(settings, learner, seeds, own, logged)
        for seeds, own in zip(groups, walks, strict=True)
    ]
    members = members_of(groups, logged.log, online)
    policies = PolicyStage(settings, learner, members, logged, False)
    return FinetuneStage(settings, policies, online), walks


def copied(snapshot: Snapshot) -> Snapshot:
    """As a checkpoint holds it."""
    tensors = ({k: v.clone() for k, v in part.items()} for part in snapshot[:2])
    return Snapshot(*tensors, json.loads(json.dumps(snapshot.plain, allow_nan=False)))


def assert_same(one: FinetuneStage, other: FinetuneStage) -> None:
    first, second = one.snapshot(), other.snapshot()
    assert first.plain == second.plain
    for name, value in first.state.items():
        assert torch.equal(value, second.state[name]), name


class Scribe:
    """A learner that writes down its batches, and whose policy says how often it was updated."""

    phases = 1
    metric_names = ("critic_loss", "value_mean")

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.acted: list[float] = []

    def initialise(self, seeds: Sequence[int], log: Log, first: int = 0) -> LearnerState:
        return {
            "settings": {"discount": torch.full((len(seeds),), 0.9).double()},
            "actor": {"updates": torch.zeros(len(seeds), 1)},
        }

    def noise(self, generator: torch.Generator, count: int, batch_size: int) -> Noise:
        return {"actions": torch.randn(count, batch_size, A, generator=generator)}

    def update(
        self, state: LearnerState, batch: Batch, noise: Noise, context: Context, phase: int = 0
    ) -> Metrics:
        self.batches.append(Batch(*(value.clone() for value in batch)))
        state["actor"]["updates"] += 1
        one = torch.ones(len(batch.reward))
        return {"critic_loss": one, "value_mean": one}

    def policy_parameters(self, state: LearnerState) -> Parameters:
        actor: Parameters = state["actor"]
        return actor

    def act(self, policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
        assert noise is not None
        self.acted.append(policy["updates"].max().item())
        return (observation.mean(-1, keepdim=True) + noise).tanh()


# -- what is lived through -----------------------------------------------------------------


def test_transitions_are_what_the_environment_did():
    """Rewards as learners see them, actions in [-1, 1], and no end where an episode is cut off."""
    logged = logged_rows(rewards=RewardTransform(2.0, -1.0))
    stage, walks = stage_of([[4], [5]], config(population=2), Scribe(), logged)
    stage.advance(60, go_on)
    for group, (walk,) in zip(stage.groups, walks, strict=True):
        assert len(walk.steps) == 60
        rows = unpack(group.online.earliest(60)[0], S, A)
        ends = 0
        for number, (before, action, after, reward, ended, cut_off) in enumerate(walk.steps):
            np.testing.assert_array_equal(rows.observation[number], before.astype(np.float32))
            np.testing.assert_array_equal(rows.next_observation[number], after.astype(np.float32))
            unit = rows.action[number].numpy()
            np.testing.assert_allclose(action, LOW + (unit + 1) / 2 * (HIGH - LOW), atol=1e-6)
            assert rows.reward[number].item() == pytest.approx(2 * reward - 1, rel=1e-5, abs=1e-5)
            assert rows.terminated[number].item() == ended
            ends += ended or cut_off
        assert rows.terminated.any()
        assert any(cut_off for *_, cut_off in walk.steps)
        assert group.lives[0].episodes == ends == len(walk.resets) - 1
        assert len(set(walk.resets)) == len(walk.resets)
    assert walks[0][0].resets != walks[1][0].resets


def test_returns_are_those_of_the_environment():
    stage, walks = stage_of([[4]], config(population=1), logged=logged_rows(
        rewards=RewardTransform(2.0, -1.0)))  # fmt: skip
    stage.advance(60, go_on)
    returns, total, warm = [], 0.0, 0
    for number, (_, _, _, reward, ended, cut_off) in enumerate(walks[0][0].steps):
        total += reward
        if ended or cut_off:
            returns.append(total)
            warm += number < 20
            total = 0.0
    life = stage.groups[0].lives[0]
    assert life.warmup_returns == pytest.approx(returns[:warm])
    assert life.returns == pytest.approx(returns[warm:][-10:])
    assert life.returned == pytest.approx(total)
    assert stage.report()["episode_return"] == pytest.approx([np.mean(returns[-10:])])


def test_the_latest_transitions_are_kept():
    settings = config(replay_capacity=16, population=1)
    whole, (walks,) = stage_of([[4]], settings, Scribe())
    whole.advance(60, go_on)
    online = whole.groups[0].online
    kept = unpack(online.rows, S, A).observation
    wanted = np.array([before for before, *_ in walks[0].steps[-16:]], np.float32)
    assert sorted(map(tuple, kept.tolist())) == sorted(map(tuple, wanted.tolist()))


def test_rows_are_drawn_from_what_was_lived_by_the_member_itself():
    stage, walks = stage_of(TOGETHER, learner=Scribe())
    stage.advance(30, go_on)
    online = stage.groups[0].online
    uniform = torch.rand(3, 4, 500, dtype=torch.float64)
    uniform[:, 0, 0], uniform[:, 0, 1] = 0.0, 1 - 2**-53
    found = online.rows[online.indices(uniform)]
    for member, walk in enumerate(walks[0]):
        seen = {tuple(row) for row in found[member, ..., :S].flatten(0, 1).tolist()}
        lived = {tuple(before.astype(np.float32).tolist()) for before, *_ in walk.steps}
        assert seen == lived
        assert len(lived) == 30


@pytest.mark.parametrize(
    ("walk", "words"),
    [
        (Walk(observation_size=4), "observes 4 numbers, and the data holds 3"),
        (Walk(action_size=1), "the policy gives 2"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused(walk, words):
    with pytest.raises(EnvironmentSetupError, match=words):
        OnlineExperience(config(), Scribe(), [4], [walk], logged_rows())


def test_an_observation_or_reward_that_is_not_finite_is_refused():
    stage, _ = stage_of(broken="nan")
    with pytest.raises(EnvironmentSetupError, match="not finite, to seed 4 at step 0"):
        stage.advance(1, go_on)


# -- when members learn --------------------------------------------------------------------


@both
def test_the_warm_up_acts_and_does_not_learn(groups):
    stage, walks = stage_of(groups)
    before = {k: v.clone() for group in stage.groups for k, v in flat(group.learners.state).items()}
    stage.advance(20, go_on)
    assert stage.step == 20
    assert all(len(walk.steps) == 20 for own in walks for walk in own)
    after = {k: v for group in stage.groups for k, v in flat(group.learners.state).items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert stage.report()["updates"] == [0.0] * 3
    assert "critic_loss" not in stage.report()


@both
def test_so_many_updates_follow_every_step(groups):
    stage, walks = stage_of(groups)
    for until in (3, 20, 21, 22, 40, 60):
        stage.advance(until, go_on)
        assert stage.step == until
        updates = 3 * max(until - 20, 0)
        for group, own in zip(stage.groups, walks, strict=True):
            assert group.learners.step == updates
            assert [len(walk.steps) for walk in own] == [until] * len(own)
            steps = group.learners.state["critic_adam"].steps
            assert steps.tolist() == [updates] * len(own)
            # The actor learns once a step.
            assert group.learners.state["actor_adam"].steps.tolist() == [updates // 3] * len(own)
    assert stage.finished


def test_every_step_is_taken_with_the_policy_of_the_updates_before_it():
    scribe = Scribe()
    stage, _ = stage_of([[4]], config(population=1), scribe)
    stage.advance(60, go_on)
    assert scribe.acted == [0.0] * 20 + [3.0 * step for step in range(40)]


@pytest.mark.parametrize(("ratio", "rows"), [(0.0, 0), (0.5, 5), (0.29, 2)])
def test_batches_are_of_the_data_and_of_the_environment(ratio, rows):
    scribe = Scribe()
    stage, (walks,) = stage_of([[4]], config(population=1, offline_ratio=ratio), scribe)
    stage.advance(60, go_on)
    logged = logged_rows().rows
    assert len(scribe.batches) == 120
    for number, batch in enumerate(scribe.batches):
        assert batch.logged.shape == (1, rows)
        packed = pack(batch)[0]
        assert torch.equal(packed[:rows], logged[batch.logged[0]])
        # Of the steps so far, the one just taken among them.
        so_far = walks[0].steps[: 21 + number // 3]
        lived = {tuple(before.astype(np.float32).tolist()) for before, *_ in so_far}
        assert {tuple(row) for row in packed[rows:, :S].tolist()} <= lived
    later = {tuple(before.astype(np.float32).tolist()) for before, *_ in walks[0].steps[50:]}
    assert any(tuple(r) in later for b in scribe.batches[-10:] for r in b.observation[0].tolist())


def test_a_uniform_warm_up_asks_no_policy():
    scribe = Scribe()
    settings = config(population=1, num_steps=3_000, warmup_steps=2_900, warmup_policy="uniform")
    stage, _ = stage_of([[4]], settings, scribe)
    stage.advance(2_900, go_on)
    assert scribe.acted == []
    actions = unpack(stage.groups[0].online.earliest(2_900)[0], S, A).action
    assert actions.mean().item() == pytest.approx(0, abs=0.05)
    assert actions.std().item() == pytest.approx(3**-0.5, abs=0.02)
    assert actions.abs().max() <= 1
    stage.advance(2_901, go_on)
    assert scribe.acted == [0.0]


@pytest.mark.parametrize("kind", ["td3bc", "rebrac", "prdc", "iql"])
def test_learners_of_their_own_go_on_too(kind):
    """Without a logged row in a batch, and with half of them."""
    learner = {"kind": kind, "hidden": (8, 8), "batch_size": 10}
    for ratio in (0.0, 0.5):
        stage, _ = stage_of(LONE, config(learner=learner, offline_ratio=ratio))
        stage.advance(30, go_on)
        assert all(math.isfinite(value) for value in stage.report()["critic_loss"])


# -- populations and continuation ----------------------------------------------------------


def test_a_population_equals_its_lone_runs():
    """Alone and in groups of one to the bit; batched while sums of float32 stay close."""
    stage, walks = stage_of(LONE)
    stage.advance(30, go_on)
    together, others = stage_of(TOGETHER)
    together.advance(22, go_on)
    for member, seed in enumerate(SEEDS):
        alone, (own,) = stage_of([[seed]], config(population=1))
        alone.advance(30, go_on)
        for name, value in alone.snapshot().state.items():
            assert torch.equal(value[0], stage.snapshot().state[name][member]), name
        assert own[0].resets == walks[member][0].resets
        for one, other in zip(own[0].steps[:22], others[0][member].steps, strict=True):
            np.testing.assert_allclose(one[2], other[2], rtol=1e-4, atol=1e-4)


@both
@pytest.mark.parametrize("at", [7, 20, 33, 59])
def test_a_restored_stage_goes_on_as_if_nothing_had_happened(groups, at, capsys):
    whole, _ = stage_of(groups)
    whole.advance(at, go_on)
    saved = copied(whole.snapshot())
    whole.advance(60, go_on)
    again, _ = stage_of(groups)
    again.restore(saved)
    assert again.step == at
    again.advance(60, go_on)
    assert_same(whole, again)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("looks", [3, 8, 11, 30])
def test_a_stage_stopped_at_any_moment_goes_on_as_if_nothing_had_happened(looks, monkeypatch):
    """Also between the updates of a step, and where one member is ahead of the others."""
    monkeypatch.setattr(finetune_stage, "PIECE", 4)
    monkeypatch.setattr("worldrl.training.policy_group.NOISE_BLOCK", 7)
    whole, _ = stage_of()
    whole.advance(60, go_on)
    stopped, _ = stage_of()
    count = iter(range(10**6))
    stopped.advance(60, lambda: next(count) >= looks)
    assert stopped.step < 60
    again, _ = stage_of()
    again.restore(copied(stopped.snapshot()))
    assert again.step == stopped.step
    again.advance(60, go_on)
    assert_same(whole, again)


def test_an_episode_that_does_not_come_out_again_is_left(capsys):
    """Where an environment is no function of its seed, or the first actions are forgotten."""
    first, _ = stage_of(broken="random")
    first.advance(33, go_on)
    while any(group.lives[0].length == 0 for group in first.groups):
        first.advance(first.step + 1, go_on)
    episodes = [group.lives[0].episode for group in first.groups]
    again, walks = stage_of(broken="random")
    again.restore(copied(first.snapshot()))
    assert capsys.readouterr().err.count("does not come out as it did") == 3
    assert [group.lives[0].episode for group in again.groups] == [one + 1 for one in episodes]
    again.advance(60, go_on)
    assert all(len(walk.steps) == 60 - first.step for (walk,) in walks)

    settings = config(replay_capacity=1)
    first, _ = stage_of(settings=settings)
    while first.groups[0].lives[0].length < 2:
        first.advance(first.step + 1, go_on)
    again, _ = stage_of(settings=settings)
    again.restore(copied(first.snapshot()))
    assert again.groups[0].lives[0].episode == first.groups[0].lives[0].episode + 1


# -- what is said --------------------------------------------------------------------------


def test_advice_is_given_beyond_its_limits_alone():
    alone, mixed = config(), config(offline_ratio=0.5)
    assert advice(alone, 0.3, -0.25) is None
    assert advice(alone, math.nan, math.nan) is None
    assert "mean Q on the warm-up's transitions changed by +31%" in (advice(alone, 0.31, 0) or "")
    assert "the return changed by -26%" in (advice(alone, 0.0, -0.26) or "")
    assert "--recipe rlpd" in (advice(alone, 9.0, -9.0) or "")
    assert "a lower learner.actor_learning_rate" in (advice(mixed, 9.0, -9.0) or "")


def test_a_learner_that_loses_its_values_is_told_so_once(capsys):
    learner = config().learner.model_dump() | {"critic_learning_rate": 0.3}
    stage, _ = stage_of([[4]], config(population=1, learner=learner, guard={"enabled": False}))
    found = []
    for until in range(21, 61):
        stage.advance(until, go_on)
        found += stage.report()["value_change"]
    assert capsys.readouterr().err.count("mean Q on the warm-up's transitions changed by") == 1
    assert max(map(abs, found)) > 0.3
    again, _ = stage_of([[4]], config(population=1, learner=learner))
    again.restore(copied(stage.snapshot()))
    again.report()
    assert capsys.readouterr().err == ""

    for other in {"footing": {"steps": 5}}, {"weights": "fresh"}:
        calm, _ = stage_of([[4]], config(population=1, **other))
        calm.advance(40, go_on)
        assert "value_change" not in calm.report()


@pytest.mark.parametrize("kind", ["iql", "td3bc", "rebrac", "prdc"])
def test_every_learner_with_critics_has_a_footing(kind: str, capsys: pytest.CaptureFixture[str]):
    learner = {"kind": kind, "hidden": (8, 8), "batch_size": 10, "critic_learning_rate": 0.3}
    settings = config(population=1, learner=learner, offline_ratio=0.5, guard={"enabled": False})
    stage, _ = stage_of([[4]], settings)
    found = []
    for until in range(21, 61):
        stage.advance(until, go_on)
        found += stage.report()["value_change"]
    assert stage.groups[0].footings[0].value is not None
    assert max(map(abs, found)) > 0.3
    assert capsys.readouterr().err.count("mean Q on the warm-up's transitions changed by") == 1


def test_guards_know_the_rewards_that_were_met():
    stage, walks = stage_of(LONE)
    stage.advance(60, go_on)
    stage.report()
    largest = logged_rows().transitions.reward.abs().max().item()
    for group, (walk,) in zip(stage.groups, walks, strict=True):
        rewards = np.array([reward for _, _, _, reward, _, _ in walk.steps])
        (scale,) = group.learners.scales
        assert scale.reward_max == pytest.approx(max(largest, np.abs(rewards).max()), rel=1e-5)
        assert scale.reward_rms >= np.sqrt(np.square(rewards).mean()) * (1 - 1e-5)
