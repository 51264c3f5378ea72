"""Keeping, of every member, the parameters with the smallest error on held-out rows."""

from __future__ import annotations

import torch
from torch import Tensor

from worldrl.types import Parameters


def keep_better(
    best: Parameters,
    best_error: Tensor,
    stale: Tensor,
    parameters: Parameters,
    error: Tensor,
    improvement: float = 0.0,
    going_on: Tensor | None = None,
) -> None:
    """Take over into ``best`` what is better, in place; an error that is not finite never is.

    Args:
        best, parameters: ``(P, ...)``, or ``(P, N, ...)`` of an ensemble; what there belongs to no
            single member ``(P, D)`` is taken over with any.
        best_error, error: ``(P,)`` or ``(P, N)``.
        stale: ``(P,)`` int64, how often in a row nothing was better.
        improvement: share by which an error must fall to count as better.
        going_on: ``(P,)`` bool, who may still become better; None: all.
    """
    better = error < best_error * (1 - improvement)
    if going_on is not None:
        better &= going_on.view(-1, *(1,) * (better.dim() - 1))
    best_error.copy_(torch.where(better, error, best_error))
    for name, kept in best.items():
        changed = better if kept.dim() > better.dim() else better.any(-1, keepdim=True)
        mask = changed.view(*changed.shape, *(1,) * (kept.dim() - changed.dim()))
        kept.copy_(torch.where(mask, parameters[name], kept))
    stale.copy_(torch.where(better.view(len(better), -1).any(1), 0, stale + 1))
