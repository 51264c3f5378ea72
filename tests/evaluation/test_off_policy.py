"""Estimates without the real system: their error, the rule of acceptance, ranks and the record."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from worldrl.evaluation.off_policy import (
    Estimate,
    Judged,
    OfflineResult,
    judge,
    rank_correlation,
    standard_error,
)

NEAR = [0.4, 0.5, 0.6]


def test_the_error_is_of_the_mean_over_judges():
    assert standard_error([1.0, 2.0, 6.0]) == pytest.approx(math.sqrt(7) / math.sqrt(3))
    assert standard_error([1.0]) is None


def test_a_gain_must_exceed_its_standard_error():
    """Judges differ much about both policies, and agree about which is better."""
    old = [10.0, 20.0, 60.0]
    new = [11.0, 22.0, 61.0]  # gains 1, 2, 1: mean 4/3, error 1/3
    found = judge(new, NEAR, old)
    assert found.gain == pytest.approx(4 / 3)
    assert found.error == pytest.approx(1 / 3)
    assert (found.value, found.penalty) == (pytest.approx(94 / 3), pytest.approx(0.5))
    assert found.accepted
    assert not judge([13.0, 19.0, 60.5], NEAR, old).accepted  # mean 3.5 / 3, error 1.17
    assert not judge([9.0, 18.0, 59.0], NEAR, old).accepted
    assert not judge(old, NEAR, old).accepted  # no gain is none


def test_a_policy_that_leaves_the_data_is_not_accepted_whatever_its_gain():
    old, new = [1.0, 2.0, 3.0], [100.0, 101.0, 102.0]
    assert judge(new, [0.9, 1.0, 1.1], old).accepted  # 1 on average is the most
    assert not judge(new, [0.9, 1.0, 1.2], old).accepted
    assert not judge(new, [math.nan] * 3, old).accepted


def test_the_first_candidate_has_nothing_to_beat_but_must_stay_near_the_data():
    found = judge([-5.0, -7.0, -9.0], NEAR, None)
    assert found.accepted
    assert found.gain is None
    assert found.error == pytest.approx(2 / math.sqrt(3))
    assert not judge([-5.0, -7.0, -9.0], [2.0, 1.0, 1.0], None).accepted
    assert not judge([math.nan] * 3, NEAR, None).accepted


def test_ranks_against_the_classic_formula_and_with_ties():
    random = np.random.default_rng(0)
    one, other = random.normal(size=9), random.normal(size=9)
    difference = one.argsort().argsort() - other.argsort().argsort()
    wanted = 1 - 6 * (difference**2).sum() / (9 * (81 - 1))
    assert rank_correlation(one, other) == pytest.approx(wanted)
    assert rank_correlation(np.exp(3 * one), one) == pytest.approx(1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert rank_correlation([0, 5, 5, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize("values", [[1.0, 2.0], [3.0, 3.0, 3.0]])
def test_there_is_no_rank_of_two_or_of_what_does_not_vary(values):
    assert rank_correlation(values, list(range(len(values)))) is None


def estimate(value: float) -> Estimate:
    numbers = torch.tensor([value - 1, value + 1], dtype=torch.float64)
    return Estimate(*(numbers if i == 0 else numbers * 0 + i for i in range(9)))


def result(*pairs: tuple[float, float | None]) -> OfflineResult:
    judges = {
        "model": "worlds", "seeds": [0, 1], "shared_model": False, "horizon": 5, "num_starts": 7,
    }  # fmt: skip
    rows = [
        Judged(f"run{i}", 0, 10 * i, i == 0, estimate(value), true)
        for i, (value, true) in enumerate(pairs)
    ]
    return OfflineResult(judges, tuple(rows))


def test_the_record_is_no_score():
    found = result((1.0, None), (3.0, None)).to_json()
    json.dumps(found, allow_nan=False)
    assert found["offline"] is True
    assert found["spearman"] is None
    row = found["policies"][1]
    assert (row["value"], row["value_error"], row["value_by_judge"]) == (3.0, 1.0, [2.0, 4.0])
    assert (row["step"], row["penalty"], row["within_data"]) == (10, 3.0, False)
    assert not any("return_mean" in key or "score" in key for key in (*found, *row))
    text = result((1.0, None)).protocol()
    assert "Estimates, no scores" in text
    assert "leaves the data" in text
    assert "judged too well" in text


def test_ranks_are_compared_with_true_returns_where_all_are_known():
    found = result((1.0, 10.0), (3.0, 30.0), (2.0, 20.0))
    assert found.to_json()["spearman"]["value"] == pytest.approx(1)
    assert found.to_json()["spearman"]["model_return"] is None  # all alike
    assert "Spearman of value with true returns: 1.000 (3 policies)" in found.protocol()
    assert result((1.0, 10.0), (3.0, None), (2.0, 20.0)).to_json()["spearman"] is None
