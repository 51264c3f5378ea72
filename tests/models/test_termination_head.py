"""The learned termination rule: threshold, agreement, training."""

from __future__ import annotations

import math

import pytest
import torch

from worldrl.errors import DataError
from worldrl.models.termination import (
    agreement,
    choose_threshold,
    end_weight,
    ends,
    initialise,
    logits,
    loss,
)
from worldrl.training.world.termination import fit_termination
from worldrl.types import Transitions


def test_threshold_has_the_best_f1_of_all_cuts() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = (torch.rand(4, 200, generator=generator) < 0.1).float()
    score = (0.4 * truth + torch.rand(4, 200, generator=generator)) / 1.4
    score = (score * 50).round() / 50  # with ties
    chosen = choose_threshold(score, truth)
    for member in range(4):

        def f1(cut: float, member: int = member) -> float:
            predicted = score[member] >= cut
            hits = float((predicted * truth[member]).sum())
            return 2 * hits / float(predicted.sum() + truth[member].sum())

        best = max(f1(cut) for cut in torch.unique(score[member]).tolist())
        assert f1(float(chosen[member])) == pytest.approx(best)


def test_threshold_of_separable_scores_is_the_middle_of_the_gap() -> None:
    score = torch.tensor([[0.1, 0.2, 0.8, 0.9]])
    assert choose_threshold(score, torch.tensor([[0.0, 0, 1, 1]])).item() == pytest.approx(0.5)
    assert choose_threshold(score, torch.tensor([[0.0, 0, 0, 0]])).item() == 0.5
    assert choose_threshold(score, torch.tensor([[1.0, 1, 1, 1]])).item() == pytest.approx(0.05)


def test_agreement_counts() -> None:
    found = agreement(
        torch.tensor([[True, True, False, False], [False] * 4]),
        torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 0]]),
    )
    assert found.precision[0] == pytest.approx(1 / 2)
    assert found.recall[0] == pytest.approx(1 / 3)
    assert math.isnan(found.precision[1])
    assert math.isnan(found.recall[1])


def test_loss_is_the_weighted_cross_entropy() -> None:
    parameters = initialise([torch.Generator().manual_seed(0)], 3, 1, hidden=(8,))
    batch = Transitions(
        torch.randn(1, 5, 3),
        torch.randn(1, 5, 1),
        torch.zeros(1, 5),
        torch.randn(1, 5, 3),
        torch.tensor([[1.0, 0, 0, 1, 0]]),
    )
    weight = torch.tensor([[2.0, 1, 1, 3, 1]])
    value, per_seed = loss(parameters, batch, weight)
    p = logits(parameters, batch.observation, batch.action, batch.next_observation).sigmoid()[0]
    expected = -(2 * p[0].log() + 3 * p[3].log() + (1 - p[[1, 2, 4]]).log().sum()) / 5
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert per_seed.shape == (1,)


def test_weight_of_ends_is_capped() -> None:
    weights = end_weight(torch.tensor([1.0, 10.0]), torch.tensor([1000.0, 50.0]))
    assert weights.tolist() == [20.0, 5.0]


def corridor(episodes: int, seed: int = 0) -> tuple[Transitions, torch.Tensor]:
    """Walks of up to 30 steps that end beyond 1; the second entry is noise."""
    generator = torch.Generator().manual_seed(seed)
    rows, numbers = [], []
    for episode in range(episodes):
        state = torch.zeros(2)
        for _ in range(30):
            action = torch.rand(1, generator=generator) * 2 - 1
            noise = torch.randn(1, generator=generator)
            following = torch.cat([state[:1] + 0.15 * action + 0.05, noise])
            done = (following[0] > 1).float()
            rows.append((state, action, torch.tensor(0.0), following, done))
            numbers.append(episode)
            state = following
            if done:
                break
    fields = (torch.stack(list(column)) for column in zip(*rows, strict=True))
    return Transitions(*fields), torch.tensor(numbers)


def test_training_finds_where_episodes_end() -> None:
    rows, episode = corridor(200)
    learned = fit_termination(rows, episode, [0, 1], steps=600)
    assert (learned.holdout.precision > 0.9).all()
    assert (learned.holdout.recall > 0.9).all()
    probe = torch.tensor([[0.5, 0.0], [0.9, 1.0], [1.2, 0.0], [1.5, -1.0]]).expand(2, -1, -1)
    before = probe - torch.tensor([0.1, 0.0])
    found = ends(learned.parameters, before, torch.zeros(2, 4, 1), probe)
    assert found.tolist() == [[False, False, True, True]] * 2
    broken = probe.clone()
    broken[0, 0, 1] = float("nan")
    assert ends(learned.parameters, before, torch.zeros(2, 4, 1), broken)[0, 0]


def test_training_is_deterministic_and_a_member_is_its_lone_run() -> None:
    rows, episode = corridor(40)
    together = fit_termination(rows, episode, [3, 4], steps=100)
    again = fit_termination(rows, episode, [3, 4], steps=100)
    alone = fit_termination(rows, episode, [4], steps=100)
    for name, value in together.parameters.items():
        assert torch.equal(value, again.parameters[name])
        torch.testing.assert_close(value[1:], alone.parameters[name], rtol=1e-5, atol=1e-6)


def test_nothing_to_learn_is_an_error_that_names_the_setting() -> None:
    rows, episode = corridor(5)
    for fill in (0.0, 1.0):
        constant = rows._replace(terminated=torch.full_like(rows.terminated, fill))
        with pytest.raises(DataError, match=r"termination\.kind=never"):
            fit_termination(constant, episode, [0], steps=1)


def test_a_single_terminal_episode_is_trained_on() -> None:
    rows, episode = corridor(30)
    first = int(episode[rows.terminated > 0.5][0])
    keep = (episode == first) | (rows.terminated < 0.5)
    few = Transitions(*(value[keep] for value in rows))
    learned = fit_termination(few, episode[keep], [0], steps=50)
    assert learned.parameters["threshold"].item() == 0.5
    assert learned.holdout.recall.isnan().all()
