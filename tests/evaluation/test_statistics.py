"""Aggregates and intervals, against values known from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from worldrl.evaluation.statistics import (
    interquartile_mean,
    mean,
    median,
    normalized_score,
    normalized_std,
    optimality_gap,
    probability_of_improvement,
    stratified_bootstrap,
)


def test_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    scores = np.array([100.0, 1, 2, 3, 4, 5, 6, -50])
    assert interquartile_mean(scores.reshape(4, 2)) == pytest.approx(3.5)
    assert interquartile_mean(np.arange(15.0).reshape(15, 1)) == pytest.approx(7)  # 3 at each end
    assert interquartile_mean(np.array([[1.0], [2], [9]])) == pytest.approx(4)  # none of three
    stacked = np.random.default_rng(0).normal(size=(6, 5, 3))
    together = interquartile_mean(stacked)
    assert together.tolist() == [float(interquartile_mean(one)) for one in stacked]


def test_other_aggregates() -> None:
    scores = np.array([[0.0, 1.0, 4.0], [1.0, 3.0, 4.0]])
    assert mean(scores) == pytest.approx(13 / 6)
    assert median(scores) == pytest.approx(2.0)
    assert optimality_gap(scores) == pytest.approx(1 - 5 / 6)


def test_normalisation_shifts_scores_but_not_deviations() -> None:
    reference = (-280.178953, 12135.0)
    assert normalized_score(-280.178953, reference) == pytest.approx(0)
    assert normalized_score(12135.0, reference) == pytest.approx(100)
    assert normalized_std(0.0, reference) == 0
    scores = np.random.default_rng(0).normal(5000, 300, size=50)
    scaled = normalized_std(scores.std(), reference)
    assert scaled == pytest.approx(normalized_score(scores, reference).std())


def test_probability_of_improvement_is_the_mann_whitney_statistic() -> None:
    first, second = np.array([[1.0], [2], [3]]), np.array([[2.0], [0]])
    assert probability_of_improvement(first, second) == pytest.approx((1 + 1.5 + 2) / 6)
    assert probability_of_improvement(first, first) == pytest.approx(0.5)
    both = np.hstack([first, np.zeros((3, 1))])
    assert probability_of_improvement(both, np.zeros((2, 2))) == pytest.approx(0.75)


def test_bootstrap_is_deterministic_and_needs_two_runs() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 3))
    first = stratified_bootstrap(scores, mean, seed=1)
    assert first == stratified_bootstrap(scores, mean, seed=1)
    assert first != stratified_bootstrap(scores, mean, seed=2)
    assert stratified_bootstrap(scores[:1], mean) is None


def test_bootstrap_resamples_runs_within_each_task() -> None:
    """Without strata, tasks of unlike level would widen the interval; here nothing varies."""
    scores = np.tile([0.0, 100.0, 1000.0], (4, 1))
    interval = stratified_bootstrap(scores, interquartile_mean)
    assert interval is not None
    assert interval.low == interval.high == float(interquartile_mean(scores))


def test_bootstrap_matches_the_normal_interval_of_a_mean() -> None:
    scores = np.random.default_rng(3).normal(10, 2, size=(200, 1))
    interval = stratified_bootstrap(scores, mean, resamples=4000)
    half = 1.96 * scores.std() / np.sqrt(200)
    assert interval == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.05)


@pytest.mark.parametrize(("statistic", "runs"), [(mean, 10), (interquartile_mean, 10), (mean, 3)])
def test_intervals_cover_the_truth(statistic: object, runs: int) -> None:
    """95 % intervals of a symmetric truth; few runs cover less, as the documentation says."""
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        scores = random.normal(size=(runs, 5 if runs == 10 else 1))
        interval = stratified_bootstrap(scores, statistic, resamples=500, seed=trial)
        hits += interval is not None and interval.low <= 0 <= interval.high
    if runs == 10:
        assert 0.88 < hits / 300 < 0.98
    else:
        assert 0.6 < hits / 300 < 0.85


#: JOWA-150M with planning, random, human, DQN by game (arXiv 2410.00564; human and random scores
#: of Mnih et al. 2015).
ATARI = [
    (1458.6, 222.4, 742, 1525.2),  # Assault
    (2.84126e06, 12850, 29028.1, 853640),  # Atlantis
    (2927, 363.9, 16926.5, 5852.4),  # BeamRider
    (496.9, 123.7, 2630.4, 487.5),  # Berzerk
    (4910, 700.8, 3800, 4784.8),  # Carnival
    (7117, 2090.9, 12017, 2583),  # Centipede
    (3925, 811, 7387.8, 2690.6),  # ChopperCommand
    (9296.6, 152.1, 1971, 6361.6),  # DemonAttack
    (9380, 2292.3, 8049, 7278.6),  # NameThisGame
    (5230, 761.4, 7242.6, 4996.6),  # Phoenix
    (1413.8, 68.4, 42054.7, 1600.7),  # Seaquest
    (1036.9, 148, 1668.7, 1794.2),  # SpaceInvaders
    (53237.5, 664, 10250, 42165.2),  # StarGunner
    (3975, 3568, 5229.2, 3654.4),  # TimePilot
    (331.2, 32.5, 9173.3, 4538.6),  # Zaxxon
]


def test_published_aggregates_are_reproduced() -> None:
    """JOWA-150M with planning on its 15 games: IQM 0.847 by human and 1.195 by DQN scores."""
    score, random, human, dqn = np.array(ATARI).T
    by_human, by_dqn = (((score - random) / (top - random))[None] for top in (human, dqn))
    assert round(float(interquartile_mean(by_human)), 3) == 0.847
    assert round(float(median(by_human)), 3) == 0.585
    assert round(float(optimality_gap(by_human)), 3) == 0.409
    assert round(float(interquartile_mean(by_dqn)), 3) == 1.195
