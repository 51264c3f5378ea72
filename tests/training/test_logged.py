"""Logged data as training holds it: rows, scaled actions, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldrl.data.actions import from_unit, to_unit
from worldrl.data.dataset import Dataset
from worldrl.errors import DataError
from worldrl.rows import pack, row_width, unpack
from worldrl.training.logged import Logged, logged
from worldrl.types import Transitions

LOW, HIGH = np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32)
CPU = torch.device("cpu")


def arrays(rows: int = 12) -> dict[str, np.ndarray]:
    """Three episodes: one that terminates, one that is cut, one that the file's end cuts."""
    random = np.random.default_rng(0)
    terminated, truncated = np.zeros(rows, bool), np.zeros(rows, bool)
    terminated[3] = truncated[7] = True
    observation = random.normal(size=(rows, 3)).astype(np.float32)
    return {
        "observations": observation,
        "actions": random.uniform(LOW, HIGH, size=(rows, 2)).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminated": terminated,
        "truncated": truncated,
    }


def dataset(**changes: np.ndarray) -> Dataset:
    return Dataset.from_arrays(**(arrays() | changes), action_low=LOW, action_high=HIGH)


def test_rows_are_the_transitions_with_actions_in_the_unit_box():
    data = dataset()
    given = data.transitions()
    found: Logged = logged(data, CPU)
    batch = unpack(found.rows, 3, 2)
    assert found.rows.dtype == torch.float32
    assert found.rows.shape == (len(given.reward), row_width(3, 2))
    np.testing.assert_array_equal(batch.observation, given.observation)
    np.testing.assert_array_equal(batch.next_observation, given.next_observation)
    np.testing.assert_array_equal(batch.reward, given.reward)
    np.testing.assert_array_equal(batch.terminated, given.terminated.astype(np.float32))
    wanted = [given.action[:, 0] / 2, given.action[:, 1] / 5 - 1]
    np.testing.assert_allclose(batch.action, np.stack(wanted, 1), atol=1e-6)
    np.testing.assert_array_equal(found.next_known, given.next_known)
    np.testing.assert_array_equal(found.episode, given.episode)
    assert (found.observation_size, found.action_size) == (3, 2)
    np.testing.assert_array_equal(found.action_low, LOW)
    np.testing.assert_array_equal(found.action_high, HIGH)


def test_a_time_limit_ends_no_return():
    """The trap of timeouts taken for terminal rows: what comes after them still counts."""
    ends = np.zeros(12, bool)
    ends[[3, 7]] = True
    limits = np.zeros(12, bool)
    limits[[5, 11]] = True
    following = np.roll(arrays()["observations"], -1, 0)
    following[ends | limits] += 9
    data = dataset(terminated=ends, truncated=limits, next_observations=following)
    assert data.truncated.sum() == 2
    assert logged(data, CPU).transitions.terminated.nonzero().flatten().tolist() == [3, 7]


def test_parts_are_views_of_the_rows():
    found = logged(dataset(), CPU)
    found.rows[4] = torch.arange(10.0)
    assert found.transitions.observation[4].tolist() == [0, 1, 2]
    assert found.transitions.action[4].tolist() == [3, 4]
    assert found.transitions.reward[4] == 5
    assert found.at(torch.tensor([4])).next_observation.tolist() == [[6, 7, 8]]


def test_actions_beyond_the_bounds_are_clipped():
    actions = arrays()["actions"]
    actions[2] = [-3.0, 11.0]
    found = logged(dataset(actions=actions), CPU).transitions
    assert found.action[2].tolist() == [-1, 1]
    assert found.action.abs().max() <= 1


def test_an_unknown_next_observation_is_marked():
    """Without next observations that of a terminal row is in no file."""
    found = logged(dataset(), CPU)
    unknown = ~found.next_known
    assert unknown.any()
    assert (found.rows[unknown, -1] == 1).all()


def test_units_there_and_back():
    action = np.random.default_rng(1).uniform(LOW, HIGH, size=(100, 2)).astype(np.float32)
    unit = to_unit(action, LOW, HIGH)
    assert unit.dtype == np.float32
    assert np.abs(unit).max() <= 1
    np.testing.assert_allclose(from_unit(unit, LOW, HIGH), action, atol=1e-5)
    np.testing.assert_allclose(to_unit(LOW, LOW, HIGH), [-1, -1])
    np.testing.assert_allclose(to_unit(HIGH, LOW, HIGH), [1, 1])
    np.testing.assert_allclose(from_unit(np.zeros(2, np.float32), LOW, HIGH), [0, 5])


def test_a_policys_actions_never_leave_the_bounds():
    """The affine map may round; what reaches an environment must not."""
    random = np.random.default_rng(0)
    low = random.uniform(-3, 1, size=10_000).astype(np.float32)
    high = low + random.uniform(0.1, 4, size=10_000).astype(np.float32)
    assert (from_unit(-np.ones(10_000, np.float32), low, high) >= low).all()
    assert (from_unit(np.ones(10_000, np.float32), low, high) <= high).all()


def test_discrete_actions_are_refused():
    given = arrays() | {"actions": np.arange(12) % 3}
    with pytest.raises(DataError, match="actions are discrete"):
        logged(Dataset.from_arrays(**given, source="somewhere.npz"), CPU)


def test_images_are_refused():
    given = arrays() | {"observations": np.zeros((12, 4, 4), np.uint8)}
    with pytest.raises(DataError, match=r"somewhere.npz: observations have shape \(4, 4\)"):
        logged(Dataset.from_arrays(**given, source="somewhere.npz"), CPU)


@pytest.mark.parametrize("lead", [(), (5,), (2, 5)])
def test_rows_pack_and_unpack(lead):
    batch = Transitions(
        torch.randn(*lead, 3), torch.randn(*lead, 2), torch.randn(lead), torch.randn(*lead, 3),
        (torch.rand(lead) < 0.5).float(),
    )  # fmt: skip
    rows = pack(batch)
    assert rows.shape == (*lead, row_width(3, 2))
    found = unpack(rows, 3, 2)
    assert all(one.equal(other) for one, other in zip(found, batch, strict=True))
    assert found.observation.data_ptr() == rows.data_ptr()
