"""Rollouts backward in time: their directions, their steps, and whose they are."""

from __future__ import annotations

import pytest
import torch
from support import of_member
from torch import Tensor

from worldrl.config.learners import SeekerSettings
from worldrl.imagination import rollout
from worldrl.imagination.reverse import WaysBack, divergent_rollouts, filled_up, whole_ways
from worldrl.models.ensemble import Ensemble, Standardizer, init_ensemble
from worldrl.random import generator

S, A, N, E, ROWS, HORIZON = 3, 2, 4, 3, 20, 4
SEEDS = (5, 6)


def reverse(std: float = 0.0) -> Ensemble:
    """Untrained, without rewards, and almost certain where no deviation is given."""
    sources = [generator(seed, "reverse") for seed in SEEDS]
    parameters = init_ensemble(sources, S, A, (8,), N, reward=False)
    assert parameters["weight.1"].shape == (2, N, 8, 2 * S)
    parameters["weight.1"][..., S:] = 0
    parameters["bias.1"][..., S:] = -100.0
    bound = 2 * torch.log(torch.tensor(max(std, 1e-9)))
    parameters["min_log_variance"].fill_(float(bound))
    count = len(SEEDS)
    return Ensemble(
        parameters,
        Standardizer(torch.zeros(count, S + A), torch.ones(count, S + A)),
        Standardizer(torch.zeros(count, S), torch.ones(count, S)),
        torch.tensor([[0, 2, 3], [1, 0, 2]]),
    )


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ENDS, ACTIONS = normal(ROWS, S), normal(7, A, seed=1).tanh()


def rolled(settings: SeekerSettings, model: Ensemble, seeds: tuple[int, ...] = SEEDS) -> WaysBack:
    return divergent_rollouts(settings, model, ENDS, ACTIONS, seeds)


def test_every_step_is_an_elites_and_equal_shares_are() -> None:
    settings = SeekerSettings(horizon=HORIZON)
    model = reverse()
    ways = rolled(settings, model)
    assert ways.observation.shape == (2, HORIZON, ROWS, S)
    assert ways.action.shape == (2, HORIZON, ROWS, A)
    before = ENDS.expand(2, -1, -1)
    for step in range(HORIZON):
        mean = model.predict(before, ways.action[:, step]).mean  # (P, N, n, S)
        away = (mean - ways.observation[:, step, None]).abs().amax(-1)
        distance, member = away.min(1)
        assert distance.max() < 1e-5
        for seed in range(2):
            elites, counts = member[seed].unique(return_counts=True)
            assert set(elites.tolist()) == set(model.elites[seed].tolist())
            assert counts.max() <= -(-ROWS // E)
        before = ways.observation[:, step]


def test_a_rollout_keeps_to_one_logged_action() -> None:
    still = rolled(SeekerSettings(horizon=HORIZON, action_noise=0.0), reverse())
    assert still.action[:, 1:].equal(still.action[:, :-1])
    known = {tuple(row) for row in (0.8 * ACTIONS).tolist()}
    assert {tuple(row) for row in still.action.flatten(0, 2).tolist()} == known  # all are drawn

    noisy = rolled(SeekerSettings(horizon=50, action_noise=0.1), reverse())
    inside = (0.8 * ACTIONS).abs().max() + 0.5 < 1.5
    assert inside
    error = noisy.action - still.action[:, :1]
    free = still.action[:, :1].abs().expand_as(error) < 0.5
    assert float(error[free].std()) == pytest.approx(0.1, rel=0.05)
    assert abs(float(error[free].mean())) < 0.01
    loud = rolled(SeekerSettings(horizon=2, action_noise=5.0), reverse())
    assert loud.action.abs().max() == 1


def test_steps_are_samples() -> None:
    settings = SeekerSettings(horizon=1)
    spread = rolled(settings, reverse(0.3)).observation - rolled(settings, reverse()).observation
    assert float(spread.std()) == pytest.approx(0.3, rel=0.2)


def test_a_member_rolls_as_alone_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SeekerSettings(horizon=2)
    whole = rolled(settings, reverse(0.3))
    monkeypatch.setattr(rollout, "CPU_CHUNK", 12)
    for member, seed in enumerate(SEEDS):
        own = of_member(reverse(0.3), member)
        lone = rolled(settings, own, (seed,))
        for value, found in zip(of_member(whole, member), lone, strict=True):
            torch.testing.assert_close(found, value)


def test_orders_are_filled_up_with_a_row_that_is_there() -> None:
    assert filled_up(torch.tensor([[2, 0, 1, 3]]), 3).tolist() == [[2, 0, 1, 3, 3, 3]]
    assert filled_up(torch.tensor([[1, 0, 2]]), 3).tolist() == [[1, 0, 2]]


def test_rollouts_that_are_not_finite_are_left_out() -> None:
    whole = rolled(SeekerSettings(horizon=HORIZON), reverse(0.3))
    broken = ENDS.clone()
    broken[3] = torch.nan
    broken[ROWS - 1, 0] = torch.inf
    ways = divergent_rollouts(SeekerSettings(horizon=HORIZON), reverse(0.3), broken, ACTIONS, SEEDS)
    instead = {3: 0, ROWS - 1: 1}
    for value, wanted in zip(ways, whole, strict=True):
        for row in range(ROWS):
            assert value[:, :, row].equal(wanted[:, :, instead.get(row, row)])


def test_each_member_has_its_own_rollouts_in_their_place() -> None:
    ways = rolled(SeekerSettings(horizon=HORIZON), reverse(0.3))
    ruined = ways._replace(observation=ways.observation.clone())
    ruined.observation[0, -1, 0, 1] = torch.inf  # the last step of member 0's first way
    ruined.observation[1, 0, 1:, 0] = torch.nan  # and all but the first of member 1's
    found = whole_ways(ruined)
    for value, own in zip(found, ways, strict=True):
        assert value[0, :, 0].equal(own[0, :, 1])
        assert value[0, :, 1:].equal(own[0, :, 1:])
        assert value[1].equal(own[1, :, :1].expand_as(own[1]))
    ruined.observation[1] = torch.nan  # nothing is left: the seeker will not learn, and says so
    assert whole_ways(ruined).observation[1].isnan().all()
