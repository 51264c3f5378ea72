"""Every penalty against a loop written from its formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, get_args

import numpy as np
import pytest
import torch

from worldrl.config.imagination import PenaltyKind
from worldrl.errors import ConfigError
from worldrl.imagination.penalties import PENALTIES
from worldrl.types import Prediction, Sampled

P, N, R, S = 2, 4, 5, 3


class One(NamedTuple):
    """One row of a :class:`Sampled`, the reward last."""

    mean: np.ndarray  # (N, S + 1)
    std: np.ndarray  # (N, S + 1)
    member: int
    value: np.ndarray  # (S + 1,)
    spread: np.ndarray  # (S + 1,)


Row = Callable[[One], float]


def norm(vector: list[float]) -> float:
    return math.sqrt(sum(value * value for value in vector))


def none(one: One) -> float:
    return 0.0


def max_aleatoric(one: One) -> float:
    return max(norm(list(one.std[i])) for i in range(N))


def max_dev_from_mean(one: One) -> float:
    centre = [sum(one.mean[i, d] for i in range(N)) / N for d in range(S)]
    return max(norm([one.mean[i, d] - centre[d] for d in range(S)]) for i in range(N))


def max_pairwise_diff(one: One) -> float:
    return max(
        norm([one.mean[i, d] - one.mean[j, d] for d in range(S)])
        for i in range(N)
        for j in range(N)
    )


def mixture_variance(one: One, members: list[int], d: int) -> float:
    second = sum(one.std[i, d] ** 2 + one.mean[i, d] ** 2 for i in members) / len(members)
    first = sum(one.mean[i, d] for i in members) / len(members)
    return second - first**2


def ensemble_std(one: One) -> float:
    return norm([math.sqrt(mixture_variance(one, list(range(N)), d)) for d in range(S + 1)])


def ensemble_var(one: One) -> float:
    return norm([mixture_variance(one, list(range(N)), d) for d in range(S + 1)])


def variance_of_means(one: One, d: int) -> float:
    centre = sum(one.mean[i, d] for i in range(N)) / N
    return sum((one.mean[i, d] - centre) ** 2 for i in range(N)) / N  # ddof 0


def mean_std(one: One) -> float:
    return math.sqrt(sum(variance_of_means(one, d) for d in range(S)) / S)


def normalized_std(one: One) -> float:
    """Members' means brought to data units first."""
    scaled = one._replace(mean=one.mean / one.spread)
    return math.sqrt(sum(variance_of_means(scaled, d) for d in range(S + 1)) / (S + 1))


def ll_var(one: One) -> float:
    densities = []
    for i in range(N):
        density = 1.0
        for d in range(S + 1):
            deviation = one.std[i, d]
            exponent = -((one.value[d] - one.mean[i, d]) ** 2) / (2 * deviation**2)
            density *= math.exp(exponent) / math.sqrt(2 * math.pi * deviation**2)
        densities.append(math.log(density))
    centre = sum(densities) / N
    return sum((value - centre) ** 2 for value in densities) / N


def loo_kl(one: One) -> float:
    """By the integral of p log(p / q) on a grid, dimension by dimension."""
    others = [i for i in range(N) if i != one.member]
    total = 0.0
    for d in range(S + 1):
        m, v = one.mean[one.member, d], one.std[one.member, d] ** 2
        other = sum(one.mean[i, d] for i in others) / len(others)
        w = mixture_variance(one, others, d)
        x = np.linspace(m - 12 * math.sqrt(v), m + 12 * math.sqrt(v), 20_001)
        log_p = -((x - m) ** 2) / (2 * v) - 0.5 * math.log(v)
        log_q = -((x - other) ** 2) / (2 * w) - 0.5 * math.log(w)
        p = np.exp(log_p) / math.sqrt(2 * math.pi)
        total += float((p * (log_p - log_q)).sum() * (x[1] - x[0]))
    return total


REFERENCES: dict[str, Row] = {
    function.__name__: function
    for function in (
        none, max_aleatoric, max_dev_from_mean, max_pairwise_diff, ensemble_std, ensemble_var,
        mean_std, normalized_std, ll_var, loo_kl,
    )
}  # fmt: skip


def sampled(seed: int = 0) -> Sampled:
    generator = torch.Generator().manual_seed(seed)
    shape = (P, N, R, S + 1)
    mean = torch.randn(shape, generator=generator, dtype=torch.float64)
    std = 0.2 + torch.rand(shape, generator=generator, dtype=torch.float64)
    member = torch.randint(N, (P, R), generator=generator)
    value = torch.randn((P, R, S + 1), generator=generator, dtype=torch.float64)
    return Sampled(
        Prediction(mean, std), member, value, torch.tensor([1.0, 0.5, 3.0, 7.0]).double()
    )


