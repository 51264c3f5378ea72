"""Labels for action-free trajectories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from worldrl.config.label import LabelSettings
from worldrl.data.action_free import ActionFree
from worldrl.data.dataset import Dataset
from worldrl.errors import DataError, ModelError
from worldrl.models.inverse import mixture
from worldrl.training.label import Labelled, fit_inverse, label

CPU = torch.device("cpu")
SMALL = LabelSettings(
    num_members=2, hidden=(32, 32), dropout=0.0, learning_rate=5e-3, num_updates=400,
    batch_size=128, check_every=50,
)  # fmt: skip
BRIEF = SMALL.model_copy(update={"num_updates": 20, "check_every": 10, "hidden": (8,)})
DRIVE = np.array([[0.5, 0.0, 0.2], [0.0, -0.4, 0.3]])


def linear(seed: int, episodes: int = 20, length: int = 30) -> Dataset:
    """``s' = 0.9 s + B a`` without noise; actions from -2 to 6 and -1 to 1; half terminate."""
    random = np.random.default_rng(seed)
    unit = random.uniform(-1, 1, (episodes, length, 2))
    states = [random.normal(size=(episodes, 3))]
    for step in range(length):
        states.append(0.9 * states[-1] + unit[:, step] @ DRIVE)
    observations = np.stack(states, 1)
    last = np.tile(np.arange(length) == length - 1, (episodes, 1))
    ended = last & (np.arange(episodes)[:, None] % 2 == 0)
    return Dataset.from_arrays(
        observations[:, :-1].reshape(-1, 3),
        (unit * [4, 1] + [2, 0]).reshape(-1, 2),
        random.normal(size=episodes * length),
        ended.reshape(-1),
        (last & ~ended).reshape(-1),
        observations[:, 1:].reshape(-1, 3),
        action_low=[-2, -1],
        action_high=[6, 1],
        source=f"linear {seed}",
    )


def without_actions(dataset: Dataset, actions: np.ndarray | None = None) -> ActionFree:
    return ActionFree(
        dataset.observations,
        actions,
        dataset.rewards,
        dataset.lengths,
        dataset.terminated,
        dataset.truncated,
        dataset.final_known,
        dataset.metadata,
    )


def labelled(
    settings: LabelSettings = BRIEF, seed: int = 0, change: Callable[[Dataset], Any] | None = None
) -> tuple[Labelled, Dataset, Dataset]:
    given, hidden = linear(0), linear(1, episodes=5)
    free = change(hidden) if change else without_actions(hidden)
    return label(free, given, settings, seed, CPU), given, hidden


@pytest.mark.parametrize("history", [0, 1])
def test_actions_of_a_linear_system_are_recovered(history: int) -> None:
    result, given, hidden = labelled(SMALL.model_copy(update={"history": history}))
    n = given.num_transitions
    assert (result.dataset.actions[:n] == given.actions).all()
    error = np.square(result.dataset.actions[n:] - hidden.actions).mean(0)
    assert (error / hidden.actions.var(0) < 0.01).all()
    held_out = result.fit.held_out
    assert max(held_out.normalized_mse) < 0.01
    assert all(a < b - 1 for a, b in zip(held_out.nll, held_out.nll_of_mean, strict=True))
    assert (held_out.episodes, held_out.rows) == (2, 60)
    assert result.warnings == ()


def test_the_file_order_and_the_masks() -> None:
    result, given, hidden = labelled()
    n, m = given.num_transitions, hidden.num_transitions
    assert result.pseudo.tolist() == [False] * n + [True] * m
    assert not result.variance[:n].any()
    assert (result.variance[n:] > 0).all()
    assert result.dataset.num_episodes == 25
    assert (result.dataset.rewards[n:] == hidden.rewards).all()
    assert (result.dataset.terminated[20:] == hidden.terminated).all()


def test_a_label_is_the_clipped_mean_of_all_members_after_their_own_history() -> None:
    """Against windows built by hand: what lies before an episode is its first observation."""
    settings = BRIEF.model_copy(update={"history": 2, "num_members": 3})
    result, given, hidden = labelled(settings)
    windows = [
        [episode.observations[max(t + offset, 0)] for offset in (-2, -1, 0, 1)]
        for episode in map(hidden.episode, range(hidden.num_episodes))
        for t in range(len(episode.actions))
    ]
    with torch.no_grad():
        gaussians = result.fit.inverse.predict(torch.from_numpy(np.array(windows)))
    assert gaussians.mean.shape[0] == 3
    mean, variance = mixture(gaussians)
    expected = mean.clamp(-1, 1).numpy() * [4, 1] + [2, 0]
    n = given.num_transitions
    np.testing.assert_allclose(result.dataset.actions[n:], expected, atol=1e-5)
    np.testing.assert_allclose(result.variance[n:], variance.numpy() * [16, 1], rtol=1e-4)


