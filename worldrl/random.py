"""Named random streams.

Every draw of a run comes from a generator that is a function of (member seed, stream name, block
number) and of nothing else. So member ``i`` of a population with seed ``s`` draws exactly what the
lone run with seed ``s + i`` draws, and a resumed run needs no stored generator: it knows its block
numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def stream_seed(seed: int, stream: str, block: int) -> int:
    """A 63-bit seed for one block of one stream of one member.

    torch's CPU generator reads its low 32 bits, so two of a run's many thousand blocks may, rarely,
    hold the same draws.
    """
    digest = hashlib.blake2b(f"{seed}/{stream}/{block}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(
    seed: int, stream: str, block: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh generator for one block of one stream of one member."""
    return torch.Generator(device).manual_seed(stream_seed(seed, stream, block))


def draw(
    seeds: Sequence[int],
    stream: str,
    block: int,
    sample: Callable[[torch.Generator], Tensor],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Stack one independent sample per member.

    Args:
        seeds: the P member seeds.
        sample: draws one member's tensor of shape ``(...)`` from its generator.

    Returns:
        ``(P, ...)``.
    """
    return torch.stack([sample(generator(seed, stream, block, device)) for seed in seeds])
