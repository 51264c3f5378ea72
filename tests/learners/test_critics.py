"""Critics by regression and by classification, against short references in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support import log_of
from torch.func import grad

from worldrl.config.learners import CriticSettings
from worldrl.learners.critics import Critics, move_target, returns_range
from worldrl.types import Log, Parameters, Transitions

P, M, B, S, A = 2, 3, 5, 4, 2
LOW, HIGH, BINS = (-2.0, -1.0), (3.0, 5.0), 7


def critics(**changes: Any) -> Critics:
    given = {"hidden": (6,), "num_critics": M, **changes}
    return Critics(CriticSettings.model_validate(given), S, A)


def classifying(**changes: Any) -> Critics:
    loss = {"kind": "hl_gauss", "num_bins": BINS, "low": LOW, "high": HIGH, **changes}
    return critics(critic_loss=loss)


def given(of: Critics) -> tuple[Parameters, Parameters, torch.Tensor, torch.Tensor]:
    critic = of.initialise((3, 4), torch.device("cpu"), "test")
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(P, B, S, generator=generator).double()
    action = torch.randn(P, B, A, generator=generator).double()
    support = of.support(log_of(20, S, A), 0, P)
    return {name: value.double() for name, value in critic.items()}, support, observation, action


def network(critic: Parameters, member: int, number: int, inputs: np.ndarray) -> np.ndarray:
    own = {name: value[member, number].detach().numpy() for name, value in critic.items()}
    hidden = np.maximum(inputs @ own["weight.0"] + own["bias.0"][0], 0)
    return np.asarray(hidden @ own["weight.1"] + own["bias.1"][0])


def test_values_and_squared_losses() -> None:
    of = critics()
    critic, support, observation, action = given(of)
    assert support == {}
    target = torch.randn(P, 1, B).double()
    losses, values = of.loss(critic, support, observation, action, target)
    assert of.values(critic, support, observation, action).equal(values)
    for member in range(P):
        for number in range(M):
            for row in range(B):
                inputs = np.concatenate([observation[member, row], action[member, row]])
                value = network(critic, member, number, inputs)[0]
                assert values[member, number, row].item() == pytest.approx(value)
                wanted = (value - target[member, 0, row].item()) ** 2
                assert losses[member, number, row].item() == pytest.approx(wanted)


@pytest.mark.parametrize("threshold", [0.3, 1.0, 100.0])
def test_huber_losses(threshold: float) -> None:
    of = critics(critic_loss={"kind": "huber", "threshold": threshold})
    critic, support, observation, action = given(of)
    assert support == {}
    target = torch.randn(P, M, B, generator=torch.Generator().manual_seed(1)).double()
    losses, values = of.loss(critic, support, observation, action, target)
    assert values.equal(critics().values(critic, support, observation, action))
    for place in np.ndindex(P, M, B):
        error = abs(values[place].item() - target[place].item())
        wanted = error - threshold / 2
        if error <= threshold:
            wanted = error**2 / (2 * threshold)
        assert losses[place].item() == pytest.approx(wanted)
    smooth = torch.nn.functional.smooth_l1_loss(values, target, reduction="none", beta=threshold)
    torch.testing.assert_close(losses, smooth)


def reference(logits: np.ndarray, target: float, low: float, high: float) -> tuple[float, float]:
    """Cross-entropy with the Gaussian's share of each bin, and the expectation; arXiv 2403.03950"""
    edges = np.linspace(low, high, BINS + 1)
    sigma = 0.75 * (edges[1] - edges[0])
    target = min(max(target, low), high)
    cdf = np.array([0.5 * (1 + math.erf((edge - target) / sigma / math.sqrt(2))) for edge in edges])
    mass = np.diff(cdf) / (cdf[-1] - cdf[0])
    shifted = np.exp(logits - logits.max())
    probabilities = shifted / shifted.sum()
    expectation = float((probabilities * (edges[1:] + edges[:-1]) / 2).sum())
    return float(-(mass * np.log(probabilities)).sum()), expectation


