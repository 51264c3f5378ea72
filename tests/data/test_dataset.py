import dataclasses

import numpy as np
import pytest

from worldrl.data import Dataset, Metadata
from worldrl.errors import DataError


def counting(lengths=(3, 1, 4), terminated=(True, False, False)) -> Dataset:
    """Episode e, step k observes [10 e + k, e]; the reward is the step, the action its negative."""
    observations, actions, rewards = [], [], []
    for episode, length in enumerate(lengths):
        observations += [[10 * episode + k, episode] for k in range(length + 1)]
        actions += [[-k] for k in range(length)]
        rewards += list(range(length))
    ended = np.array(terminated)
    return Dataset(
        np.array(observations, np.float32),
        np.array(actions, np.float32),
        np.array(rewards, np.float32),
        np.array(lengths),
        ended,
        ~ended,
        np.ones(len(lengths), bool),
        Metadata("counting", "0" * 64),
    )


def test_sizes_and_returns():
    dataset = counting()
    assert (dataset.num_transitions, dataset.num_episodes) == (8, 3)
    assert dataset.observation_shape == (2,)
    assert dataset.action_shape == (1,)
    assert dataset.returns().tolist() == [3, 0, 6]
    assert dataset.returns().dtype == np.float64


def test_transitions_stay_inside_their_episode():
    rows = counting().transitions()
    assert (rows.next_observation[:, 0] == rows.observation[:, 0] + 1).all()
    assert (rows.next_observation[:, 1] == rows.observation[:, 1]).all()
    assert rows.episode.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert rows.terminated.tolist() == [False, False, True] + [False] * 5
    assert rows.next_known.all()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_windows_never_cross_an_episode(length):
    dataset = counting()
    windows = dataset.windows(length)
    assert len(windows.transition) == sum(max(n - length + 1, 0) for n in (3, 1, 4))
    every = np.arange(len(windows.transition))
    observed = dataset.observations[windows.observations(every)]
    assert observed.shape == (len(every), length + 1, 2)
    assert (np.diff(observed[..., 0], axis=1) == 1).all()
    assert (observed[..., 1] == observed[:, :1, 1]).all()
    rewards = dataset.rewards[windows.transitions(every)]
    assert (rewards == observed[:, :-1, 0] - 10 * observed[:, :-1, 1]).all()


def test_windows_need_a_length():
    with pytest.raises(ValueError, match="at least one"):
        counting().windows(0)


def test_episode_is_a_view():
    dataset = counting()
    episode = dataset.episode(-1)
    assert episode.observations[:, 0].tolist() == [20, 21, 22, 23, 24]
    assert episode.actions.shape == (4, 1)
    assert (episode.terminated, episode.truncated) == (False, True)
    assert np.shares_memory(episode.observations, dataset.observations)
    with pytest.raises(IndexError):
        dataset.episode(3)


@pytest.mark.parametrize("chosen", [[2, 0], np.array([2, 0])])
def test_subset_keeps_order(chosen):
    part = counting().subset(chosen)
    assert part.lengths.tolist() == [4, 3]
    assert part.terminated.tolist() == [False, True]
    assert part.observations[:, 0].tolist() == [20, 21, 22, 23, 24, 0, 1, 2, 3]
    assert part.returns().tolist() == [6, 3]
    assert "2 of 3 episodes" in part.metadata.source


def test_subset_takes_a_mask_and_refuses_none():
    dataset = counting()
    assert dataset.subset(dataset.terminated).num_episodes == 1
    with pytest.raises(DataError, match="at least one"):
        dataset.subset([False, False, False])


def test_action_bounds_are_the_stated_ones_or_hold_the_data():
    dataset = counting()
    low, high = dataset.action_bounds()
    assert (low.tolist(), high.tolist()) == ([-3], [1])
    stated = np.array([-5], np.float32), np.array([5], np.float32)
    metadata = dataclasses.replace(dataset.metadata, action_low=stated[0], action_high=stated[1])
    assert dataclasses.replace(dataset, metadata=metadata).action_bounds() == stated


def test_discrete_actions_have_no_bounds():
    dataset = Dataset.from_arrays(np.eye(3), np.arange(3), np.ones(3), [0, 0, 1])
    assert dataset.discrete
    assert dataset.actions.dtype == np.int64
    with pytest.raises(DataError, match="discrete"):
        dataset.action_bounds()


def test_images_may_be_memory_mapped(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 1), np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    mapped = np.load(tmp_path / "frames.npy", mmap_mode="r")
    dataset = Dataset(
        mapped,
        np.arange(7) % 3,
        np.ones(7, np.float32),
        np.array([3, 4]),
        np.array([True, False]),
        np.array([False, True]),
        np.ones(2, bool),
        Metadata("frames", ""),
    )
    assert isinstance(dataset.episode(1).observations, np.memmap)
    rows = dataset.transitions()
    assert rows.observation.dtype == np.uint8
    assert (rows.next_observation[2] == frames[3]).all()
    assert (rows.observation[3] == frames[4]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": np.array([3, 1, 5])}, "need 12"),
        ({"truncated": np.array([True, True, True])}, "not both"),
        ({"final_known": np.array([True, False, True])}, "truncated episode is unknown"),
        ({"lengths": np.array([], int)}, "no transitions"),
    ],
)
def test_inconsistent_parts_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        dataclasses.replace(counting(), **change)