def test_whole_trajectories_are_held_out() -> None:
    """Every trajectory stands still at a place and an action of its own: rows held out alone
    could be answered from memory, trajectories cannot."""
    random = np.random.default_rng(0)
    places, acts = random.normal(size=(20, 6)), random.uniform(-1, 1, (20, 1))
    last = np.tile(np.arange(10) == 9, 20)
    rows = np.repeat(places, 10, 0)
    dataset = Dataset.from_arrays(
        rows, np.repeat(acts, 10, 0), np.arange(200), last, None, rows, action_low=-1, action_high=1
    )
    settings = SMALL.model_copy(update={"holdout_ratio": 0.25, "patience": 100})
    fit = fit_inverse(dataset, settings, 0, CPU)
    assert (fit.held_out.episodes, fit.held_out.rows) == (5, 50)
    assert fit.held_out.normalized_mse[0] > 0.3


def test_the_seed_decides_everything() -> None:
    first, again, other = (labelled(seed=seed)[0] for seed in (0, 0, 1))
    assert (first.dataset.actions == again.dataset.actions).all()
    assert (first.variance == again.variance).all()
    assert first.fit.held_out == again.fit.held_out
    assert (first.dataset.actions != other.dataset.actions).any()
    dropped = BRIEF.model_copy(update={"dropout": 0.2})
    one, two = (labelled(dropped)[0] for _ in range(2))
    assert (one.dataset.actions == two.dataset.actions).all()
    assert (one.dataset.actions != first.dataset.actions).any()


def test_members_are_independent() -> None:
    """The first two of three members are the two that would be trained alone."""
    three = BRIEF.model_copy(update={"num_members": 3, "dropout": 0.1})
    two = three.model_copy(update={"num_members": 2})
    many, few = (fit_inverse(linear(0), one, 0, CPU).inverse.parameters for one in (three, two))
    for name, value in few.items():
        torch.testing.assert_close(many[name][:2], value)
    assert (many["weight.0"][0] != many["weight.0"][1]).any()


def test_early_stopping_keeps_the_best_networks() -> None:
    """At a hopeless rate the first looks are the best there are."""
    seen: list[tuple[int, float]] = []
    wild = SMALL.model_copy(update={"learning_rate": 0.3, "patience": 2, "check_every": 10})
    fit = fit_inverse(linear(0), wild, 0, CPU, lambda step, nll: seen.append((step, nll)))
    assert fit.updates == seen[-1][0] < 400
    assert all(step % 10 == 0 for step, _ in seen)
    assert sum(fit.held_out.nll) <= max(nll for _, nll in seen[-2:])


def test_known_actions_are_kept() -> None:
    def partly(hidden: Dataset) -> ActionFree:
        actions = np.full_like(hidden.actions, np.nan)
        actions[::3] = hidden.actions[::3]
        return without_actions(hidden, actions)

    result, given, hidden = labelled(change=partly)
    n = given.num_transitions
    assert (result.dataset.actions[n::3] == hidden.actions[::3]).all()
    assert (result.pseudo[n:] == (np.arange(hidden.num_transitions) % 3 != 0)).all()
    assert not result.variance[n::3].any()
    assert np.isfinite(result.dataset.actions).all()


def test_a_lost_successor_says_nothing_of_the_action() -> None:
    def lost(hidden: Dataset) -> ActionFree:
        return replace(without_actions(hidden), final_known=~hidden.terminated)

    result, given, hidden = labelled(change=lost)
    rows = given.num_transitions + np.flatnonzero(hidden.transitions().terminated)
    mean = result.fit.action_mean.numpy() * [4, 1] + [2, 0]
    np.testing.assert_allclose(result.dataset.actions[rows], np.tile(mean, (3, 1)), rtol=1e-5)
    variance = result.fit.action_variance.numpy() * [16, 1]
    np.testing.assert_allclose(result.variance[rows], np.tile(variance, (3, 1)), rtol=1e-5)
    assert any("which got the mean action: 3" in warning for warning in result.warnings)


