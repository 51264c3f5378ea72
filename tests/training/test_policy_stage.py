"""The stage that trains policies: batches, refreshes, and guards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
import torch
from policy_stages import (
    LONE,
    ROWS,
    SEEDS,
    TOGETHER,
    A,
    S,
    Scribe,
    assert_same,
    both,
    config,
    config_without_imagination,
    copied,
    explode,
    go_on,
    imaginations,
    imagining,
    logged_rows,
    rollouts_of,
    run,
    stage_of,
    uninterrupted,
    world_of,
)
from support import log_of
from torch import Tensor

from worldrl.config.schema import TrainConfig
from worldrl.errors import ConfigError
from worldrl.imagination import buffer
from worldrl.imagination.branched import BranchedRollouts, steps_before
from worldrl.imagination.experience import (
    check_buffers,
)
from worldrl.imagination.health import RolloutHealth
from worldrl.imagination.penalties import PENALTIES
from worldrl.imagination.rollout import measured, upper_quantile
from worldrl.learners import LEARNERS
from worldrl.rows import pack
from worldrl.training import guards
from worldrl.training.compilation import compiler_available
from worldrl.training.policy_group import episode_means
from worldrl.types import (
    LearnerState,
    Metrics,
    Parameters,
)

# -- batches -------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "real"), [(0.35, 3), (0.0, 0), (0.05, 0), (0.99, 9)])
@both
def test_logged_rows_are_the_first_of_a_batch(groups, ratio, real):
    scribe = Scribe()
    run(stage_of(groups, config({"real_ratio": ratio}), scribe), until=30)
    logged = logged_rows().rows
    for seed in SEEDS:
        assert len(scribe.batches[seed]) == 30
        for batch in scribe.batches[seed]:
            assert batch.reward.shape == (10,)
            rows = pack(batch)
            drawn = batch.reward[:real].long() - 1
            assert rows[:real].equal(logged[drawn])
            assert (batch.reward[real:] < 0).all()  # imagined, and never a row of zeros


@both
def test_batches_of_logged_rows_are_uniform_and_each_member_draws_its_own(groups):
    scribe = Scribe()
    run(stage_of(groups, config_without_imagination(num_updates=400), scribe), until=400)
    rewards = {seed: torch.cat([b.reward for b in scribe.batches[seed]]) for seed in SEEDS}
    for seed in SEEDS:
        counts = torch.bincount(rewards[seed].long(), minlength=ROWS + 1)[1:]
        assert counts.sum() == 4000
        assert (counts - 80).abs().max() < 5 * 80**0.5
    assert (rewards[4] == rewards[5]).float().mean() < 0.1


@both
@pytest.mark.parametrize("imagined", [False, True])
def test_logged_rows_are_drawn_as_the_sampling_says_and_starts_are_uniform(groups, imagined):
    """Five episodes of ten rows; the last one returns most."""
    rows = logged_rows()._replace(episode=torch.arange(ROWS) // 10)
    base = (config if imagined else config_without_imagination)(num_updates=200)
    settings = TrainConfig.model_validate(
        base.model_dump() | {"sampling": {"kind": "top_returns", "share": 0.2}}
    )
    whole, sliced, starts = Scribe(), Scribe(), set()
    for scribe, steps in (whole, (200,)), (sliced, (1, 99, 100, 101, 200)):
        found = imaginations(settings, scribe, groups)
        stage = imagining(settings, scribe, groups, found, rows)
        for until in steps:
            stage.advance(until, go_on)
    real = 3 if imagined else 10
    for seed in SEEDS:
        drawn = torch.cat([batch.reward[:real] for batch in whole.batches[seed]]).long()
        counts = torch.bincount(drawn, minlength=ROWS + 1)[1:]
        assert counts[:40].sum() == 0
        assert counts[40:].min() > 0.5 * counts[40:].double().mean()
        for one, other in zip(whole.batches[seed], sliced.batches[seed], strict=True):
            assert pack(one).equal(pack(other))
        for batch in whole.batches[seed]:
            states = batch.observation[real:, None] == rows.transitions.observation
            starts |= set(states.all(-1).nonzero()[:, 1].tolist())
    assert (len(starts) == ROWS) == imagined


@both
def test_the_same_batches_however_the_updates_are_sliced(groups):
    whole, sliced = Scribe(), Scribe()
    stage_of(groups, learner=whole).advance(60, go_on)
    stage = stage_of(groups, learner=sliced)
    for until in (1, 2, 6, 7, 8, 20, 21, 59, 60):
        stage.advance(until, go_on)
    for seed in SEEDS:
        for one, other in zip(whole.batches[seed], sliced.batches[seed], strict=True):
            assert pack(one).equal(pack(other))


def test_groups_and_populations_draw_the_same_batches():
    lone, together = Scribe(), Scribe()
    stage_of(LONE, learner=lone).advance(60, go_on)
    stage_of(TOGETHER, learner=together).advance(60, go_on)
    for seed in SEEDS:
        for one, other in zip(lone.batches[seed], together.batches[seed], strict=True):
            torch.testing.assert_close(pack(one), pack(other), rtol=1e-5, atol=1e-5)


# -- refreshes -----------------------------------------------------------------------------


class Imaginer:
    """One group's imagination: rows that name their refresh, and a record of the calls."""

    capacity = 4

    def __init__(self, seeds: Sequence[int]) -> None:
        self.members = len(seeds)
        self.calls: list[tuple[int, list[float]]] = []  # refresh, policy
        self.state: dict[str, Tensor] = {}

    def prepare(self, number: int, learner: LearnerState) -> None:
        assert number == len(self.calls)

    def sources(self, learner: LearnerState) -> Parameters:
        return learner["actor"]

    def fill(self, rows: Tensor, number: int, sources: Parameters) -> tuple[Tensor, Metrics]:
        self.calls.append((number, sources["weight"].flatten().tolist()))
        counts = torch.tensor([1 + (number + member) % 4 for member in range(self.members)])
        rows[:] = 0.0
        for member, count in enumerate(counts.tolist()):
            rows[member, :count] = -1.0 - number
        return counts, {"rows": counts}


