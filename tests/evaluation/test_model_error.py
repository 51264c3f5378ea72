"""Measures of a learned world, against synthetic worlds whose truth is known."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from worldrl.data.dataset import Dataset
from worldrl.errors import DataError
from worldrl.evaluation.model_error import (
    calibration,
    measure,
    one_step_error,
    open_loop_error,
    segments,
    terminal_agreement,
)
from worldrl.types import Prediction, Transitions

SIZE = 3
NOISE = torch.tensor([0.1, 0.5, 2.0, 0.3])  # of the three entries of the observation, the reward


class Drift(NamedTuple):
    """``s' = s + a``, reward the first entry; what the members believe is stated."""

    offset: Tensor  # (N,) added by each member to every dimension
    factor: float  # believed over true deviation
    elites: Tensor  # (P, E)

    def predict(self, observation: Tensor, action: Tensor) -> Prediction:
        mean = torch.cat([observation + action, observation[..., :1]], -1)[:, None]
        mean = mean + self.offset[:, None, None]
        return Prediction(mean, (self.factor * NOISE).expand_as(mean))


def drift(offset: list[float], factor: float = 1.0, elites: list[int] | None = None) -> Drift:
    chosen = list(range(len(offset))) if elites is None else elites
    return Drift(torch.tensor(offset), factor, torch.tensor([chosen] * 2))


@pytest.fixture(scope="module")
def rows() -> Transitions:
    """Two members, 20,000 rows each."""
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(2, 20_000, SIZE, generator=generator)
    action = torch.randn(2, 20_000, SIZE, generator=generator)
    noise = NOISE * torch.randn(2, 20_000, SIZE + 1, generator=generator)
    return Transitions(
        observation,
        action,
        observation[..., 0] + noise[..., -1],
        observation + action + noise[..., :-1],
        torch.zeros(2, 20_000),
    )


def test_one_step_errors_are_those_of_the_noise(rows: Transitions) -> None:
    found = one_step_error(drift([0.0, 1.0]), rows)
    variance = torch.cat([1 + NOISE[:-1].square(), 1 + NOISE[-1:].square()])
    share = NOISE.square() / variance
    assert found.mse_norm.shape == (2, 2)
    assert found.mse_norm[:, 0].tolist() == pytest.approx([share.mean().item()] * 2, rel=0.03)
    assert found.mse_norm_worst[:, 0].tolist() == pytest.approx([share.max().item()] * 2, rel=0.03)
    biased = (NOISE.square() + 1) / variance
    assert found.mse_norm[:, 1].tolist() == pytest.approx([biased.mean().item()] * 2, rel=0.03)
    entropy = (0.5 * math.log(2 * math.pi * math.e) + NOISE.log()).mean().item()
    assert found.nll[:, 0].tolist() == pytest.approx([entropy] * 2, abs=0.01)
    bias_cost = (0.5 / NOISE.square()).mean().item()
    assert found.nll[:, 1].tolist() == pytest.approx([entropy + bias_cost] * 2, rel=0.02)


def test_constant_dimensions_have_no_relative_error(rows: Transitions) -> None:
    still = rows._replace(reward=torch.full_like(rows.reward, 7.0))
    found = one_step_error(drift([0.0]), still)
    share = NOISE[:-1].square() / (1 + NOISE[:-1].square())
    assert found.mse_norm[:, 0].tolist() == pytest.approx([share.mean().item()] * 2, rel=0.03)


def test_a_model_that_knows_its_noise_is_calibrated(rows: Transitions) -> None:
    for found in calibration(drift([0.0, 0.0, 0.0]), rows):
        assert found.coverage.shape == (2, 3)
        torch.testing.assert_close(
            found.coverage, torch.tensor([[0.5, 0.8, 0.95]] * 2).double(), rtol=0, atol=0.01
        )
        assert (found.ece < 0.01).all()
        torch.testing.assert_close(
            found.pit, torch.full((2, 20), 0.05).double(), rtol=0, atol=0.005
        )
        assert found.pit.sum(1).tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_model_that_is_too_sure_or_too_modest_is_not(rows: Transitions, factor: float) -> None:
    single, _ = calibration(drift([0.0], factor), rows)
    for level, found in zip((0.5, 0.8, 0.95), single.coverage[0].tolist(), strict=True):
        half_width = factor * math.sqrt(2) * torch.erfinv(torch.tensor(level)).item()
        assert found == pytest.approx(math.erf(half_width / math.sqrt(2)), abs=0.01)
    assert (single.ece > 0.1).all()
    ends, middle = single.pit[:, [0, -1]].sum(1), single.pit[:, 9:11].sum(1)
    assert ((ends > 0.2) if factor < 1 else (middle > 0.15)).all()


def test_mixture_adds_the_spread_of_its_members(rows: Transitions) -> None:
    """Members two noise deviations apart: each alone is biased, their mixture too wide."""
    model = drift([-1.0, 1.0, 50.0], elites=[0, 1])  # the third is no elite
    single, mixture = calibration(model, rows)
    assert (single.coverage[:, 1] < 0.6).all()
    wide = (NOISE.square() + 1).sqrt() / NOISE
    expected = torch.special.erf(1.2815516 * wide / math.sqrt(2)).mean().item()
    assert mixture.coverage[:, 1].tolist() == pytest.approx([expected] * 2, abs=0.01)


