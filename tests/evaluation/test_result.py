"""The record of an evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from worldrl.evaluation.result import evaluation_result
from worldrl.evaluation.returns import EpisodeReturns

REFERENCE = (-280.178953, 12135.0)


def played(returns: list[list[float]]) -> EpisodeReturns:
    array = np.array(returns)
    return EpisodeReturns(array, np.full(array.shape, 1000))


def test_members_are_averaged_over_episodes_first() -> None:
    result = evaluation_result(
        played([[1000.0, 3000], [5000, 7000], [2000, 4000]]),
        env_id="HalfCheetah-v5",
        seed=7,
        recorded_env_id="HalfCheetah-v5",
        reference=REFERENCE,
    )
    record = result.to_json()
    means = np.array([2000.0, 6000, 3000])
    assert record["return_mean"] == pytest.approx(means.mean())
    assert record["return_std"] == pytest.approx(means.std(ddof=1))
    assert record["std_over"] == "members"
    span = REFERENCE[1] - REFERENCE[0]
    assert record["normalized_score"] == pytest.approx(100 * (means.mean() - REFERENCE[0]) / span)
    assert record["normalized_std"] == pytest.approx(100 * means.std(ddof=1) / span)
    low, high = record["return_mean_interval"]
    assert 2000 <= low < means.mean() < high <= 6000
    assert record["normalized_mean_interval"][0] == pytest.approx(100 * (low - REFERENCE[0]) / span)
    assert (record["members"], record["episodes"], record["seed"]) == (3, 2, 7)
    assert record["returns"][1] == [5000, 7000]
    assert record["lengths"] == [[1000, 1000]] * 3
    assert record["other_environment"] is False
    assert "step" not in record


def test_one_member_has_no_interval() -> None:
    record = evaluation_result(played([[-5.0, 5.0]]), env_id="Pendulum-v1", seed=0).to_json()
    assert record["return_std"] == pytest.approx(np.std([-5, 5], ddof=1))
    assert record["std_over"] == "episodes"
    assert record["return_mean_interval"] is None
    assert record["normalized_score"] is None
    assert record["reference"] is None


def test_json_holds_no_nan() -> None:
    record = evaluation_result(
        played([[float("nan"), 1.0], [float("inf"), 2.0]]), env_id="x-v0", seed=0, reference=(0, 1)
    ).to_json()
    text = json.loads(json.dumps(record, allow_nan=False))
    assert text["return_mean"] is None
    assert text["normalized_score"] is None
    assert text["returns"] == [[None, 1.0], [None, 2.0]]


def test_another_environment_is_marked() -> None:
    result = evaluation_result(
        played([[1.0], [2.0]]),
        env_id="Hopper-v4",
        seed=0,
        recorded_env_id="Hopper-v2",
        reference=(-20.0, 3234.0),
    )
    assert result.to_json()["other_environment"] is True
    assert "Marked: the data was recorded in Hopper-v2" in result.protocol()


def test_protocol_stands_beside_the_number() -> None:
    text = evaluation_result(played([[1.0, 2.0]]), env_id="Pendulum-v1", seed=4).protocol()
    for part in ("return 1.5", "Pendulum-v1", "1 member", "2 deterministic episodes", "seed 4"):
        assert part in text
