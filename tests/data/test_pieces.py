"""Parts of datasets and datasets joined."""

from __future__ import annotations

import numpy as np
import pytest

from worldrl.data.dataset import Dataset
from worldrl.data.pieces import joined, pieces
from worldrl.errors import DataError


def random_mask(size: int, share: float) -> np.ndarray:
    return np.random.default_rng(1).random(size) < share


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_pieces_hold_the_kept_rows_as_they_were(tiny_dataset: Dataset, share: float) -> None:
    keep = random_mask(tiny_dataset.num_transitions, share)
    found, whole = pieces(tiny_dataset, keep), tiny_dataset.transitions()
    rows = found.transitions()
    for name in ("observation", "action", "reward", "next_observation", "terminated", "next_known"):
        assert (getattr(rows, name) == getattr(whole, name)[keep]).all(), name
    # Two kept rows are of one piece where, and only where, they followed each other.
    kept = np.flatnonzero(keep)
    followed = (np.diff(kept) == 1) & (np.diff(whole.episode[kept]) == 0)
    assert ((np.diff(rows.episode) == 0) == followed).all()


def test_a_cut_is_a_timeout_and_an_end_stays_one(tiny_dataset: Dataset) -> None:
    """Episodes have 10, 11, ... steps, and the first one terminates."""
    keep = np.zeros(tiny_dataset.num_transitions, bool)
    keep[[2, 3, 8, 9, 10]] = True
    found = pieces(tiny_dataset, keep)
    assert found.lengths.tolist() == [2, 2, 1]
    assert found.terminated.tolist() == [False, True, False]
    assert found.truncated.tolist() == [True, False, True]
    everything = pieces(tiny_dataset, np.ones_like(keep))
    for name in ("observations", "actions", "rewards", "lengths", "terminated", "truncated"):
        assert (getattr(everything, name) == getattr(tiny_dataset, name)).all(), name


def test_nothing_kept_is_refused(tiny_dataset: Dataset) -> None:
    with pytest.raises(DataError, match="no transition is kept"):
        pieces(tiny_dataset, np.zeros(tiny_dataset.num_transitions, bool))


def test_joined_data_is_both(tiny_dataset: Dataset) -> None:
    first, second = tiny_dataset.subset([3, 1]), tiny_dataset.subset([5])
    found, wanted = joined([first, second]), tiny_dataset.subset([3, 1, 5])
    for name in ("observations", "actions", "rewards", "lengths", "terminated", "final_known"):
        assert (getattr(found, name) == getattr(wanted, name)).all(), name
    assert found.metadata.action_low is not None
    assert (found.metadata.action_low == -1).all()
    assert found.metadata.env_id is None
    assert joined([first, second], "Both-v0").metadata.env_id == "Both-v0"


def test_unlike_data_is_not_joined(tiny_dataset: Dataset) -> None:
    rows = tiny_dataset.transitions()
    ends = np.diff(rows.episode, append=-1) != 0

    def other(action: np.ndarray, **bounds: float) -> Dataset:
        return Dataset.from_arrays(
            rows.observation, action, rows.reward, rows.terminated, ends & ~rows.terminated,
            rows.next_observation, **bounds,
        )  # fmt: skip

    with pytest.raises(DataError, match=r"unlike things: \(2,\) float32 and \(1,\)"):
        joined([tiny_dataset, other(rows.action[:, :1], action_low=-1.0, action_high=1.0)])
    for bounds in {"action_low": -2.0, "action_high": 2.0}, {}:
        with pytest.raises(DataError, match="state other action bounds"):
            joined([tiny_dataset, other(rows.action, **bounds)])
