import re

import numpy as np
import pytest

from worldrl.data import Dataset
from worldrl.data.rows import row_hashes
from worldrl.errors import DataError


def good(n=20):
    random = np.random.default_rng(0)
    walk = random.normal(size=(n + 1, 3))
    return {
        "observations": walk[:-1].copy(),
        "actions": random.uniform(-1, 1, (n, 2)),
        "rewards": random.normal(size=n),
        "terminated": np.zeros(n, bool),
        "truncated": np.zeros(n, bool),
        "next_observations": walk[1:].copy(),
    }


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "next_observations"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_name_source_key_and_row(key, value):
    arrays = good()
    arrays[key][12] = value
    with pytest.raises(
        DataError, match=rf"^mine: '{key}' row 12.*{re.escape(str(value))}"
    ) as caught:
        Dataset.from_arrays(**arrays, source="mine")
    assert caught.value.exit_code == 2


def test_nan_far_into_a_large_file():
    arrays = good(70_000)
    arrays["observations"][69_999, 2] = np.nan
    with pytest.raises(DataError, match="row 69999, column 2 is nan"):
        Dataset.from_arrays(**arrays)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("actions", np.zeros((19, 2)), "'actions' has 19 rows but 'observations' has 20"),
        ("rewards", np.zeros(21), "'rewards' has 21 rows"),
        ("terminated", np.zeros(3, bool), "'terminated' has 3 rows"),
        ("truncated", np.zeros(3, bool), "'truncated' has 3 rows"),
        ("next_observations", np.zeros((19, 3)), "'next_observations' has 19 rows"),
        ("next_observations", np.zeros((20, 4)), "same observation"),
        ("observations", np.zeros(20), "reshape"),
        ("observations", np.zeros((20, 0)), "at least 1"),
        ("actions", np.zeros(20), "reshape"),
        ("actions", np.zeros((20, 2, 2)), "shape"),
        ("actions", np.zeros((20, 0)), "shape"),
        ("rewards", np.zeros((20, 2)), r"\(rows,\) or \(rows, 1\)"),
        ("rewards", 3.0, "shape"),
        ("terminated", np.full(20, 0.5), "'terminated' row 0 is 0.5"),
        ("terminated", np.full(20, np.nan), "row 0 is nan"),
        ("terminated", np.arange(20), "row 2 is 2"),
        ("observations", [[1, 2], [3]], "not an array"),
        ("observations", np.full((20, 3), "a"), "must hold numbers"),
        ("observations", np.zeros((20, 3), complex), "must hold numbers"),
        ("actions", np.full(20, -1), "count from 0"),
        ("actions", np.array([None] * 20), "must hold numbers"),
    ],
)
def test_wrong_arrays_are_refused(key, value, message):
    with pytest.raises(DataError, match=message):
        Dataset.from_arrays(**{**good(), key: value})


def test_empty():
    empty = {key: value[:0] for key, value in good().items()}
    with pytest.raises(DataError, match="at least one transition"):
        Dataset.from_arrays(**empty)


@pytest.mark.parametrize(
    ("low", "high"), [([-1], [1, 1, 1]), (1, -1), (np.nan, 1), ("a", "b"), (-np.inf, np.inf)]
)
def test_bounds_that_do_not_fit(low, high):
    with pytest.raises(DataError, match="bounds"):
        Dataset.from_arrays(**good(), action_low=low, action_high=high)


def test_scalar_bounds_are_spread():
    dataset = Dataset.from_arrays(**good(), action_low=-1, action_high=2)
    assert dataset.metadata.action_low.tolist() == [-1, -1]
    assert dataset.action_bounds()[1].tolist() == [2, 2]


def test_warns_of_actions_outside_the_bounds():
    arrays = good()
    arrays["actions"][[3, 7], 1] = 1.5
    warnings = Dataset.from_arrays(**arrays, action_low=-1, action_high=1).metadata.warnings
    assert [w for w in warnings if "2 of 20" in w and "row 3" in w]
    assert not Dataset.from_arrays(**arrays).metadata.warnings


def test_warns_of_rewards_that_are_all_zero():
    arrays = {**good(), "rewards": np.zeros(20)}
    assert "all rewards are zero" in Dataset.from_arrays(**arrays).metadata.warnings[0]


def test_warns_of_repeated_rows():
    whole = {**good(), "truncated": np.arange(20) % 5 == 4}
    arrays = {key: np.concatenate([value, value[:5]]) for key, value in whole.items()}
    warnings = Dataset.from_arrays(**arrays).metadata.warnings
    assert [w for w in warnings if w.startswith("5 of 25 rows repeat")]


def test_types_that_are_accepted():
    arrays = {
        **good(),
        "terminated": np.arange(20) % 5 == 4,
        "truncated": np.zeros(20, np.uint8),
        "rewards": np.ones((20, 1), np.int32),
        "actions": np.arange(20, dtype=np.uint8)[:, None],
    }
    dataset = Dataset.from_arrays(**arrays)
    assert dataset.discrete
    assert dataset.rewards.dtype == np.float32


def test_images_stay_bytes():
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (20, 4, 4), np.uint8)
    after = random.integers(0, 256, (20, 4, 4), np.uint8)
    arrays = {**good(), "observations": frames, "next_observations": after}
    dataset = Dataset.from_arrays(**arrays)
    assert dataset.observations.dtype == np.uint8
    assert dataset.observation_shape == (4, 4)
    assert (dataset.transitions().next_observation == after).all()


def test_row_hashes_tell_rows_apart():
    random = np.random.default_rng(0)
    small = random.integers(0, 4, (100_000, 9)).astype(np.float32)  # 262,144 possible rows
    expected = len(np.unique(small, axis=0))
    assert len(np.unique(row_hashes(small))) == expected
    assert len(np.unique(row_hashes(small[:, :4], small[:, 4:]))) == expected
    bytes_ = random.integers(0, 2, (50_000, 17), np.uint8)
    assert len(np.unique(row_hashes(bytes_))) == len(np.unique(bytes_, axis=0))