def walks(lengths: list[int], final_known: bool = True) -> Dataset:
    """Entry 0 is 1,000 times the episode plus the step, so that a misplaced row shows."""
    observations, actions, following, terminated, truncated = [], [], [], [], []
    for episode, length in enumerate(lengths):
        for step in range(length):
            state = np.array([1000 * episode + step, 0.5 * step, 0.0])
            observations.append(state)
            actions.append([2.0, 1.0, 0.0])
            following.append(state + np.array([1, 0.5, 0]))
            terminated.append(step == length - 1 and not final_known)
            truncated.append(step == length - 1 and final_known)
    return Dataset.from_arrays(
        np.array(observations),
        np.array(actions),
        np.zeros(len(actions)),
        np.array(terminated),
        np.array(truncated),
        np.array(following) if final_known else None,
        action_low=[0, 0, -1],
        action_high=[4, 1, 1],
    )


def test_segments_stay_inside_their_episode() -> None:
    found = segments(walks([7, 3, 10]), np.array([0, 0, -1]), np.array([4, 1, 1]), horizon=4)
    assert found.observation[:, 0, 0].tolist() == [0, 4, 1000, 2000, 2004, 2008]
    assert found.length.tolist() == [4, 3, 3, 4, 4, 2]
    for start, length in zip(found.observation, found.length.tolist(), strict=True):
        assert (start[1 : length + 1, 0] - start[:length, 0]).tolist() == [1.0] * length
    assert found.action[0, 0].tolist() == [0.0, 1.0, 0.0]  # in [-1, 1]
    assert found.scale.isfinite().tolist() == [True, True, False]
    few = segments(walks([7, 3, 10]), np.zeros(3), np.ones(3), horizon=4, max_segments=2)
    assert few.observation[:, 0, 0].tolist() == [0, 2008]


def test_a_lost_last_observation_is_not_compared_with() -> None:
    found = segments(walks([5], final_known=False), np.zeros(3), np.ones(3), horizon=10)
    assert found.length.tolist() == [4]
    with pytest.raises(DataError, match="recorded successor"):
        segments(walks([1], final_known=False), np.zeros(3), np.ones(3))


class Steady(NamedTuple):
    """``s' = s + step`` whatever is done, with a believed deviation."""

    step: Tensor  # (P, N, S)
    std: float
    elites: Tensor

    def predict(self, observation: Tensor, action: Tensor) -> Prediction:
        following = observation[:, None] + self.step[:, :, None]
        mean = torch.nn.functional.pad(following, (0, 1))
        return Prediction(mean, torch.full_like(mean, self.std))


def test_open_loop_error_grows_with_the_bias() -> None:
    recorded = segments(walks([40, 40, 12]), np.zeros(3), np.full(3, 2.0), horizon=40)
    step = torch.tensor([1.0, 0.5, 0.0]).repeat(2, 3, 1)
    step[1, 0, 1] += 0.3  # the second population's members disagree; their mean is off by 0.1
    step[:, 2] = 1e9  # no elite
    step[1, 1, 1] -= 0.1
    model = Steady(step, 0.0, torch.tensor([[0, 1], [0, 1]]))
    horizons = (1, 5, 25, 100)
    found = open_loop_error(model, recorded, [0, 1], horizons)
    assert found.mean_rmse[0, :3].tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    scale = recorded.scale[1].item()
    expected = [0.1 * k / scale / math.sqrt(2) for k in (1, 5, 25)]  # one of two varying entries
    assert found.mean_rmse[1, :3].tolist() == pytest.approx(expected, rel=1e-3)
    assert found.mean_median[1, :3].tolist() == pytest.approx(expected, rel=1e-3)
    assert found.mean_rmse[:, 3].isnan().all()  # no stretch of 100 steps
    assert (found.sampled_rmse[1, :3] > 0).all()


def test_sampled_replay_spreads_as_a_random_walk() -> None:
    recorded = segments(walks([20] * 200), np.zeros(3), np.full(3, 2.0), horizon=20)
    recorded = recorded._replace(scale=torch.ones(3))
    model = Steady(torch.tensor([1.0, 0.5, 0.0]).repeat(2, 1, 1), 0.2, torch.zeros(2, 1).long())
    found = open_loop_error(model, recorded, [5, 6], (1, 4, 16))
    assert found.mean_rmse.abs().max() < 1e-3
    for row in found.sampled_rmse.tolist():
        assert row == pytest.approx([0.2, 0.4, 0.8], rel=0.1)
    again = open_loop_error(model, recorded, [5, 6], (1, 4, 16))
    assert torch.equal(found.sampled_rmse, again.sampled_rmse)
    assert not torch.equal(found.sampled_rmse[0], found.sampled_rmse[1])


def test_terminal_agreement_of_a_population() -> None:
    following = torch.tensor([[[0.0], [2.0], [3.0], [0.0]]]).expand(2, -1, -1)
    ended = torch.tensor([[0.0, 1, 1, 0], [1, 1, 0, 0]])
    rows = Transitions(following, following, ended, following, ended)
    found = terminal_agreement(lambda s, a, n: n[..., 0] > 1, rows)
    assert found.precision.tolist() == [1.0, 0.5]
    assert found.recall.tolist() == [1.0, 0.5]


def test_the_whole_report_is_plain_json(rows: Transitions) -> None:
    few = Transitions(*(value[:, :50] for value in rows))
    recorded = segments(walks([20, 20]), np.zeros(3), np.ones(3), horizon=20)
    report = measure(
        drift([0.0, 0.0]), few, [0, 1], recorded, lambda s, a, n: n[..., 0] > 1e9
    ).to_json()
    text = json.loads(json.dumps(report, allow_nan=False))
    assert text["horizons"] == [1, 2, 5, 10, 25, 50, 100]
    assert text["open_loop"]["mean_rmse"][0][-1] is None
    assert text["terminal"] == {"precision": [None, None], "recall": [None, None]}
    assert len(text["one_step"]["nll"]) == 2
    assert measure(drift([0.0]), few, [0, 1]).to_json()["open_loop"] is None