def test_rows_without_successors_are_not_learned_from() -> None:
    given = linear(0)
    broken = replace(given, final_known=~given.terminated)
    fit = fit_inverse(broken, BRIEF, 0, CPU)
    # A changed last observation of those episodes therefore changes nothing.
    moved = broken.observations.copy()
    ends = np.cumsum(given.lengths + 1) - 1
    moved[ends[given.terminated]] += 100
    again = fit_inverse(replace(broken, observations=moved), BRIEF, 0, CPU)
    assert again.held_out == fit.held_out


def test_what_cannot_be_trusted_is_said() -> None:
    given, hidden = linear(0), linear(1, episodes=5)
    noise = np.random.default_rng(7).uniform(-1, 1, given.actions.shape).astype(np.float32)
    mixed = np.stack([given.actions[:, 0], noise[:, 1]], 1)
    settings = SMALL.model_copy(update={"num_updates": 100})
    result = label(without_actions(hidden), replace(given, actions=mixed), settings, 0, CPU)
    assert result.fit.held_out.normalized_mse[1] > 0.8
    assert any(
        "dimension(s) [1]: more than half of the variance" in warning for warning in result.warnings
    )


def test_trajectories_unlike_those_with_actions_are_told_by_the_variance() -> None:
    """In three of thirty trajectories, none of them held out, actions are noise; so they are in all
    of those without actions."""

    def marked(data: Dataset, noisy: np.ndarray) -> Dataset:
        mark = np.repeat(noisy, data.lengths + 1)[:, None].astype(np.float32)
        noise = np.random.default_rng(7).uniform([-2, -1], [6, 1], data.actions.shape)
        return replace(
            data,
            observations=np.concatenate([data.observations, mark], 1),
            actions=np.where(
                np.repeat(noisy, data.lengths)[:, None], noise.astype(np.float32), data.actions
            ),
        )

    given = marked(linear(0, episodes=30), np.arange(30) < 3)
    hidden = marked(linear(1, episodes=5), np.ones(5, bool))
    result = label(without_actions(hidden), given, SMALL, 0, CPU)
    assert max(result.fit.held_out.normalized_mse) < 0.1
    (warning,) = result.warnings
    assert "dimension(s) [0, 1]: labels are over 4 times less certain" in warning


def test_another_environment_is_said() -> None:
    given, hidden = linear(0), linear(1, episodes=2)
    one, other = (
        replace(data, metadata=replace(data.metadata, env_id=name))
        for data, name in ((given, "A-v0"), (hidden, "B-v0"))
    )
    warnings = label(without_actions(other), one, BRIEF, 0, CPU).warnings
    assert any("are from B-v0, those with actions from A-v0" in warning for warning in warnings)


def test_an_action_that_never_changes_is_no_division_by_zero() -> None:
    given, hidden = linear(0), linear(1, episodes=5)
    still = np.stack([given.actions[:, 0], np.full(given.num_transitions, 0.5)], 1)
    settings = SMALL.model_copy(update={"num_updates": 200})
    result = label(
        without_actions(hidden), replace(given, actions=still.astype(np.float32)), settings, 0, CPU
    )
    assert result.fit.held_out.normalized_mse[1] in (0, np.inf)
    assert np.isfinite(result.fit.held_out.nll_of_mean).all()
    assert np.abs(result.dataset.actions[given.num_transitions :, 1] - 0.5).max() < 0.1


def test_data_that_does_not_fit() -> None:
    given = linear(0)
    free = without_actions(linear(1, episodes=2))

    def refused(message: str, free: ActionFree = free, given: Dataset = given) -> None:
        with pytest.raises(DataError, match=message):
            label(free, given, BRIEF, 0, CPU)

    refused("has observations of 2 numbers, and linear 0 of 3",
            replace(free, observations=free.observations[:, :2]))  # fmt: skip
    refused(r"observations have shape \(3, 1\)",
            replace(free, observations=free.observations[..., None]))  # fmt: skip
    refused("has actions of 1 numbers in some rows, and linear 0 of 2",
            replace(free, actions=np.full((60, 1), np.nan, np.float32)))  # fmt: skip
    refused("discrete", given=replace(given, actions=np.zeros(600, np.int64)))
    refused("at least two are needed", given=given.subset([3]))


def test_a_fit_that_diverges_is_an_error() -> None:
    given = linear(0)
    wild = BRIEF.model_copy(update={"learning_rate": 1e38})
    with pytest.raises(ModelError, match="diverged"):
        fit_inverse(given, wild, 0, CPU)
