import numpy as np
import pytest

from worldrl.data import Dataset
from worldrl.data.measures import coverage, summary, trajectory_quality
from worldrl.errors import DataError


def uniform(low, high, n, size=1, seed=0, **changes):
    random = np.random.default_rng(seed)
    arrays = {
        "observations": random.uniform(low, high, (n, size)),
        "actions": random.uniform(low, high, (n, 1)),
        "rewards": np.ones(n),
        "terminated": np.ones(n),
        "next_observations": np.full((n, size), 9.0),
    }
    return Dataset.from_arrays(**{**arrays, **changes})


def test_summary():
    found = summary(uniform(0, 1, 6, rewards=np.arange(6), terminated=[0, 0, 1, 0, 1, 1]))
    assert (found.transitions, found.rows) == (6, 6)
    assert found.episodes == found.terminated + found.truncated
    assert found.reward_max == 5
    assert found.observation_shape == (1,)
    assert found.action_low is None
    assert 0 <= found.action_min[0] < found.action_max[0] <= 1


def test_summary_returns_are_those_of_episodes():
    walk = np.arange(7.0)[:, None]
    dataset = Dataset.from_arrays(
        walk[:-1], np.zeros((6, 1)), [1, 2, 3, 4, 5, 6], [0, 0, 1, 0, 0, 1], None, walk[1:] + 0.5
    )
    one_each = summary(dataset)  # nothing follows: six episodes of one step
    assert one_each.episodes == 6
    followed = Dataset.from_arrays(
        walk[:-1], np.zeros((6, 1)), [1, 2, 3, 4, 5, 6], [0, 0, 1, 0, 0, 1]
    )
    found = summary(followed)
    assert (found.return_mean, found.return_min, found.return_max) == (10.5, 6, 15)
    assert (found.length_mean, found.return_std) == (3, 4.5)


def test_trajectory_quality():
    dataset = uniform(0, 1, 10)  # ten episodes that return 1
    assert trajectory_quality(dataset, 0, 2) == 0.5
    assert trajectory_quality(dataset, 1, 3) == 0
    assert trajectory_quality(dataset, -1, 1) == 1
    with pytest.raises(DataError, match="above"):
        trajectory_quality(dataset, 1, 1)


def test_coverage_counts_bins_of_the_reference():
    reference = uniform(0, 1, 20_000)
    itself = coverage(reference, reference)
    assert (itself.saco, itself.lsaco) == (1, 1)
    assert itself.variant == "100 bins a dimension"
    # uniform on 10,000 cells: 20,000 draws fill 10,000 (1 - exp(-2))
    assert itself.unique == pytest.approx(8647, rel=0.02)
    corner = coverage(uniform(0, 0.5, 20_000, seed=1), reference)
    assert corner.unique == pytest.approx(2500, rel=0.01)
    assert corner.saco == corner.unique / corner.reference_unique


def test_coverage_compares_equal_budgets():
    reference = uniform(0, 1, 20_000)
    half = coverage(uniform(0, 1, 5_000, seed=1), reference)
    assert half.rows == 5_000
    assert half.saco == pytest.approx(1, rel=0.05)


def test_values_beyond_the_reference_fall_into_its_end_bins():
    reference = uniform(0, 1, 20_000)
    assert coverage(uniform(5, 6, 20_000, seed=1), reference).unique == 1


def test_coverage_in_many_dimensions_is_a_stated_variant():
    reference = uniform(0, 1, 20_000, size=20)
    narrow = coverage(uniform(0.45, 0.55, 20_000, size=20, seed=1), reference)
    same = coverage(uniform(0, 1, 20_000, size=20, seed=1), reference)
    assert "projection from 21 to 8" in narrow.variant
    assert narrow.saco < 0.2
    assert same.saco == pytest.approx(1, abs=0.05)


def test_coverage_of_discrete_actions_and_images():
    random = np.random.default_rng(0)
    actions = random.integers(0, 3, 3000)
    cells = random.integers(0, 2, (3000, 1)).astype(float)
    both = uniform(0, 1, 3000, observations=cells, actions=actions)
    assert coverage(both, both).unique == 6
    images = {
        "observations": random.integers(0, 2, (3000, 2, 2), np.uint8),
        "next_observations": np.full((3000, 2, 2), 9, np.uint8),
    }
    frames = uniform(0, 1, 3000, actions=actions, **images)
    assert coverage(frames, frames).unique == 16 * 3


def test_reference_of_another_environment():
    with pytest.raises(DataError, match="same environment"):
        coverage(uniform(0, 1, 10), uniform(0, 1, 10, size=2))