@both
def test_imagination_is_refreshed_on_time_with_the_policy_of_that_time(groups):
    imaginers = [Imaginer(seeds) for seeds in groups]
    stage = imagining(config(), Scribe(), groups, imaginers)
    for until in (3, 7, 8, 20, 34, 60):
        stage.advance(until, go_on)
    for imaginer in imaginers:
        wanted = [(number, [7.0 * number] * imaginer.members) for number in range(9)]
        assert imaginer.calls == wanted


@both
def test_synthetic_rows_are_of_the_last_refreshes_and_of_all_of_them(groups):
    scribe = Scribe()
    settings = config({"every": 40, "real_ratio": 0.0}, num_updates=400)
    imaginers = [Imaginer(seeds) for seeds in groups]
    run(imagining(settings, scribe, groups, imaginers), until=400)
    for seed in SEEDS:
        for refresh in range(10):
            rewards = torch.cat(
                [b.reward for b in scribe.batches[seed][40 * refresh : 40 * refresh + 40]]
            )
            recent = {-1.0 - number for number in range(max(0, refresh - 2), refresh + 1)}
            assert set(rewards.tolist()) == recent


@both
def test_without_imagination_nothing_is_imagined(groups):
    scribe = Scribe()
    reports = run(stage_of(groups, config_without_imagination(), scribe))
    assert not any(name.startswith("imagined") for name in reports[0])
    assert all((b.reward > 0).all() for b in scribe.batches[4])


def on_data(penalty: str) -> Tensor:
    """``(P, ROWS)``."""
    rows = logged_rows().transitions
    states = torch.cat([rows.observation, rows.next_observation])
    spread = torch.cat([states.std(0, correction=0), rows.reward.std(correction=0)[None]])
    pairs = rows.observation, rows.action
    return measured(world_of(SEEDS).ensemble, PENALTIES[penalty], *pairs, spread, SEEDS)


def test_penalty_is_scaled_by_its_quantile_on_the_data_when_asked():
    penalty = {"kind": "max_aleatoric", "weight": 0.7, "scale": "dataset_quantile"}
    found = rollouts_of(config({"penalty": penalty})).pessimism
    wanted = upper_quantile(on_data("max_aleatoric"))
    torch.testing.assert_close(found.scale, wanted)
    assert found.weight.tolist() == pytest.approx([0.7] * 3)
    assert rollouts_of(config()).pessimism.scale.tolist() == [1.0] * 3


