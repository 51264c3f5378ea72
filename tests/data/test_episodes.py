"""The quirks of published files, one test each."""

import numpy as np
import pytest

from worldrl.data import Dataset
from worldrl.errors import DataError


def rows(lengths, seed=0):
    """True rows of a random walk: observations, actions, rewards, next observations, last rows."""
    random = np.random.default_rng(seed)
    observations, following = [], []
    for length in lengths:
        walk = random.normal(size=(length + 1, 3)).astype(np.float32).cumsum(0)
        observations.append(walk[:-1])
        following.append(walk[1:])
    n = sum(lengths)
    last = np.zeros(n, bool)
    last[np.cumsum(lengths) - 1] = True
    actions = random.uniform(-1, 1, (n, 2)).astype(np.float32)
    rewards = random.normal(size=n).astype(np.float32)
    return np.concatenate(observations), actions, rewards, np.concatenate(following), last


def flags(last, terminal_episodes):
    terminated = np.zeros(len(last), bool)
    terminated[np.flatnonzero(last)[list(terminal_episodes)]] = True
    return terminated, last & ~terminated


def test_complete_rows_come_out_unchanged():
    o, a, r, n, last = rows([4, 3, 5])
    terminated, truncated = flags(last, [1])
    dataset = Dataset.from_arrays(o, a, r, terminated, truncated, n)
    out = dataset.transitions()
    assert dataset.lengths.tolist() == [4, 3, 5]
    assert dataset.terminated.tolist() == [False, True, False]
    assert dataset.truncated.tolist() == [True, False, True]
    assert (out.observation == o).all()
    assert (out.next_observation == n).all()
    assert (out.action == a).all()
    assert (out.reward == r).all()
    assert (out.terminated == terminated).all()
    assert out.next_known.all()
    assert dataset.metadata.warnings == ()
    assert dataset.metadata.source_rows == 12


def test_missing_next_observations():
    o, a, r, n, last = rows([4, 3, 5])
    terminated, truncated = flags(last, [1])
    dataset = Dataset.from_arrays(o, a, r, terminated, truncated)
    # cut episodes lose their last action, the terminal one repeats its last observation
    assert dataset.lengths.tolist() == [3, 3, 4]
    assert dataset.final_known.tolist() == [True, False, True]
    out = dataset.transitions()
    keep = ~truncated
    assert (out.observation == o[keep]).all()
    assert (out.action == a[keep]).all()
    known = out.next_known
    assert (out.next_observation[known] == n[keep][known]).all()
    assert out.next_known.tolist() == [True] * 5 + [False] + [True] * 4
    assert (out.next_observation[5] == out.observation[5]).all()
    assert dataset.returns()[0] == pytest.approx(r[:3].sum())
    assert len(dataset.metadata.warnings) == 2


def test_missing_timeouts_are_found_where_rows_do_not_follow():
    o, a, r, n, last = rows([4, 3, 5])
    terminated, _ = flags(last, [2])
    dataset = Dataset.from_arrays(o, a, r, terminated, None, n)
    assert dataset.lengths.tolist() == [4, 3, 5]
    assert dataset.truncated.tolist() == [True, True, False]
    assert (dataset.transitions().next_observation == n).all()


def test_missing_timeouts_and_next_observations_use_the_time_limit():
    o, a, r, _, last = rows([4, 4, 2, 4])
    terminated, _ = flags(last, [2])
    dataset = Dataset.from_arrays(o, a, r, terminated, max_episode_steps=4)
    assert dataset.lengths.tolist() == [3, 3, 2, 3]
    assert dataset.terminated.tolist() == [False, False, True, False]
    starts = [0, 4, 8, 10]
    for episode, start in enumerate(starts):
        assert (dataset.episode(episode).observations[0] == o[start]).all()


def test_without_any_mark_the_user_is_told():
    o, a, r, _, last = rows([4, 3])
    dataset = Dataset.from_arrays(o, a, r, flags(last, [1])[0])
    assert any("max_episode_steps" in w for w in dataset.metadata.warnings)


