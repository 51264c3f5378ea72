"""When a member is stopped, and what it is told."""

from __future__ import annotations

import math

import pytest

from worldrl.config.schema import GuardSettings
from worldrl.training.guards import Trip, check

GUARD = GuardSettings(value_bound=3.0, critic_loss_growth=100.0, warmup=2000)
HEALTHY = {"critic_loss": 1.0, "value_mean": 50.0, "actor_loss": -50.0}
SETTINGS = (
    "imagination.penalty.weight", "imagination.horizon", "imagination.real_ratio",
    "model.max_epochs", "model.patience",
)  # fmt: skip


def checked(
    finite: bool = True, limit: float = 100.0, reference: float | None = 1.0, **metrics: float
) -> Trip | None:
    """``limit`` is of values: a tenth of it is the largest reward, and 0.9 the discount."""
    return check(GUARD, HEALTHY | metrics, finite, 5000, limit / 10, 0.9, reference)


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
    trip = checked(critic_loss=250.0, reference=2.0)
    assert trip is not None
    assert "critic loss is 250, 125 times" in trip.reason
    assert "after the warm-up (2)" in trip.reason


def test_a_reference_of_zero_is_no_division_by_zero():
    assert checked(critic_loss=1e-7, reference=0.0) is None
    trip = checked(critic_loss=1.0, reference=0.0)
    assert trip is not None
    assert "critic loss is 1" in trip.reason


def test_learners_without_values_or_critics_trip_on_what_they_have():
    assert check(GUARD, {"actor_loss": 1.0}, True, 10, 0.0, 0.9, None) is None
    assert check(GUARD, {"actor_loss": math.nan}, True, 10, 0.0, 0.9, None) is not None


@pytest.mark.parametrize(
    "trip", [checked(finite=False), checked(value_mean=1e9), checked(critic_loss=1e9)]
)
def test_every_reason_names_the_settings_to_change(trip):
    assert trip is not None
    assert all(setting in trip.reason for setting in SETTINGS)
    assert "\n" not in trip.reason
