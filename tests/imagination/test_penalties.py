"""Every penalty against a loop written from its formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch

from worldrl.config.schema import PenaltyKind
from worldrl.errors import ConfigError
from worldrl.imagination.penalties import PENALTIES
from worldrl.types import Prediction

P, N, R, S = 2, 4, 5, 3

#: Of one row: means ``(N, S + 1)`` and deviations ``(N, S + 1)``, the reward last.
Row = Callable[[np.ndarray, np.ndarray], float]


def norm(vector: list[float]) -> float:
    return math.sqrt(sum(value * value for value in vector))


def none(mean: np.ndarray, std: np.ndarray) -> float:
    return 0.0


def max_aleatoric(mean: np.ndarray, std: np.ndarray) -> float:
    return max(norm(list(std[i])) for i in range(N))


def max_dev_from_mean(mean: np.ndarray, std: np.ndarray) -> float:
    centre = [sum(mean[i, d] for i in range(N)) / N for d in range(S)]
    return max(norm([mean[i, d] - centre[d] for d in range(S)]) for i in range(N))


def max_pairwise_diff(mean: np.ndarray, std: np.ndarray) -> float:
    return max(
        norm([mean[i, d] - mean[j, d] for d in range(S)]) for i in range(N) for j in range(N)
    )


def ensemble_std(mean: np.ndarray, std: np.ndarray) -> float:
    roots = []
    for d in range(S + 1):
        second = sum(std[i, d] ** 2 + mean[i, d] ** 2 for i in range(N)) / N
        first = sum(mean[i, d] for i in range(N)) / N
        roots.append(math.sqrt(second - first**2))
    return norm(roots)


def mean_std(mean: np.ndarray, std: np.ndarray) -> float:
    variances = []
    for d in range(S):
        centre = sum(mean[i, d] for i in range(N)) / N
        variances.append(sum((mean[i, d] - centre) ** 2 for i in range(N)) / N)  # ddof 0
    return math.sqrt(sum(variances) / S)


REFERENCES: dict[str, Row] = {
    function.__name__: function
    for function in (
        none, max_aleatoric, max_dev_from_mean, max_pairwise_diff, ensemble_std, mean_std,
    )
}  # fmt: skip


def prediction(seed: int = 0) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    shape = (P, N, R, S + 1)
    mean = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Prediction(mean, torch.rand(shape, generator=generator, dtype=torch.float64))


def test_settings_registry_and_references_name_the_same_penalties():
    assert set(PENALTIES) == set(get_args(PenaltyKind)) == set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_a_loop_over_rows(name):
    given = prediction()
    values = PENALTIES[name](given)
    assert values.shape == (P, R)
    for seed in range(P):
        for row in range(R):
            wanted = REFERENCES[name](
                given.mean[seed, :, row].numpy(), given.std[seed, :, row].numpy()
            )
            assert values[seed, row].item() == pytest.approx(wanted, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", REFERENCES)
def test_rows_do_not_look_at_each_other(name):
    """MOReL's disagreement is between members at one input, not between inputs."""
    given, other = prediction(), prediction(1)
    values = PENALTIES[name](given)
    mean, std = other.mean.clone(), other.std.clone()
    mean[1, :, 2], std[1, :, 2] = given.mean[1, :, 2], given.std[1, :, 2]
    changed = PENALTIES[name](Prediction(mean, std))
    assert changed[1, 2] == values[1, 2]
    alone = Prediction(given.mean[1:, :, 2:3], given.std[1:, :, 2:3])
    assert PENALTIES[name](alone).item() == pytest.approx(values[1, 2].item(), rel=1e-12)


@pytest.mark.parametrize("name", ["max_dev_from_mean", "max_pairwise_diff", "mean_std"])
def test_disagreement_is_about_observations_and_ignores_deviations(name):
    given = prediction()
    mean = given.mean.clone()
    mean[..., -1] *= 100
    assert PENALTIES[name](Prediction(mean, 7 * given.std)).equal(PENALTIES[name](given))


@pytest.mark.parametrize("name", REFERENCES)
def test_members_that_agree_for_certain_have_no_penalty(name):
    mean = torch.randn(P, 1, R, S + 1).double().expand(P, N, R, S + 1)
    values = PENALTIES[name](Prediction(mean, torch.zeros_like(mean)))
    torch.testing.assert_close(values, torch.zeros(P, R).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", REFERENCES)
def test_one_member_is_an_ensemble(name):
    given = Prediction(*(value[:, :1] for value in prediction()))
    values = PENALTIES[name](given)
    assert values.shape == (P, R)
    assert values.isfinite().all()
    assert (values >= 0).all()


def test_total_deviation_does_not_cancel():
    """mean(x^2) - mean(x)^2 in float32 would be noise, or the root of a negative number."""
    mean = torch.full((1, 2, 1, 2), 1e4)
    mean[0, 1] += 0.5
    values = PENALTIES["ensemble_std"](Prediction(mean, torch.full_like(mean, 0.1)))
    assert values.item() == pytest.approx(math.sqrt(2 * (0.01 + 0.0625)), rel=1e-4)


def test_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(
        ConfigError, match=r"unknown penalty 'ensemble_sd'.*did you mean 'ensemble_std'"
    ):
        PENALTIES["ensemble_sd"]
