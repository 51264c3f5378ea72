"""When a member is stopped, and what it is told."""

from __future__ import annotations

import math
import re
from json import dumps, loads

import pytest

from worldrl.config.fields import as_text
from worldrl.config.loader import load_config
from worldrl.config.schema import GuardSettings, TrainConfig
from worldrl.training.guards import Memory, Scale, Trip, Verdict, check, remedy

GUARD = GuardSettings(value_bound=3.0, value_growth=1.0, critic_loss_growth=100.0, warmup=2000)
HEALTHY = {"critic_loss": 1.0, "value_mean": 50.0, "actor_loss": -50.0}


def checked(
    finite: bool = True, limit: float = 100.0, reference: float | None = 1.0, **metrics: float
) -> Trip | None:
    """``limit`` is of values: a tenth of it is the largest reward, and 0.9 the discount."""
    scale = Scale(limit / 10, limit / 10, 0.9, 200.0)
    step = 5000 if reference is not None else 1000  # a reference is taken after the warm-up
    return check(GUARD, HEALTHY | metrics, finite, step, scale, Memory(reference)).trip


def watched(
    values: dict[int, float], bonus: float = 0.0, lag: float = 200.0, json: bool = False
) -> dict[int, Verdict]:
    """Verdicts over a run's mean Q by update; rewards have a root mean square of 1."""
    memory, verdicts = Memory(), {}
    for step, value in values.items():
        if json:
            memory = Memory.from_json(loads(dumps(memory._asdict())))
        metrics = {"critic_loss": 1.0, "value_mean": value, "temperature": 1.0, "entropy": bonus}
        verdicts[step] = check(GUARD, metrics, True, step, Scale(10.0, 1.0, 0.99, lag), memory)
        memory = verdicts[step].memory
    return verdicts


def first_trip(verdicts: dict[int, Verdict]) -> int | None:
    return next((step for step, verdict in verdicts.items() if verdict.trip is not None), None)


def thousands(*growth: float) -> dict[int, float]:
    """Mean Q every 1,000 updates, from what it grew by."""
    return {1000 * (i + 1): sum(growth[: i + 1]) for i in range(len(growth))}


def test_a_healthy_member_goes_on():
    assert checked() is None
    assert checked(reference=None) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_trips(value):
    trip = checked(actor_loss=value)
    assert trip is not None
    assert trip.step == 5000
    assert "not finite" in trip.reason


def test_a_weight_that_is_not_finite_trips():
    trip = checked(finite=False)
    assert trip is not None
    assert "not finite" in trip.reason


@pytest.mark.parametrize("value", [300.1, -300.1])
def test_a_value_beyond_what_rewards_allow_trips(value):
    trip = checked(value_mean=value)
    assert trip is not None
    assert f"mean Q is {value:.4g}, beyond 3 times" in trip.reason
    assert "(100)" in trip.reason


@pytest.mark.parametrize("value", [300.0, -300.0, 0.0])
def test_a_value_within_the_bound_does_not_trip(value):
    assert checked(value_mean=value) is None


def test_intended_pessimism_lowers_values_and_does_not_trip():
    assert checked(value_mean=-900.0) is not None
    assert checked(value_mean=-900.0, imagined_penalty_cost=30.0) is None
    assert checked(value_mean=900.0, imagined_penalty_cost=30.0) is not None


def test_the_entropy_to_come_is_part_of_what_is_allowed():
    """Small rewards and a warm policy: values of 35 are right, and no divergence."""
    warm = {"temperature": 0.78, "entropy": 4.1, "value_mean": 35.0}
    assert checked(limit=1.0, **warm) is None  # 1 + 32
    assert checked(limit=1.0, **warm | {"temperature": 0.0}) is not None
    assert checked(limit=1.0, **warm | {"entropy": -4.1, "value_mean": -35.0}) is None
    assert checked(limit=1.0, **warm | {"value_mean": 99.1}) is not None
    assert checked(limit=1.0, **warm | {"value_mean": 98.0}) is None