def test_a_stop_has_a_quantile_of_its_measure_on_the_data_as_its_limit():
    stop = {"kind": "absorb", "measure": "mean_std", "quantile": 0.8, "cost": 3.0}
    settings = config({"stop": stop | {"factor": (1.0, 2.0, 0.5)}})
    logged, found = logged_rows().transitions, rollouts_of(settings).pessimism
    wanted = upper_quantile(on_data("mean_std"), 0.8)
    torch.testing.assert_close(found.limit, wanted * torch.tensor([1.0, 2.0, 0.5]))
    assert found.floor.tolist() == [logged.reward.min().item() - 3.0] * 3
    assert (rollouts_of(config()).pessimism.limit == math.inf).all()


def test_a_stop_may_lie_deviations_above_the_mean_on_the_data():
    """MOReL's m + beta q, of members' distances at the same input; each member its own beta."""
    stop = {"kind": "absorb", "measure": "max_pairwise_diff", "deviations": (0.0, 5.0, 1.5)}
    found = rollouts_of(config({"stop": stop | {"factor": (1.0, 1.0, 2.0)}})).pessimism
    rows = logged_rows().transitions
    pairs = rows.observation.expand(3, -1, -1), rows.action.expand(3, -1, -1)
    mean = world_of(SEEDS).ensemble.predict(*pairs).mean[..., :-1]  # (P, N, ROWS, S)
    for member, (beta, factor) in enumerate([(0.0, 1.0), (5.0, 1.0), (1.5, 2.0)]):
        distances = [
            max((a - b).norm().item() for a in at_one_input for b in at_one_input)
            for at_one_input in mean[member].transpose(0, 1)
        ]
        wanted = factor * (np.mean(distances) + beta * np.std(distances))
        assert found.limit[member].item() == pytest.approx(wanted, rel=1e-4)


def test_elites_alone_may_be_asked():
    """Members that are no elites then change neither limits nor what is imagined."""
    stop = {"kind": "truncate", "measure": "normalized_std", "quantile": 0.8}
    settings = config({"stop": stop, "judges": "elites", "penalty": {"kind": "none"}})
    found, whole = rollouts_of(settings), world_of(SEEDS).ensemble
    assert found.networks == 2
    own = found.world.ensemble
    for name, value in own.parameters.items():
        for member in range(3):
            given = whole.parameters[name][member]
            wanted = given[whole.elites[member]] if given.dim() > 1 else given
            assert value[member].equal(wanted)
    everyone = rollouts_of(config({"stop": stop, "penalty": {"kind": "none"}}))
    assert not found.pessimism.limit.isclose(everyone.pessimism.limit).any()


def test_steps_before_a_row_are_of_its_episode():
    log = log_of(25, S, A)  # episodes of ten
    assert steps_before(log).tolist() == [*range(10), *range(10), *range(5)]
    settings = config({"episode_limit": 12})
    left = rollouts_of(settings).steps_left  # one episode of 50 rows
    assert left is not None
    assert left.tolist() == [*range(12, 0, -1), *[1] * 38]
    assert rollouts_of(config()).steps_left is None


UNASKED = {"penalty": {"kind": "none"}}


@both
@pytest.mark.parametrize("elite", ["per_step", "per_rollout"])
def test_where_nothing_compares_members_reports_say_nothing_of_disagreement(groups, elite):
    """And what is imagined comes out the same when it is made again."""
    settings = config(UNASKED | {"elite": elite})
    assert rollouts_of(settings).grouped
    assert not rollouts_of(config()).grouped
    assert not rollouts_of(config(UNASKED | {"stop": {"kind": "truncate"}})).grouped
    first, second = stage_of(groups, settings), stage_of(groups, settings)
    reports = run(first, until=30)
    unknown = {"disagreement_mean", "dynamics_reward_mean"}
    names = {*RolloutHealth._fields, "penalty_cost"} - unknown
    assert {n for n in reports[0] if n.startswith("imagined")} == {f"imagined_{n}" for n in names}
    assert all(math.isfinite(v) for n in names for v in reports[0][f"imagined_{n}"])
    second.restore(copied(first.snapshot()))
    assert run(second) == run(first)
    assert_same(second, first)


@pytest.mark.parametrize("kind", ["drop", "truncate", "terminal", "absorb"])
def test_a_stop_shortens_rollouts_and_is_reported(kind):
    stop = {"kind": kind, "quantile": 0.5}
    free, stopped = stage_of(TOGETHER), stage_of(TOGETHER, config({"stop": stop}))
    reports = run(free, until=10)[0], run(stopped, until=10)[0]
    assert reports[0]["imagined_stopped_share"] == [0.0] * 3
    assert all(share > 0.1 for share in reports[1]["imagined_stopped_share"])
    assert max(reports[1]["imagined_rows"]) < max(reports[0]["imagined_rows"])


