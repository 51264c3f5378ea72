"""Policy heads shared by the learners."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from worldrl.learners.networks import output
from worldrl.models.mlp import at_least_float32
from worldrl.types import Parameters

LOG_STD_RANGE = (-5.0, 2.0)
CLONED_BOUND = 0.999  # where tanh still has a slope to leave it by
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class TanhGaussian(NamedTuple):
    """A diagonal Gaussian squashed by tanh."""

    mean: Tensor  # (P, B, A), before tanh
    log_std: Tensor  # (P, B, A)

    def several(self) -> TanhGaussian:
        """To sample ``(P, B, n, A)``: n actions a row."""
        return TanhGaussian(self.mean[:, :, None], self.log_std[:, :, None])

    def of_first(self, rows: int) -> TanhGaussian:
        """Those of the first rows of a batch."""
        return TanhGaussian(self.mean[:, :rows], self.log_std[:, :rows])

    def log_density(self, action: Tensor) -> Tensor:
        """Of given actions: ``(P, B, A) -> (P, B)``. An action at its bound, where no density is,
        counts as :data:`CLONED_BOUND`."""
        action = action.clamp(-CLONED_BOUND, CLONED_BOUND)
        scaled = (torch.atanh(action) - self.mean) * (-self.log_std).exp()
        log_density = -0.5 * scaled.square() - self.log_std - HALF_LOG_TWO_PI
        return (log_density - torch.log(1 - action.square())).sum(-1)

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reparameterised action ``(P, B, A)`` and its log-density ``(P, B)``.

        The density includes the Jacobian of tanh (Haarnoja et al. 2018, arXiv 1812.05905,
        appendix C) with 1e-6 inside the logarithm.
        """
        action = torch.tanh(self.mean + self.log_std.exp() * noise)
        log_density = -0.5 * noise.square() - self.log_std - HALF_LOG_TWO_PI
        jacobian = torch.log(1 - action.square() + 1e-6)
        return action, (log_density - jacobian).sum(-1)


def tanh_gaussian(policy: Parameters, observation: Tensor) -> TanhGaussian:
    """The network's distribution over actions at ``observation`` ``(P, B, S)``."""
    mean, log_std = at_least_float32(output(policy, observation)).chunk(2, -1)
    return TanhGaussian(mean, log_std.clamp(*LOG_STD_RANGE))