def test_a_growing_critic_loss_trips_after_the_warm_up_only():
    assert checked(critic_loss=100.0) is None
    assert checked(critic_loss=1e9, reference=None) is None
    trip = checked(critic_loss=250.0, reference=2.0, limit=1.0, value_mean=0.0)
    assert trip is not None
    assert "critic loss is 250, 125 times" in trip.reason
    assert "after the warm-up, or the squared reward (2)" in trip.reason


def test_a_loss_of_a_few_rewards_is_healthy_however_small_it_was_at_first():
    """Where rewards are rare the critic is right about most states before it learns anything."""
    assert (
        checked(critic_loss=3e-3, reference=2e-5, limit=1.0, value_mean=0.0) is None
    )  # rewards of 0.1
    assert checked(critic_loss=1.1, reference=2e-5, limit=1.0, value_mean=0.0) is not None


def test_a_reference_of_zero_is_no_division_by_zero():
    assert checked(critic_loss=1e-7, reference=0.0, limit=0.0, value_mean=0.0) is None
    trip = checked(critic_loss=1.0, reference=0.0, limit=0.0, value_mean=0.0)
    assert trip is not None
    assert "critic loss is 1" in trip.reason


def test_learners_without_values_or_critics_trip_on_what_they_have():
    scale = Scale(0.0, 0.0, 0.9, 1.0)
    fine = check(GUARD, {"actor_loss": 1.0}, True, 10, scale, Memory())
    assert fine.trip is None
    assert fine.memory.good_step == 10
    assert check(GUARD, {"actor_loss": math.nan}, True, 10, scale, Memory()).trip is not None


# -- the pace of values ----------------------------------------------------------------------


def test_values_that_settle_never_trip_and_every_policy_after_the_climb_is_good():
    """Toward a fixed point at 100, as TD learning goes there: fast at first, then slower."""
    verdicts = watched({k: 100 * (1 - math.exp(-k / 20_000)) for k in range(1000, 60_000, 1000)})
    assert first_trip(verdicts) is None
    assert all(v.memory.good_step == step for step, v in verdicts.items() if step > 30_000)


def test_values_that_run_away_trip_early_and_the_policy_from_before_is_kept():
    """The climb of a run that ended in ruin: its loss had grown tenfold when this one stops."""
    grown = (3.0, 1.2, 1.2, 1.2, 1.0, 2.5, 4.5, 5.5, 8.0, 11.0, 15.0)
    verdicts = watched(thousands(*grown))
    assert first_trip(verdicts) == 9000  # past 5 a thousand, 1 a lag, at 8,000 and 9,000
    assert verdicts[9000].memory.good_step == 5000
    trip = verdicts[9000].trip
    assert trip is not None
    assert "has grown since update 8000 faster than rewards can carry it" in trip.reason


def test_one_fast_interval_does_not_trip():
    assert first_trip(watched(thousands(1.0, 1.0, 9.0, 1.0, 9.0, 1.0, 1.0))) is None


def test_the_climb_of_the_warm_up_does_not_trip():
    assert first_trip(watched(thousands(9.0, 9.0, 1.0, 1.0))) is None
    assert first_trip(watched(thousands(9.0, 9.0, 9.0, 9.0))) == 3000


def test_entropy_may_carry_values_and_a_cold_policy_lowers_the_pace_no_further():
    growth = thousands(*[9.0] * 6)
    assert first_trip(watched(growth, bonus=1.0)) is None
    assert first_trip(watched(growth, bonus=0.5)) is not None
    assert first_trip(watched(thousands(*[4.9] * 6), bonus=-3.0)) is None


def test_the_pace_counts_in_lags_of_the_target_network():
    growth = thousands(*[9.0] * 6)
    assert first_trip(watched(growth, lag=50.0)) is None
    assert first_trip(watched(growth, lag=200.0)) is not None