def test_memory_is_refused_for_all_members_together(monkeypatch):
    one = 4 * 3 * (9 * 4) * logged_rows().rows.shape[1]
    imagination = config({"horizon": (2, 4, 1)}).imagination  # every slot is as long as the longest
    assert imagination.kind == "branched"
    monkeypatch.setattr(buffer, "available_memory", lambda device: 3 * one - 1)
    with pytest.raises(ConfigError, match="the synthetic buffer needs"):
        check_buffers(imagination, 3, logged_rows().rows)
    monkeypatch.setattr(buffer, "available_memory", lambda device: 3 * one)
    check_buffers(imagination, 3, logged_rows().rows)


# -- reports and guards --------------------------------------------------------------------


@both
def test_reports_are_means_since_the_last_report_for_every_member(groups):
    scribe = Scribe(loss=lambda seed, update: seed * update, value=lambda seed, update: float(seed))
    first, second = run(stage_of(groups, learner=scribe), until=20)
    assert first["critic_loss"] == pytest.approx([seed * 5.5 for seed in SEEDS])
    assert second["critic_loss"] == pytest.approx([seed * 15.5 for seed in SEEDS])
    assert second["value_mean"] == pytest.approx(list(SEEDS))
    health = {name: len(v) for name, v in first.items() if name.startswith("imagined_")}
    names = {*RolloutHealth._fields, "penalty_cost"} - {"dynamics_reward_mean"}
    assert health == {f"imagined_{name}": 3 for name in names}


@both
def test_a_member_for_which_nothing_is_imagined_is_stopped_before_it_learns(groups):
    """Its batches would be rows that nobody wrote."""
    settings = config()
    scribe = Scribe()
    found = imaginations(settings, scribe, groups)
    assert found is not None
    world = cast(BranchedRollouts, found[-1]).rollouts.world
    world.ensemble.parameters["bias.1"][-1] = math.nan  # of seed 6
    stage = imagining(settings, scribe, groups, found)
    run(stage, until=20)
    assert [trip and trip.step for trip in stage.trips] == [None, None, 0]
    assert stage.trips[2] is not None
    assert "no imagined transition was kept" in stage.trips[2].reason
    assert stage.policy_parameters()["weight"].flatten().tolist() == [20.0, 20.0, 0.0]


@both
def test_a_ruined_member_keeps_its_last_good_policy_and_others_go_on(groups):
    stage = stage_of(groups, learner=Scribe(ruin=explode))
    run(stage)
    assert stage.finished
    assert stage.step == 60
    assert stage.policy_parameters()["weight"].flatten().tolist() == [60.0, 20.0, 60.0]
    assert [trip and trip.step for trip in stage.trips] == [None, 30, None]
    assert stage.trips[1] is not None
    assert "not finite; raise imagination.penalty.weight" in stage.trips[1].reason
    model = stage.snapshot().model["policy/weight"]
    assert model.flatten().tolist() == [60.0, 20.0, 60.0]


@both
def test_between_reports_a_stopped_member_stands_at_its_good_policy_too(groups):
    """An evaluation or a checkpoint may come at any update."""
    stage = stage_of(groups, learner=Scribe(ruin=explode))
    run(stage, until=37)
    assert stage.policy_parameters()["weight"].flatten().tolist() == [37.0, 20.0, 37.0]
    assert stage.snapshot().model["policy/weight"].flatten().tolist() == [37.0, 20.0, 37.0]


@both
def test_a_stopped_member_reports_no_numbers_of_its_own(groups):
    """Neither zeros nor those of updates that were thrown away."""
    reports = run(stage_of(groups, learner=Scribe(ruin=explode)))
    assert reports[2]["critic_loss"] == [1.0, 1.0, 1.0]  # the report that stops it
    for report in reports[3:]:
        assert math.isnan(report["critic_loss"][1])
        assert report["critic_loss"][::2] == [1.0, 1.0]
        assert report["imagined_rows"][::2] != [0.0, 0.0]


@both
def test_a_member_ruined_before_its_first_report_keeps_its_initial_policy(groups):
    stage = stage_of(
        groups, learner=Scribe(ruin=lambda seed, update: math.nan if seed == 6 else 0.0)
    )
    run(stage, until=20)
    assert stage.policy_parameters()["weight"].flatten().tolist() == [20.0, 20.0, 0.0]


