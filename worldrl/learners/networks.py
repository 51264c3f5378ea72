"""Fresh networks of a population, in the way a learner's settings name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from worldrl.config.learners import Init
from worldrl.models.mlp import init_head, init_orthogonal, init_uniform, stack
from worldrl.random import generator
from worldrl.types import Parameters

#: Bounds of last layers where ``init`` is edac.
ACTOR_HEAD, CRITIC_HEAD = 1e-3, 3e-3


def init_networks(
    seeds: Sequence[int],
    name: str,
    sizes: Sequence[int],
    device: torch.device,
    init: Init,
    head: float,
    lead: Sequence[int] = (),
    norm: Literal["before", "after"] | None = None,
) -> Parameters:
    """``(P, *lead, ...)``, a generator for each member.

    Args:
        name: of the streams, e.g. ``sac.actor``.
        head: bound of the last layer where ``init`` is edac.
        lead: axes behind P, e.g. the number of critics.
        norm: where layer normalisation stands, before or after each activation; None: nowhere.
    """
    members = []
    for seed in seeds:
        draws = generator(seed, name)
        network = init_uniform(sizes, lead, draws, norm is not None, norm == "after")
        if init == "edac":
            init_head(network, head, generator(seed, f"{name}.head"))
        elif init == "orthogonal":
            init_orthogonal(network, generator(seed, f"{name}.orthogonal"))
        members.append(network)
    return {key: value.to(device) for key, value in stack(members).items()}
