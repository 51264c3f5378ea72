"""The inverse dynamics ensemble: its likelihood, its mixture, its inputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torch.func import grad_and_value

from worldrl.models.ensemble import Standardizer
from worldrl.models.inverse import (
    LOG_VARIANCE_BOUNDS,
    Gaussians,
    Inverse,
    forward,
    initialise,
    loss,
    mixture,
    mixture_nll,
    standardized,
)
from worldrl.types import Parameters

MEMBERS, ROWS, SIZE, ACTIONS, HISTORY = 3, 7, 4, 2, 1


def network(hidden: tuple[int, ...] = (8, 6)) -> Parameters:
    generators = [torch.Generator().manual_seed(member) for member in range(MEMBERS)]
    made = initialise(generators, SIZE, ACTIONS, HISTORY, hidden)
    return {name: value.double() for name, value in made.items()}


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def masks() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.empty(MEMBERS, ROWS, width, dtype=torch.float64).bernoulli_(0.9, generator=generator)
        / 0.9
        for width in (8, 6)
    ]


@pytest.mark.parametrize("dropout", [False, True])
def test_loss_is_the_likelihood_of_independent_members(dropout: bool) -> None:
    """Against one network at a time, with torch's own Gaussians and gradients."""
    parameters = network()
    inputs = normal(MEMBERS, ROWS, (HISTORY + 2) * SIZE)
    action = normal(MEMBERS, ROWS, ACTIONS).tanh()
    keep = masks() if dropout else None
    gradients, (value, per_member) = grad_and_value(loss, has_aux=True)(
        parameters, inputs, action, keep
    )
    lower, upper = (math.exp(bound) for bound in LOG_VARIANCE_BOUNDS)
    total = 0.0
    for member in range(MEMBERS):
        own = {name: v[member].clone().requires_grad_() for name, v in parameters.items()}
        hidden = inputs[member]
        for layer in range(2):
            hidden = (hidden @ own[f"weight.{layer}"] + own[f"bias.{layer}"]).clamp(min=0)
            hidden = hidden * keep[layer][member] if keep else hidden
        mean, raw = (hidden @ own["weight.2"] + own["bias.2"]).split(ACTIONS, -1)
        variance = lower + upper / (1 + upper * (-raw).exp())
        expected = -Normal(mean, variance.sqrt()).log_prob(action[member]).sum(1).mean()
        expected.backward()
        torch.testing.assert_close(per_member[member], expected.detach())
        for name, one in own.items():
            torch.testing.assert_close(gradients[name][member], one.grad)
        total += expected.item()
    assert float(value) == pytest.approx(total)


def test_mixture_has_the_moments_of_a_mixture() -> None:
    mean, variance = normal(MEMBERS, ROWS, ACTIONS), normal(MEMBERS, ROWS, ACTIONS).exp()
    action = normal(ROWS, ACTIONS)
    reference = MixtureSameFamily(
        Categorical(torch.ones(ROWS, ACTIONS, MEMBERS)),
        Normal(mean.permute(1, 2, 0), variance.sqrt().permute(1, 2, 0)),
    )
    found = mixture(Gaussians(mean, variance))
    torch.testing.assert_close(found[0], reference.mean)
    torch.testing.assert_close(found[1], reference.variance)
    nll = mixture_nll(Gaussians(mean, variance), action)
    torch.testing.assert_close(nll, -reference.log_prob(action), check_dtype=False)


def test_variance_stays_between_its_bounds() -> None:
    parameters = network()
    for bias, bound in ((-1e3, LOG_VARIANCE_BOUNDS[0]), (1e3, LOG_VARIANCE_BOUNDS[1])):
        parameters["bias.2"][..., ACTIONS:] = bias
        variance = forward(parameters, normal(1, ROWS, (HISTORY + 2) * SIZE)).variance
        expected = torch.full_like(variance, bound)
        torch.testing.assert_close(variance.log(), expected, atol=1e-4, rtol=0)


def test_every_time_of_a_window_has_the_same_scale() -> None:
    scaling = Standardizer(normal(1, SIZE), normal(1, SIZE).abs() + 0.5)
    windows = normal(ROWS, 1, SIZE).expand(-1, HISTORY + 2, -1)
    parts = standardized(scaling, windows).unflatten(-1, (HISTORY + 2, SIZE))
    assert (parts == parts[:, :1]).all()
    torch.testing.assert_close(parts[:, 0], (windows[:, 0] - scaling.mean) / scaling.scale)


def test_predictions_of_many_rows_are_those_of_few() -> None:
    """Many rows take another path through the network."""
    scaling = Standardizer(torch.zeros(1, SIZE), torch.ones(1, SIZE))
    parameters = {name: value.float() for name, value in network().items()}
    windows = normal(600, HISTORY + 2, SIZE).float()
    inverse = Inverse(parameters, scaling)
    many, few = inverse.predict(windows), inverse.predict(windows[:20])
    assert many.mean.shape == (MEMBERS, 600, ACTIONS)
    torch.testing.assert_close(many.mean[:, :20], few.mean)
    torch.testing.assert_close(many.variance[:, :20], few.variance)
