"""The nearest of many points, searched by brute force: one matrix product in pieces, exact up to
rounding and as fast as the machine multiplies."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

#: Products held at once: on a CPU they stay in cache.
CPU_PRODUCTS, CUDA_PRODUCTS = 2**19, 2**28


def nearest(here: Tensor, points: Tensor) -> Tensor:
    """Numbers ``(P, B)`` of the points ``(P, n, D)`` nearest to ``here`` ``(P, B, D)``."""
    # |h - p|^2 is least where h p - |p|^2 / 2 is largest.
    lengths = points.square().sum(-1, keepdim=True)
    found: Tensor = largest_product(
        F.pad(here, (0, 1), value=1.0), torch.cat([points, -lengths / 2], -1)
    )
    return found


@torch.library.custom_op("worldrl::largest_product", mutates_args=())
def largest_product(left: Tensor, right: Tensor) -> Tensor:
    """Numbers ``(P, B)`` of the rows of ``right`` ``(P, n, D)`` with the largest inner product with
    each row of ``left`` ``(P, B, D)``.

    An operation of its own: compiled, dozens of pieces would make a large and slow graph.
    """
    limit = CUDA_PRODUCTS if left.is_cuda else CPU_PRODUCTS
    piece = max(limit // left.shape[:2].numel(), 1)
    best = left.new_full(left.shape[:2], -math.inf)
    number = torch.zeros_like(best, dtype=torch.int64)
    with torch.autocast(left.device.type, enabled=False):
        for first in range(0, right.shape[1], piece):
            value, index = (left @ right[:, first : first + piece].mT).max(-1)
            better = value > best
            best = torch.where(better, value, best)
            number = torch.where(better, index + first, number)
    return number


@largest_product.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[:2], dtype=torch.int64)