def test_next_observation_of_a_terminal_row_taken_from_the_next_episode():
    o, a, r, _, last = rows([4, 3, 5])
    terminated, truncated = flags(last, [0, 1, 2])
    shifted = np.concatenate([o[1:], o[:1]])  # what d4rl.qlearning_dataset makes
    dataset = Dataset.from_arrays(o, a, r, terminated, truncated, shifted)
    assert dataset.lengths.tolist() == [4, 3, 5]
    assert dataset.final_known[:2].tolist() == [False, False]
    out = dataset.transitions()
    assert (out.next_observation[3] == o[3]).all()
    assert out.next_known.tolist()[:7] == [True] * 3 + [False] + [True] * 2 + [False]


def test_next_observation_of_a_cut_row_taken_from_the_next_episode():
    o, a, r, n, last = rows([4, 3])
    terminated, truncated = flags(last, [])
    shifted = np.concatenate([o[1:], n[-1:]])
    dataset = Dataset.from_arrays(o, a, r, terminated, truncated, shifted)
    assert dataset.lengths.tolist() == [3, 3]
    assert (dataset.episode(1).observations[-1] == n[-1]).all()


def test_last_next_observation_that_repeats_is_unknown():
    o, a, r, n, last = rows([4, 3, 5])
    terminated, truncated = flags(last, [1])
    n[last] = o[last]
    dataset = Dataset.from_arrays(o, a, r, terminated, truncated, n)
    assert dataset.lengths.tolist() == [3, 3, 4]
    assert dataset.final_known.tolist() == [True, False, True]


def test_environments_that_stand_still_keep_their_repeats():
    o, a, r, n, last = rows([4, 3])
    o[1] = o[0]
    n[0] = o[0]
    n[last] = o[last]
    dataset = Dataset.from_arrays(o, a, r, *flags(last, [1]), n)
    assert dataset.lengths.tolist() == [4, 3]
    assert dataset.final_known.all()


def test_breaks_inside_marked_episodes_cut_them():
    o, a, r, n, last = rows([4, 3, 5])
    terminated, truncated = flags(last, [0, 2])
    truncated[:] = False  # the second episode's end is not marked
    dataset = Dataset.from_arrays(o, a, r, terminated, truncated, n)
    assert dataset.lengths.tolist() == [4, 3, 5]
    assert dataset.truncated.tolist() == [False, True, False]
    assert any("first is row 6" in w for w in dataset.metadata.warnings)


def test_end_of_file_cuts_the_last_episode():
    o, a, r, n, last = rows([4, 3])
    none = np.zeros(7, bool)
    terminated, _ = flags(last, [0])
    dataset = Dataset.from_arrays(o, a, r, terminated, none, n)
    assert dataset.truncated.tolist() == [False, True]
    assert dataset.lengths.tolist() == [4, 3]
    dataset = Dataset.from_arrays(o, a, r, terminated, none)
    assert dataset.lengths.tolist() == [4, 2]


def test_rounding_between_the_two_arrays_is_no_break():
    o, a, r, n, last = rows([50])
    dataset = Dataset.from_arrays(
        o.astype(np.float64), a, r[:, None], np.zeros((50, 1)), last, n * (1 + 3e-7)
    )
    assert dataset.lengths.tolist() == [50]
    assert dataset.observations.dtype == np.float32
    assert dataset.rewards.shape == (50,)


def test_terminated_wins_over_truncated():
    o, a, r, n, last = rows([4])
    dataset = Dataset.from_arrays(o, a, r, last, last, n)
    assert dataset.terminated.tolist() == [True]
    assert dataset.truncated.tolist() == [False]


def test_single_cut_rows_leave_nothing():
    o, a, r, _, _ = rows([3])
    with pytest.raises(DataError, match="next_observations"):
        Dataset.from_arrays(o, a, r, np.zeros(3), np.ones(3))


def test_content_hash_follows_the_content():
    o, a, r, n, last = rows([4])
    first, same, other = (
        Dataset.from_arrays(o, a, values, last, None, n).metadata.sha256
        for values in (r, r.copy(), r + 1)
    )
    assert first == same != other
    assert len(first) == 64