@both
def test_a_stage_ends_when_every_member_is_stopped(groups):
    stage = stage_of(
        groups, learner=Scribe(ruin=lambda seed, update: math.inf if update > 15 else 0.0)
    )
    run(stage)
    assert stage.finished
    assert stage.step == 20
    assert stage.policy_parameters()["weight"].flatten().tolist() == [10.0] * 3


@both
def test_values_beyond_what_the_logged_rewards_allow_stop_a_member(groups):
    """The largest logged reward is 50 and the discount 0.9: 500, three times."""
    unpenalised = config(imagination={"kind": "branched", "penalty": {"kind": "none"}})
    for value, tripped in (1490.0, False), (1510.0, True), (-1510.0, True):
        scribe = Scribe(value=lambda seed, update, v=value: v if seed == 4 else 0.0)
        stage = stage_of(groups, unpenalised, scribe)
        run(stage, until=20)
        assert [trip is not None for trip in stage.trips] == [tripped, False, False]


@both
def test_a_growing_loss_stops_a_member_after_the_warm_up(groups):
    guard = {"warmup": 20, "critic_loss_growth": 10.0}

    def loss(seed: int, update: int) -> float:
        return 1e6 if update <= 10 or (seed == 5 and update > 45) else 1.0

    scribe = Scribe(loss=loss)
    stage = stage_of(groups, config(guard=guard), scribe)
    run(stage)
    assert [trip and trip.step for trip in stage.trips] == [None, 50, None]
    assert stage.policy_parameters()["weight"].flatten().tolist() == [60.0, 40.0, 60.0]


@both
def test_a_member_whose_values_run_away_gets_back_the_policy_from_before(groups, monkeypatch):
    monkeypatch.setattr(guards, "WINDOW", 10)

    def value(seed: int, update: int) -> float:
        return 0.001 * update + (200.0 * max(update - 25, 0) if seed == 5 else 0.0)

    scribe = Scribe(value=value)
    stage = stage_of(groups, config(guard={"warmup": 10, "value_bound": 1e9}), scribe)
    run(stage)
    assert [trip and trip.step for trip in stage.trips] == [None, 40, None]
    assert stage.policy_parameters()["weight"].flatten().tolist() == [60.0, 20.0, 60.0]


@both
def test_a_temperature_without_a_cap_is_no_divergence(groups):
    stage = stage_of(
        groups, config(learner={"kind": "sac", "hidden": (8, 8), "max_temperature": None})
    )
    run(stage, until=20)
    assert stage.trips == [None] * 3


@both
def test_reports_hold_mean_q_against_its_bounds(groups):
    reports = run(stage_of(groups), until=20)
    assert all(limit > 0 for limit in reports[-1]["value_limit"])
    assert all(pace > 0 for pace in reports[-1]["value_pace"])
    assert reports[-1]["value_growth"] == [0.0] * 3  # of less than a window


@both
def test_guards_can_be_switched_off(groups):
    settings = config_without_imagination(guard={"enabled": False})
    stage = stage_of(groups, settings, Scribe(ruin=explode))
    run(stage)
    assert stage.trips == [None] * 3
    weight = stage.policy_parameters()["weight"].flatten()
    assert weight[[0, 2]].tolist() == [60.0, 60.0]
    assert weight[1].isnan()


@both
def test_a_ruined_member_does_not_touch_the_others_numbers(groups):
    """With the real learner and real rollouts, which the ruined policy takes part in."""
    (healthy, _), ruined = uninterrupted(groups is TOGETHER), stage_of(groups)
    run(ruined, until=13)
    group = ruined.groups[0] if len(groups) == 1 else ruined.groups[1]
    member = 1 if len(groups) == 1 else 0
    group.state["actor"]["weight.0"][member] = math.nan
    run(ruined)
    assert [trip is not None for trip in ruined.trips] == [False, True, False]
    found, wanted = ruined.snapshot(), healthy.snapshot()
    for name, value in wanted.model.items():
        assert found.model[name][[0, 2]].equal(value[[0, 2]])
        assert found.model[name].isfinite().all()


# -- population ----------------------------------------------------------------------------


def test_a_population_equals_its_lone_runs():
    """Float32, 20 updates with three refreshes: within 1e-4."""
    lone, together = stage_of(LONE), stage_of(TOGETHER)
    for stage in lone, together:
        stage.advance(20, go_on)
    for name, value in lone.snapshot().state.items():
        torch.testing.assert_close(together.snapshot().state[name], value, rtol=1e-4, atol=1e-4)
    reports = lone.report(), together.report()
    for name, values in reports[0].items():
        assert values == pytest.approx(reports[1][name], rel=1e-3, abs=1e-4), name