@pytest.mark.parametrize("scale", [1.0, 10.0])  # inside the range, and far beyond it
def test_classification_losses_and_values(scale: float) -> None:
    of = classifying()
    critic, support, observation, action = given(of)
    target = scale * torch.randn(P, M, B, generator=torch.Generator().manual_seed(1)).double()
    losses, values = of.loss(critic, support, observation, action, target)
    torch.testing.assert_close(of.values(critic, support, observation, action), values)
    for member in range(P):
        for number in range(M):
            for row in range(B):
                inputs = np.concatenate([observation[member, row], action[member, row]])
                logits = network(critic, member, number, inputs)
                loss, value = reference(
                    logits, target[member, number, row].item(), LOW[member], HIGH[member]
                )
                assert losses[member, number, row].item() == pytest.approx(loss, rel=1e-5)
                assert values[member, number, row].item() == pytest.approx(value, rel=1e-5)


HUBER = critics(critic_loss={"kind": "huber", "threshold": 0.4})


@pytest.mark.parametrize(
    "of", [critics(), classifying(), HUBER], ids=["squared", "hl_gauss", "huber"]
)
def test_gradients_are_those_of_finite_differences(of: Critics) -> None:
    critic, support, observation, action = given(of)
    target = torch.randn(P, 1, B, generator=torch.Generator().manual_seed(2)).double()

    def loss(critic: Parameters) -> torch.Tensor:
        return of.loss(critic, support, observation, action, target)[0].sum()

    gradients = grad(loss)(critic)
    for name in "weight.0", "bias.1":
        step = torch.zeros_like(critic[name])
        step[1, 2, 0, 0] = 1e-6
        up, down = ({**critic, name: critic[name] + sign * step} for sign in (1, -1))
        slope = (loss(up) - loss(down)).item() / 2e-6
        assert gradients[name][1, 2, 0, 0].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_a_classifying_critic_learns_its_target() -> None:
    of = critics(critic_loss={"kind": "hl_gauss", "num_bins": 51, "low": -1.0, "high": 2.0})
    critic, support, observation, action = given(of)
    target = torch.linspace(-0.5, 1.5, B).double().expand(P, 1, B)

    def loss(critic: Parameters) -> torch.Tensor:
        return of.loss(critic, support, observation, action, target)[0].sum()

    for _ in range(600):
        gradients = grad(loss)(critic)
        critic = {name: value - 0.05 * gradients[name] for name, value in critic.items()}
    values = of.values(critic, support, observation, action)
    torch.testing.assert_close(values, target.expand(P, M, B), atol=0.03, rtol=0)


def test_the_range_is_that_of_the_discounted_returns() -> None:
    rows = 4
    reward = torch.tensor([1.0, 2.0, -10.0, 4.0])
    known = torch.tensor([1.0, 0.0, 1.0, 0.0])  # two episodes of two steps
    nothing = torch.zeros(rows, 1)
    log = Log(Transitions(nothing, nothing, reward, nothing, torch.zeros(rows)), nothing, known)
    # Returns to go at discount 0.5: 2, 2, -8, 4.
    assert returns_range(log, 0.5) == pytest.approx((-8 - 1.2, 4 + 1.2))
    of = critics(discount=(0.0, 0.5), critic_loss={"kind": "hl_gauss"})
    support = of.support(log, 0, 2)
    torch.testing.assert_close(support["low"], torch.tensor([-10 - 1.4, -9.2]))
    torch.testing.assert_close(support["high"], torch.tensor([4 + 1.4, 5.2]))
    assert of.support(log, 1, 1)["low"].item() == pytest.approx(-9.2)


def test_clipped_targets_are_counted() -> None:
    of = classifying()
    support = of.support(log_of(20, S, A), 0, P)
    target = torch.tensor([[-2.1, 0.0, 3.5, 2.0], [-0.9, 4.9, 0.0, 1.0]])
    assert of.metrics(target, support)["target_clipped"].tolist() == [0.5, 0.0]


def test_target_moves_by_its_rate() -> None:
    target, critic = {"w": torch.zeros(2, 3, 1)}, {"w": torch.ones(2, 3, 1)}
    move_target(target, critic, torch.tensor([0.25, 1.0]))
    assert target["w"].flatten().tolist() == [0.25] * 3 + [1.0] * 3
