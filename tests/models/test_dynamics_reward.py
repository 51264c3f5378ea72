"""Losses of discriminator and generator and the reward itself, against short references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.func import grad
from torch.nn import functional as F

from worldrl.models.dynamics_reward import (
    LOG_VARIANCE_BOUNDS,
    MIN_HALF_WIDTH,
    DynamicsReward,
    discriminator_loss,
    dynamics_reward,
    generated,
    generator_loss,
    initialise,
    steps,
)
from worldrl.models.ensemble import Standardizer
from worldrl.types import Parameters, Transitions

P, B, S, A, K, M = 3, 7, 3, 2, 4, 5
D = 2 * S + A


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def networks(*sizes: int, seed: int = 0) -> Parameters:
    generators = [torch.Generator().manual_seed(seed + member) for member in range(P)]
    return {name: 2 * value.double() for name, value in initialise(generators, sizes).items()}


def reference_mlp(
    parameters: Parameters, member: int, inputs: Tensor, activation: object
) -> Tensor:
    """One hidden layer."""
    hidden = inputs.clamp(-10, 10) @ parameters["weight.0"][member] + parameters["bias.0"][member]
    return activation(hidden) @ parameters["weight.1"][member] + parameters["bias.1"][member]


def leaves(parameters: Parameters) -> Parameters:
    return {name: value.clone().requires_grad_() for name, value in parameters.items()}


def assert_gradients(found: Parameters, wanted: Parameters) -> None:
    for name, value in found.items():
        assert wanted[name].grad is not None
        torch.testing.assert_close(value, wanted[name].grad)
        assert value.abs().sum() > 0


def test_discriminator_loss_is_binary_cross_entropy():
    discriminator = networks(D, 6, 1)
    logged, made = 8 * normal(P, B, D, seed=1), normal(P, B, D, seed=2)  # some beyond the clip
    total, each = discriminator_loss(discriminator, logged, made)
    own = leaves(discriminator)
    wanted = []
    for member in range(P):
        rows = torch.cat([logged[member], made[member]])
        chance = torch.sigmoid(reference_mlp(own, member, rows, torch.relu)).squeeze(-1)
        label = torch.cat([torch.ones(B), torch.zeros(B)]).double()
        wanted.append(F.binary_cross_entropy(chance, label))
    torch.testing.assert_close(each, torch.stack(wanted).detach())
    torch.testing.assert_close(total, sum(wanted).detach())  # type: ignore[union-attr]
    sum(wanted).backward()  # type: ignore[union-attr]
    assert_gradients(grad(lambda p: discriminator_loss(p, logged, made)[0])(discriminator), own)


def reference_gaussian(generator: Parameters, member: int, pair: Tensor) -> Normal:
    mean, raw = reference_mlp(generator, member, pair, F.silu).chunk(2, -1)
    low, high = LOG_VARIANCE_BOUNDS
    raised = high - F.softplus(high - raw)
    return Normal(mean, (low + F.softplus(raised - low)).div(2).exp())


def test_generator_loss_is_the_doubt_and_a_share_of_the_likelihood():
    generator, discriminator = networks(S + A, 6, 2 * S), networks(D, 6, 1, seed=9)
    logged, noise = normal(P, B, D, seed=1), normal(P, B, S, seed=2)
    total, nll = generator_loss(generator, discriminator, logged, noise, 0.1)
    own = leaves(generator)
    losses, wanted = [], []
    for member in range(P):
        pair, change = logged[member, :, :-S], logged[member, :, -S:]
        gaussian = reference_gaussian(own, member, pair)
        step = torch.cat([pair, gaussian.mean + gaussian.stddev * noise[member]], -1)
        chance = torch.sigmoid(reference_mlp(discriminator, member, step, torch.relu))
        surprise = -gaussian.log_prob(change).mean() - 0.5 * math.log(2 * math.pi)
        losses.append(-chance.log().mean() + 0.1 * surprise)
        wanted.append(surprise.detach())
        torch.testing.assert_close(
            generated(generator, logged, noise)[member], step.detach(), rtol=1e-4, atol=1e-6
        )
    # exp(low) is added to the variance here, and softly clamped in the reference.
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(nll, torch.stack(wanted), **close)
    torch.testing.assert_close(total, sum(losses).detach(), **close)  # type: ignore[union-attr]
    sum(losses).backward()  # type: ignore[union-attr]
    found = grad(lambda p: generator_loss(p, discriminator, logged, noise, 0.1)[0])(generator)
    for name, value in found.items():
        assert own[name].grad is not None
        torch.testing.assert_close(value, own[name].grad, **close)


def reward_of() -> DynamicsReward:
    """Of member 0 the second snapshot tells nothing apart."""
    snapshots = [networks(D, 6, 1, seed=10 * k) for k in range(K)]
    parameters = {n: torch.stack([one[n] for one in snapshots], 1) for n in snapshots[0]}
    logged, made = 0.3 + normal(P, K, seed=3).abs(), -0.2 - normal(P, K, seed=4).abs()
    logged[0, 1], made[0, 1] = 0.1, 0.2
    inputs = Standardizer(normal(P, D, seed=5), 0.5 + normal(P, D, seed=6).abs())
    return DynamicsReward(parameters, inputs, logged, made)


def test_reward_is_what_the_snapshots_say_one_by_one():
    reward = reward_of()
    observation, action = normal(P, B, S, seed=7), normal(P, B, A, seed=8)
    following = normal(P, B, M, S, seed=9)
    found = dynamics_reward(reward, observation, action, following)
    assert found.shape == (P, B, M)
    cut = 0
    for member, row, number in np.ndindex(P, B, M):
        change = following[member, row, number] - observation[member, row]
        step = torch.cat([observation[member, row], action[member, row], change])
        step = (step - reward.inputs.mean[member]) / reward.inputs.scale[member]
        chances = []
        for k in range(K):
            own = {name: value[:, k] for name, value in reward.parameters.items()}
            logit = float(reference_mlp(own, member, step, torch.relu))
            high, low = float(reward.logged[member, k]), float(reward.generated[member, k])
            if high - low < 2 * MIN_HALF_WIDTH:
                middle = (high + low) / 2
                high, low = middle + MIN_HALF_WIDTH, middle - MIN_HALF_WIDTH
            cut += logit > high or logit < low
            share = 2 * (min(max(logit, low), high) - low) / (high - low) - 1
            chances.append(1 / (1 + math.exp(-share)))
        wanted = -math.log(1 - min(max(np.mean(chances), 0), 1) + 1e-9)
        assert found[member, row, number].item() == pytest.approx(wanted, rel=1e-6)
    assert 0 < cut < P * B * M * K
    assert found.min() > 0.3132
    assert found.max() < 1.3133


def test_thinned_snapshots_are_evenly_spread():
    reward = reward_of()
    assert reward.thinned(K).logged.equal(reward.logged)
    half = reward.thinned(2)
    assert half.num_snapshots == 2
    assert half.logged.equal(reward.logged[:, [0, 2]])
    assert half.generated.equal(reward.generated[:, [0, 2]])
    assert half.parameters["weight.1"].equal(reward.parameters["weight.1"][:, [0, 2]])


def test_steps_hold_the_change_in_deviations():
    observation, action = normal(P, B, S), normal(P, B, A, seed=1)
    following = normal(P, B, S, seed=2)
    batch = Transitions(observation, action, action[..., 0], following, action[..., 0])
    whole = steps(batch)
    assert whole.equal(torch.cat([observation, action, following - observation], -1))
    inputs = reward_of().inputs
    wanted = (whole - inputs.mean[:, None]) / inputs.scale[:, None]
    torch.testing.assert_close(inputs.standardized(whole), wanted)
