"""A dynamics reward: how plausible a step is, to discriminators of logged and generated steps.

MOREC (Luo et al. 2023, arXiv 2310.05422) takes the dynamics for a policy over next observations and
learns the reward that it earns: a discriminator tells logged steps from those of a generator, a
Gaussian that learns to be taken for the log. Many snapshots of the discriminator together are the
reward. Its authors released only how it is used; how it is learned here follows the paper's idea.

Networks see the observation, the action and the change of the observation, each standardised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from worldrl.models.ensemble import INPUT_CLIP, Standardizer
from worldrl.models.mlp import at_least_float32, init_uniform, mlp, scalar_mlp, stack
from worldrl.types import Parameters, Transitions

#: Of the generator's variance, in squared deviations of the logged changes.
LOG_VARIANCE_BOUNDS = (-10.0, 0.5)
#: Half of the least distance of logits that counts: where logged and generated steps are judged
#: alike, what lies between them is no plausibility.
MIN_HALF_WIDTH = 0.05


class DynamicsReward(NamedTuple):
    """K snapshots of a discriminator, and what they said when they were taken."""

    parameters: Parameters  # weight.i (P, K, in, out), bias.i (P, K, 1, out)
    inputs: Standardizer  # of observation, action and change, D = 2 S + A
    logged: Tensor  # (P, K) mean logit of logged steps
    generated: Tensor  # (P, K) mean logit of generated steps

    @property
    def num_snapshots(self) -> int:
        """K."""
        return self.logged.shape[1]

    def thinned(self, count: int) -> DynamicsReward:
        """``count`` snapshots, evenly spread over those there are."""
        kept = torch.arange(count, device=self.logged.device) * self.num_snapshots // count
        return self._replace(
            parameters={name: value[:, kept] for name, value in self.parameters.items()},
            logged=self.logged[:, kept],
            generated=self.generated[:, kept],
        )


def initialise(generators: Sequence[torch.Generator], sizes: Sequence[int]) -> Parameters:
    """A fresh network of the given widths, one random generator per population seed."""
    return stack([init_uniform(sizes, (), generator) for generator in generators])


def steps(batch: Transitions) -> Tensor:
    """What the networks see, ``(..., 2 S + A)``, before it is standardised."""
    change = batch.next_observation - batch.observation
    return torch.cat([batch.observation, batch.action, change], -1)


def logits(discriminator: Parameters, step: Tensor) -> Tensor:
    """Log-odds that a standardised step was logged: ``(*lead, B, D) -> (*lead, B)``."""
    seen = step.clamp(-INPUT_CLIP, INPUT_CLIP)
    return at_least_float32(scalar_mlp(discriminator, seen, F.relu))


def discriminator_loss(
    discriminator: Parameters, logged: Tensor, generated: Tensor
) -> tuple[Tensor, Tensor]:
    """Binary cross entropy, half of the rows logged.

    Args:
        logged, generated: ``(P, B, D)`` standardised steps.

    Returns:
        The scalar summed over P, and each member's own ``(P,)``.
    """
    # -log D and -log(1 - D)
    real = F.softplus(-logits(discriminator, logged)).mean(-1)
    fake = F.softplus(logits(discriminator, generated)).mean(-1)
    loss = 0.5 * (real + fake)
    return loss.sum(), loss.detach()


def generator_loss(
    generator: Parameters,
    discriminator: Parameters,
    logged: Tensor,
    noise: Tensor,
    likelihood_weight: float,
) -> tuple[Tensor, Tensor]:
    """To be taken for the log, and to be likely: ``-log D + weight * NLL``.

    Args:
        logged: ``(P, B, D)`` standardised steps.
        noise: ``(P, B, S)``.

    Returns:
        The scalar summed over P, and each member's own NLL ``(P,)``: of one dimension, without its
        constant.
    """
    size = noise.shape[-1]
    pair, change = logged[..., :-size], logged[..., -size:]
    mean, variance = gaussian(generator, pair)
    step = torch.cat([pair, mean + variance.sqrt() * noise], -1)
    doubt = F.softplus(-logits(discriminator, step)).mean(-1)
    nll = 0.5 * ((change - mean).square() / variance + variance.log()).mean((-1, -2))
    return (doubt + likelihood_weight * nll).sum(), nll.detach()


def generated(generator: Parameters, logged: Tensor, noise: Tensor) -> Tensor:
    """Standardised steps ``(P, B, D)`` with the generator's change in place of the logged one."""
    pair = logged[..., : -noise.shape[-1]]
    mean, variance = gaussian(generator, pair)
    return torch.cat([pair, mean + variance.sqrt() * noise], -1)


def gaussian(generator: Parameters, pair: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance ``(P, B, S)`` of the standardised change after a standardised pair."""
    output = mlp(generator, pair.clamp(-INPUT_CLIP, INPUT_CLIP), F.silu)
    mean, log_variance = at_least_float32(output).chunk(2, -1)
    low, high = LOG_VARIANCE_BOUNDS
    return mean, math.exp(low) + math.exp(high) * torch.sigmoid(log_variance - high)


def dynamics_reward(
    reward: DynamicsReward, observation: Tensor, action: Tensor, following: Tensor
) -> Tensor:
    """``r_D = -log(1 - mean_k D_k + 1e-9)`` of candidates for a next observation (MOREC, code).

    A snapshot's logit is cut to what it said of generated and of logged steps on average, and
    counted from -1 to 1 between the two, so that no snapshot outvotes the others: r_D lies between
    0.31 and 1.31.

    Args:
        observation: ``(P, R, S)``.
        action: ``(P, R, A)``.
        following: ``(P, R, M, S)``.

    Returns:
        ``(P, R, M)``.
    """
    count = following.shape[2]
    pair = torch.cat([observation, action], -1)[:, :, None].expand(-1, -1, count, -1)
    change = following - observation[:, :, None]
    step = reward.inputs.standardized(torch.cat([pair, change], -1).flatten(1, 2))
    said = logits(reward.parameters, step[:, None])  # (P, K, R * M)
    middle = (reward.logged + reward.generated)[..., None] / 2
    half = ((reward.logged - reward.generated)[..., None] / 2).clamp(min=MIN_HALF_WIDTH)
    share = ((said - middle) / half).clamp(-1, 1).sigmoid().mean(1)
    return -torch.log(1 - share + 1e-9).view(following.shape[:-1])
