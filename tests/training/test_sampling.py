"""How logged rows are drawn, against probabilities worked out one row at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from worldrl.config.loader import load_config
from worldrl.config.sampling import Sampling
from worldrl.errors import ConfigError, DataError
from worldrl.random import generator
from worldrl.rows import pack
from worldrl.training.logged import Logged
from worldrl.training.sampling import row_sampler, row_weights
from worldrl.types import Transitions

S, A = 2, 1
DATA = "dataset=x.npz"


def settings(kind: str, **changes: Any) -> Sampling:
    found: Sampling = TypeAdapter(Sampling).validate_python({"kind": kind, **changes})
    return found


def logged_of(episodes: list[list[float]], starts: list[list[float]] | None = None) -> Logged:
    """Episodes with these rewards; they begin at these observations, or at random ones."""
    reward = torch.tensor([value for episode in episodes for value in episode])
    number = torch.tensor([i for i, episode in enumerate(episodes) for _ in episode])
    n = len(reward)
    observation = torch.randn(n, S, generator=torch.Generator().manual_seed(0))
    if starts is not None:
        first = torch.tensor([0, *np.cumsum([len(episode) for episode in episodes])[:-1]])
        observation[first] = torch.tensor(starts)
    zeros = torch.zeros(n)
    rows = pack(Transitions(observation, torch.zeros(n, A), reward, observation, zeros))
    bound = np.ones(A, np.float32)
    return Logged(rows, torch.ones(n, dtype=torch.bool), number, S, A, -bound, bound)


EPISODES = [[1.0, 2.0], [0.0, 0.5, 0.5, 1.0], [10.0], [3.0, 3.0, 1.0]]  # returns 3, 2, 10, 7


def probabilities(found: Logged, given: Sampling) -> list[float]:
    weight = row_weights(given, found)
    return list(weight / weight.sum())


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_return_weighted_is_a_softmax_over_transitions_of_normalised_returns(
    temperature: float,
) -> None:
    given = settings("return_weighted", temperature=temperature)
    scores = [(sum(episode) - 2) / (10 - 2) for episode in EPISODES for _ in episode]
    total = sum(math.exp(score / temperature) for score in scores)
    wanted = [math.exp(score / temperature) / total for score in scores]
    assert probabilities(logged_of(EPISODES), given) == pytest.approx(wanted)


def test_returns_are_brought_to_the_unit_interval_first() -> None:
    """With raw returns all mass would be on one episode; and units must not matter."""
    thousands = [[1000 * reward for reward in episode] for episode in EPISODES]
    found = probabilities(logged_of(thousands), settings("return_weighted"))
    assert found == pytest.approx(
        probabilities(logged_of(EPISODES), settings("return_weighted")), rel=1e-5
    )
    assert min(found) > 1e-6


def test_advantage_weighted_takes_off_what_the_start_promises() -> None:
    random = np.random.default_rng(0)
    starts = random.normal(size=(12, S)) * [1.0, 1e-3]
    luck = random.normal(size=12)
    returns = 50 * starts[:, 0] - 3000 * starts[:, 1] + 7 + luck
    episodes = [[value / 2, value / 2] for value in returns.tolist()]
    found = logged_of(episodes, starts.tolist())
    # The normal equations, with an intercept.
    design = np.column_stack([found.transitions.observation[::2].double().numpy(), np.ones(12)])
    exact = np.array([2 * np.float64(np.float32(value / 2)) for value in returns])
    error = exact - design @ np.linalg.solve(design.T @ design, design.T @ exact)
    scores = (error - error.min()) / (error.max() - error.min())
    weight = np.repeat(np.exp(scores / 0.1), 2)
    given = settings("advantage_weighted")
    assert probabilities(found, given) == pytest.approx(list(weight / weight.sum()), rel=1e-4)
    assert np.corrcoef(scores, luck)[0, 1] > 0.8


def test_too_few_episodes_for_a_regression_are_refused() -> None:
    found = logged_of([[1.0], [2.0], [3.0]])
    with pytest.raises(DataError, match=r"3 episodes .* 2 numbers .* sampling.kind=return_weight"):
        row_weights(settings("advantage_weighted"), found)


@pytest.mark.parametrize("kind", ["return_weighted", "advantage_weighted"])
def test_without_differences_sampling_is_uniform(kind: str) -> None:
    tenths = [[0.1] * 30, [0.3] * 10, [3.0], [1.5, 1.5]]  # 3, but for rounding
    found = probabilities(logged_of(tenths), settings(kind))
    assert found == pytest.approx([1 / 43] * 43)
    alone = probabilities(logged_of([[1.0, 5.0]]), settings(kind))
    assert alone == pytest.approx([0.5, 0.5])


def test_returns_that_starts_explain_exactly_are_no_difference() -> None:
    starts = [[float(i), float(i * i % 7)] for i in range(20)]
    episodes = [[3 * one - 2 * two + 1] for one, two in starts]
    found = probabilities(logged_of(episodes, starts), settings("advantage_weighted"))
    assert found == pytest.approx([1 / 20] * 20)


@pytest.mark.parametrize(
    ("share", "kept"), [(0.5, {2, 3}), (0.74, {2, 3}), (0.75, {0, 2, 3}), (0.01, {2}), (1, None)]
)
def test_top_returns_are_the_best_episodes_and_at_least_one(
    share: float, kept: set[int] | None
) -> None:
    found = row_weights(settings("top_returns", share=share), logged_of(EPISODES))
    rows = [i for i, episode in enumerate(EPISODES) for _ in episode]
    assert found.tolist() == [float(kept is None or i in kept) for i in rows]


def test_a_tenth_of_ten_episodes_is_one() -> None:
    """0.1 * 30 is 3.0000000000000004 and 0.29 * 100 is 28.999...: rounding must not count."""
    for count, share, kept in (10, 0.1, 1), (30, 0.1, 3), (100, 0.29, 29):
        found = row_weights(settings("top_returns", share=share), logged_of([[1.0]] * count))
        assert found.tolist() == [1.0] * kept + [0.0] * (count - kept)


def test_top_returns_may_be_discounted() -> None:
    late, early = [0.0, 0.0, 8.0], [3.0, 0.0]
    found = logged_of([late, early])
    given = {"share": 0.5}
    assert row_weights(settings("top_returns", **given), found).tolist() == [1, 1, 1, 0, 0]
    given["discount"] = 0.5
    assert row_weights(settings("top_returns", **given), found).tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["uniform", "return_weighted", "top_returns"])
def test_rows_are_drawn_as_often_as_they_should(kind: str) -> None:
    found, given = logged_of(EPISODES), settings(kind)
    drawn = row_sampler(given, found).draw(generator(3, "policy.rows"), (100, 300))
    assert drawn.shape == (100, 300)
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn.flatten(), minlength=10).double()
    wanted = 30_000 * torch.tensor(probabilities(found, given))
    assert (counts[wanted == 0] == 0).all()
    assert ((counts - wanted).abs() < 5 * wanted.sqrt() + 1e-9).all()


def test_the_mean_square_is_that_of_what_is_drawn() -> None:
    """The guards hold values against it: of rare good rows it is not that of the data."""
    found, given = logged_of(EPISODES), settings("return_weighted")
    reward = found.transitions.reward
    wanted = sum(
        p * r.item() ** 2 for p, r in zip(probabilities(found, given), reward, strict=True)
    )
    assert row_sampler(given, found).mean_square(reward) == pytest.approx(wanted)
    uniform = row_sampler(settings("uniform"), found)
    assert uniform.mean_square(reward) == pytest.approx(reward.square().mean().item())
    assert wanted > 2 * reward.square().mean().item()


def test_uniform_draws_what_randint_draws() -> None:
    found = logged_of(EPISODES)
    drawn = row_sampler(settings("uniform"), found).draw(generator(3, "policy.rows", 7), (5, 6))
    assert drawn.equal(torch.randint(10, (5, 6), generator=generator(3, "policy.rows", 7)))


def test_draws_are_a_function_of_the_generator() -> None:
    found, given = logged_of(EPISODES), settings("return_weighted", temperature=1.0)
    first, again = (row_sampler(given, found).draw(generator(3, "x", 1), (9, 9)) for _ in range(2))
    other = row_sampler(given, found).draw(generator(3, "x", 2), (9, 9))
    assert first.equal(again)
    assert not first.equal(other)


def test_the_ends_of_the_unit_interval_find_a_row_with_weight(monkeypatch: Any) -> None:
    found = logged_of([[0.0], *EPISODES, [0.0]])
    sampler = row_sampler(settings("top_returns", share=0.34), found)
    for value in 0.0, 1 - 2.0**-53:
        given = torch.full((3,), value, dtype=torch.float64)
        monkeypatch.setattr("torch.rand", lambda *_, given=given, **__: given)
        assert set(sampler.draw(torch.Generator(), (3,)).tolist()) <= {7, 8, 9, 10}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sampling.temperature=0.2"], "sampling.temperature.*another kind of sampling"),
        (["sampling=top_returns", "sampling.temperature=1"], "another kind of sampling"),
        (["sampling=return_weighted", "sampling.share=0.1"], "another kind of sampling"),
        (["sampling=weighted"], "must be one of uniform, return_weighted"),
        (["sampling=top_returns", "sampling.share=0"], "above 0"),
    ],
)
def test_what_would_not_be_used_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config("train", "bc", [DATA, *overrides])


def test_sampling_that_draws_no_row_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no row of a batch is logged.*real_ratio is 0"):
        load_config("train", "mbpo", [DATA, "sampling=top_returns", "imagination.real_ratio=0"])
    load_config("train", "mbpo", [DATA, "sampling=top_returns", "imagination.real_ratio=0.05"])