def test_members_with_settings_of_their_own_equal_their_lone_runs():
    """Float32, 20 updates with three refreshes: within 1e-4 batched, and to the bit in groups."""
    learning = {
        "discount": (0.9, 0.99, 0.5),
        "critic_learning_rate": (1e-3, 3e-4, 1e-2),
        "target_rate": (0.5, 0.005, 0.1),
    }
    horizons, weights = (1, 4, 2), (0.0, 3.0, 0.5)
    penalty = {"kind": "ensemble_std", "weight": weights}
    base = {"kind": "sac", "hidden": (8, 8), "batch_size": 10}
    settings = config({"horizon": horizons, "penalty": penalty}, learner=base | learning)
    for groups in LONE, TOGETHER:
        stage = stage_of(groups, settings)
        stage.advance(20, go_on)
        state = stage.snapshot().state
        for member, seeds in enumerate(LONE):
            own = {name: values[member] for name, values in learning.items()}
            alone = stage_of(
                [seeds],
                config(
                    {
                        "horizon": horizons[member],
                        "penalty": penalty | {"weight": weights[member]},
                    },
                    learner=base | own,
                    population=1,
                ),
            )
            alone.advance(20, go_on)
            for name, value in alone.snapshot().state.items():
                if groups is LONE:
                    assert state[name][member].equal(value[0]), name
                torch.testing.assert_close(state[name][member], value[0], rtol=1e-4, atol=1e-4)


def test_updates_in_half_precision_stay_near_single():
    """20 updates with their rollouts; networks and optimisers stay float32."""
    reports = []
    for precision in ("float32", "bf16"):
        stage = stage_of(TOGETHER, config(precision=precision))
        reports.append(run(stage, until=20)[-1])
        assert {value.dtype for value in stage.snapshot().model.values()} == {torch.float32}
    for name in "critic_loss", "value_mean", "entropy":
        assert reports[1][name] != reports[0][name]
        assert reports[1][name] == pytest.approx(reports[0][name], rel=0.05, abs=0.05), name


def test_members_of_unlike_horizons_share_one_compiled_update():
    """Within 1e-3 of eager after 12 updates: fusion reorders sums."""
    if not compiler_available(torch.device("cpu")):
        pytest.skip("no C++ compiler")
    settings = config({"horizon": (1, 4)}, population=2)
    learner = LEARNERS["sac"](settings.learner, S, A, settings.num_updates)  # type: ignore[call-arg]
    states = []
    for fast in (False, True):
        found = imaginations(settings, learner, [[4], [5]])
        stage = imagining(settings, learner, [[4], [5]], found, fast=fast)
        stage.advance(12, go_on)
        states.append(stage.snapshot().state)
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-3)


def test_a_stop_request_leaves_the_stage_as_far_as_its_last_group():
    stage = stage_of([[4], [5]], config(num_updates=600), Scribe())
    calls: list[int] = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) > 3

    stage.advance(500, stop)
    assert [group.step for group in stage.groups] == [21, 0]
    assert stage.step == 0
    assert not stage.finished
    stage.advance(500, go_on)
    assert stage.step == 500


@pytest.mark.parametrize(("kind", "lag"), [("sac", 100.0), ("td3bc", 200.0), ("bc", 1.0)])
def test_guards_know_how_often_targets_follow(kind, lag):
    """TD3's targets move at every second update."""
    given = {"kind": kind, "hidden": (4,)} | ({} if kind == "bc" else {"target_rate": 0.01})
    settings = config_without_imagination().model_dump() | {"learner": given}
    stage = stage_of([[4]], TrainConfig.model_validate(settings))
    assert stage.groups[0].scales[0].value_lag == pytest.approx(lag)


def test_the_best_logged_episode_is_known_to_the_guards() -> None:
    data, rewards = logged_rows(), torch.zeros(ROWS)
    rewards[:6] = torch.tensor([1.0, 3.0, -5.0, 4.0, 4.0, 1.0])
    episode = torch.full((ROWS,), 3)
    episode[:6] = torch.tensor([0, 0, 1, 2, 2, 2])
    rows = pack(data.transitions._replace(reward=rewards))
    found = episode_means(data._replace(rows=rows, episode=episode))
    assert found.tolist() == [2.0, -5.0, 3.0, 0.0]