def test_a_policy_better_than_its_data_may_carry_its_values_up_to_what_was_logged():
    """Rewards of 1 are usual in the data, 10 is the largest: what is imagined counts up to it."""
    growth = thousands(*[24.0] * 6)  # 4.8 a lag
    scale, guarded = Scale(10.0, 1.0, 0.99, 200.0), {}
    for earned in (0.5, 5.0, 1e6):
        memory = Memory()
        for step, value in growth.items():
            metrics = {"critic_loss": 1.0, "value_mean": value, "imagined_reward_mean": earned}
            verdict = check(GUARD, metrics, True, step, scale, memory)
            memory = verdict.memory
        guarded[earned] = verdict
    assert guarded[0.5].trip is not None
    assert guarded[5.0].trip is None
    assert guarded[1e6].reading.value_pace == 10.0


def test_a_policy_as_good_as_the_best_logged_episode_may_carry_its_values():
    """Rewards of 1 are usual in the data, and one episode earned 5 a step."""
    growth = thousands(*[24.0] * 6)  # 4.8 a lag
    found = []
    for best in (1.0, 5.0):
        scale, memory = Scale(10.0, 1.0, 0.99, 200.0, best), Memory()
        for step, value in growth.items():
            metrics = {"critic_loss": 1.0, "value_mean": value}
            verdict = check(GUARD, metrics, True, step, scale, memory)
            memory = verdict.memory
        found.append(verdict.trip)
    assert found[0] is not None
    assert found[1] is None


def test_falling_values_are_no_runaway():
    assert first_trip(watched(thousands(*[-9.0] * 6))) is None


@pytest.mark.parametrize("every", [50, 250, 1000, 5000])
def test_the_pace_does_not_depend_on_how_often_is_reported(every):
    slow = watched({k: 0.004 * k for k in range(every, 20_001, every)})
    fast = watched({k: 0.006 * k for k in range(every, 20_001, every)})
    assert first_trip(slow) is None
    assert first_trip(fast) is not None
    assert all(len(verdict.memory.values) <= 1000 // every + 2 for verdict in fast.values())


def test_a_guard_that_was_saved_decides_as_the_one_that_went_on():
    growth = thousands(3.0, 1.2, 1.0, 6.0, 7.0, 8.0)
    assert watched(growth, json=True) == watched(growth)


@pytest.mark.parametrize(
    ("imagination", "named"),
    [
        (
            {"kind": "branched"},
            {"imagination.penalty.weight", "imagination.stop.kind", "imagination.horizon"},
        ),
        (
            {"kind": "branched", "penalty": {"kind": "none"}, "stop": {"kind": "drop"}},
            {"imagination.penalty.kind", "imagination.stop.quantile", "model.max_epochs"},
        ),
        ({"kind": "none"}, {"learner.critic_learning_rate", "learner.layer_norm"}),
    ],
)
def test_the_settings_to_change_are_the_ones_the_run_has(imagination, named):
    text = remedy(
        TrainConfig.model_validate({"dataset": {"source": "x"}, "imagination": imagination})
    )
    assert all(setting in text for setting in named)
    assert ("imagination" in text) == (imagination["kind"] != "none")
    assert "\n" not in text


@pytest.mark.parametrize(
    "recipe", ["mopo", "mbpo", "mobile", "rambo", "h2o", "pendulum", "sac", "bc"]
)
def test_every_setting_that_is_named_can_be_changed(recipe):
    given = ["dataset=x"]
    config = load_config("train", recipe, given)
    settings = config.model_dump(mode="json")
    named = re.findall(r"(?:imagination|learner|model)\.[a-z_.]*[a-z]", remedy(config))
    assert named
    for key in named:
        value = settings
        for part in key.split("."):
            value = value[part]
        changed = {"none": "ensemble_std" if "penalty" in key else "truncate"}.get(value, value)
        changed = 7 if changed is None else changed
        found = load_config("train", recipe, [*given, f"{key}={as_text(changed)}"])
        if key == "imagination.penalty.kind":
            assert found.imagination.penalty.weight > 0
