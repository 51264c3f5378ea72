"""The point world: its optimum in closed form is what no other policy beats."""

from __future__ import annotations

import itertools

import pytest
import torch

from worldrl.study import point


def test_a_step_and_its_reward() -> None:
    state, action = torch.tensor([0.9, 0.2]), torch.tensor([1.0, -1.0])
    arrived = point.step(state, action)
    torch.testing.assert_close(arrived, torch.tensor([1.0, 0.1]))
    expected = torch.exp(torch.tensor(-(0.1**2) / (2 * point.BUMP_WIDTH**2))) - 0.1 * 0.1
    torch.testing.assert_close(point.reward(arrived), expected)


def test_the_model_predicts_the_truth_without_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    state, action = 2 * torch.rand(2, 3, 5, 2, generator=generator) - 1
    found = point.point_world(3).predict(state, action)
    assert found.mean.shape == found.std.shape == (3, 1, 5, 3)
    torch.testing.assert_close(found.mean[:, 0, :, :2], point.step(state, action))
    torch.testing.assert_close(found.mean[:, 0, :, 2], point.reward(point.step(state, action)))
    assert (found.std == 0).all()


def test_no_sequence_of_actions_beats_the_best_return() -> None:
    """All sequences of 4 steps over a grid of actions that holds the best ones."""
    start = torch.tensor([0.8, -0.15])
    grid = list(itertools.product((-1.0, -0.5, 0.0, 0.5, 1.0), repeat=2))
    choices = torch.tensor(list(itertools.product(range(len(grid)), repeat=4)))
    actions = torch.tensor(grid)[choices]  # (n, 4, 2)
    state, total = start.expand(len(actions), 2), torch.zeros(len(actions))
    for ahead in range(4):
        state = point.step(state, actions[:, ahead])
        total = total + 0.9**ahead * point.reward(state)
    best = float(point.best_return(start, 4, 0.9))
    assert float(total.max()) == pytest.approx(best, abs=1e-5)


def test_the_largest_value_is_that_of_resting_at_the_goal() -> None:
    goal = torch.tensor(point.GOAL)
    states = torch.cat([goal[None], point.disc(100, 0, "test")])
    values = point.best_return(states, 2_000, 0.99)
    assert float(values[0]) == pytest.approx(point.best_value(0.99), rel=1e-4)
    assert values.argmax() == 0


def test_what_steps_reach() -> None:
    corner = torch.tensor([0.9, 0.9])
    diagonal = point.RADIUS * torch.tensor([0.6, 0.8])
    assert point.reachable(corner + diagonal, 9)
    assert not point.reachable(corner + 1.01 * diagonal, 9)
    assert point.reachable(torch.tensor([0.0, 1.4]), 9)
    assert not point.reachable(torch.tensor([0.0, 1.41]), 9)
    assert point.reachable(torch.tensor([0.0, 1.41]), 10)
    # Whatever acts, nobody gets farther.
    generator = torch.Generator().manual_seed(0)
    state = point.disc(1_000, 0, "test")
    for _ in range(9):
        signs = (torch.rand(1_000, 2, generator=generator) < 0.9).float() * 2 - 1
        state = point.step(state, signs)
    assert point.reachable(state, 9).all()


def test_the_goal_is_well_inside_reach() -> None:
    goal = torch.tensor(point.GOAL)
    assert point.reachable(goal, 7)
    assert not point.reachable(goal, 4)


def test_the_outline_is_the_border_of_reach() -> None:
    border = torch.tensor(point.outline(9))
    assert point.reachable(0.999 * border, 9).all()
    assert not point.reachable(1.001 * border, 9).any()


def test_the_log_holds_true_steps_from_the_disc() -> None:
    rows = point.logged_dataset(3).transitions()
    assert len(rows.reward) == point.ROWS
    state, action = torch.from_numpy(rows.observation), torch.from_numpy(rows.action)
    assert (state.norm(dim=-1) <= point.RADIUS + 1e-6).all()
    following = torch.from_numpy(rows.next_observation)
    torch.testing.assert_close(following, point.step(state, action))
    torch.testing.assert_close(torch.from_numpy(rows.reward), point.reward(following))
    assert rows.next_known.all()
    assert not rows.terminated.any()
