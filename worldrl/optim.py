"""Adam for populations: every member is stepped as if it trained alone.

torch's fused optimisers take one learning rate for a whole tensor; here the leading axis holds
members with learning rates of their own. Written in place on plain tensors, so that one compiled
graph holds the losses, the gradients and the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from worldrl.types import Parameters


class AdamState(NamedTuple):
    """First and second moments, shaped as the parameters, and each member's number of steps."""

    first: Parameters
    second: Parameters
    steps: Tensor  # (P,) float64: float32 would round 1 - 0.999 by 3e-5


def adam_init(parameters: Parameters) -> AdamState:
    """Zero moments for ``parameters``."""
    one = next(iter(parameters.values()))
    return AdamState(
        {name: torch.zeros_like(value) for name, value in parameters.items()},
        {name: torch.zeros_like(value) for name, value in parameters.items()},
        torch.zeros(one.shape[0], dtype=torch.float64, device=one.device),
    )


def adam_step(
    parameters: Parameters,
    gradients: Mapping[str, Tensor],
    state: AdamState,
    learning_rate: Tensor,
    weight_decay: Mapping[str, float] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> None:
    """One Adam step in place (Kingma & Ba 2015, with the bias correction of its section 2).

    Args:
        parameters: each ``(P, ...)``; changed.
        gradients: of the same shapes.
        state: changed.
        learning_rate: ``(P,)``.
        weight_decay: coupled L2 by parameter name, added to the gradient as ``weight_decay * w``
            (the gradient of half the squared norm; not AdamW). Absent names have none.
    """
    beta1, beta2 = betas
    state.steps.add_(1)
    # Powers as exponentials: torch.compile keeps one that is used again, and would take a power
    # anew for every few weights, which costs more than the step itself.
    decayed1, decayed2 = (torch.exp(math.log(beta) * state.steps) for beta in betas)
    root = (1 - decayed2).sqrt()
    rate = learning_rate * (root / (1 - decayed1)).to(learning_rate.dtype)  # (P,)
    floor = (eps * root).to(learning_rate.dtype)
    decay = weight_decay or {}
    for name, value in parameters.items():
        gradient, first, second = gradients[name], state.first[name], state.second[name]
        if name in decay:
            gradient = gradient + decay[name] * value
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        shape = (-1, *(1,) * (value.dim() - 1))
        value.sub_(rate.view(shape) * first / (second.sqrt() + floor.view(shape)))