def of_row(given: Sampled, seed: int, row: int) -> Sampled:
    """One row, its axes kept."""
    seeds, rows = slice(seed, seed + 1), slice(row, row + 1)
    prediction = Prediction(*(value[seeds, :, rows] for value in given.prediction))
    return Sampled(prediction, given.member[seeds, rows], given.value[seeds, rows], given.spread)


def test_settings_registry_and_references_name_the_same_penalties():
    assert set(PENALTIES) == set(get_args(PenaltyKind)) == set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_a_loop_over_rows(name):
    given = sampled()
    values = PENALTIES[name](given)
    assert values.shape == (P, R)
    for seed in range(P):
        for row in range(R):
            mean, std = (value[seed, :, row].numpy() for value in given.prediction)
            one = One(
                mean, std, int(given.member[seed, row]), given.value[seed, row].numpy(),
                given.spread.numpy(),
            )  # fmt: skip
            wanted = REFERENCES[name](one)
            assert values[seed, row].item() == pytest.approx(wanted, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("name", REFERENCES)
def test_rows_do_not_look_at_each_other(name):
    """MOReL's disagreement is between members at one input, not between inputs."""
    given, other = sampled(), sampled(1)
    values = PENALTIES[name](given)
    mean, std = other.prediction.mean.clone(), other.prediction.std.clone()
    member, value = other.member.clone(), other.value.clone()
    mean[1, :, 2], std[1, :, 2] = given.prediction.mean[1, :, 2], given.prediction.std[1, :, 2]
    member[1, 2], value[1, 2] = given.member[1, 2], given.value[1, 2]
    changed = PENALTIES[name](Sampled(Prediction(mean, std), member, value, given.spread))
    assert changed[1, 2] == values[1, 2]
    alone = PENALTIES[name](of_row(given, 1, 2))
    assert alone.item() == pytest.approx(values[1, 2].item(), rel=1e-12)


@pytest.mark.parametrize("name", ["max_dev_from_mean", "max_pairwise_diff", "mean_std"])
def test_disagreement_is_about_observations_and_ignores_deviations(name):
    given = sampled()
    mean = given.prediction.mean.clone()
    mean[..., -1] *= 100
    changed = given._replace(prediction=Prediction(mean, 7 * given.prediction.std))
    assert PENALTIES[name](changed).equal(PENALTIES[name](given))


@pytest.mark.parametrize("name", sorted(set(REFERENCES) - {"none", "ll_var", "loo_kl"}))
def test_only_two_penalties_look_at_the_sample(name):
    given = sampled()
    other = given._replace(member=(given.member + 1) % N, value=given.value + 3)
    assert PENALTIES[name](other).equal(PENALTIES[name](given))


@pytest.mark.parametrize("name", REFERENCES)
def test_members_that_agree_for_certain_have_no_penalty(name):
    mean = torch.randn(P, 1, R, S + 1).double().expand(P, N, R, S + 1)
    # Densities need a deviation.
    std = torch.full_like(mean, 1e-3 if name in ("ll_var", "loo_kl") else 0.0)
    given = sampled()._replace(prediction=Prediction(mean, std))
    torch.testing.assert_close(
        PENALTIES[name](given), torch.zeros(P, R).double(), atol=1e-8, rtol=0
    )


@pytest.mark.parametrize("name", REFERENCES)
def test_one_member_is_an_ensemble(name):
    given = sampled()
    alone = Prediction(*(value[:, :1] for value in given.prediction))
    values = PENALTIES[name](given._replace(prediction=alone, member=0 * given.member))
    assert values.shape == (P, R)
    assert values.isfinite().all()
    assert (values >= 0).all()


def test_total_deviation_does_not_cancel():
    """mean(x^2) - mean(x)^2 in float32 would be noise, or the root of a negative number."""
    mean = torch.full((1, 2, 1, 2), 1e4)
    mean[0, 1] += 0.5
    given = Sampled(
        Prediction(mean, torch.full_like(mean, 0.1)),
        torch.zeros(1, 1, dtype=torch.int64), mean[:, 0], torch.ones(2),
    )  # fmt: skip
    values = PENALTIES["ensemble_std"](given)
    assert values.item() == pytest.approx(math.sqrt(2 * (0.01 + 0.0625)), rel=1e-4)


def test_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(
        ConfigError, match=r"unknown penalty 'ensemble_sd'.*did you mean 'ensemble_std'"
    ):
        PENALTIES["ensemble_sd"]
