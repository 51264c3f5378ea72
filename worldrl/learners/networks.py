"""Networks of a population, in the way a learner's settings name: fresh ones, and what they say.

With ``encoder.kind: cocoa`` two small networks stand in front of each, ``delta.*`` and ``anchor.*``
among its parameters, and learn with it (Song et al. 2024, arXiv 2404.04682).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from worldrl.config.learners import CocoaEncoder, Encoder, Init, NoEncoder
from worldrl.models.mlp import (
    init_head,
    init_orthogonal,
    init_uniform,
    mlp,
    part,
    scalar_mlp,
    stack,
)
from worldrl.random import generator
from worldrl.types import Parameters

#: Bounds of last layers where ``init`` is edac.
ACTOR_HEAD, CRITIC_HEAD = 1e-3, 3e-3
DELTA, ANCHOR = "delta.", "anchor."
PLAIN = NoEncoder()


def init_networks(
    seeds: Sequence[int],
    name: str,
    sizes: Sequence[int],
    device: torch.device,
    init: Init,
    head: float,
    lead: Sequence[int] = (),
    norm: Literal["before", "after"] | None = None,
    encoder: Encoder = PLAIN,
) -> Parameters:
    """``(P, *lead, ...)``, a generator for each member.

    Args:
        name: of the streams, e.g. ``sac.actor``.
        sizes: of layers, as they are without an encoder.
        head: bound of the last layer where ``init`` is edac.
        lead: axes behind P, e.g. the number of critics.
        norm: where layer normalisation stands, before or after each activation; None: nowhere.
        encoder: what stands in front; it has draws of its own.
    """
    members = []
    own = [encoder.num_features, *sizes[1:]] if isinstance(encoder, CocoaEncoder) else sizes
    for seed in seeds:
        draws = generator(seed, name)
        network = init_uniform(own, lead, draws, norm is not None, norm == "after")
        if init == "edac":
            init_head(network, head, generator(seed, f"{name}.head"))
        elif init == "orthogonal":
            init_orthogonal(network, generator(seed, f"{name}.orthogonal"))
        if isinstance(encoder, CocoaEncoder):
            front = [sizes[0], *encoder.hidden, encoder.num_features * encoder.rank]
            for prefix in DELTA, ANCHOR:
                layers = init_uniform(front, lead, generator(seed, f"{name}.{prefix}encoder"))
                network |= {f"{prefix}{key}": value for key, value in layers.items()}
        members.append(network)
    return {key: value.to(device) for key, value in stack(members).items()}


def output(network: Parameters, inputs: Tensor) -> Tensor:
    """``(*lead, B, in) -> (*lead, B, out)``, as :func:`mlp`, through the encoder if it has one."""
    return mlp(network, encoded(network, inputs))


def scalar_output(network: Parameters, inputs: Tensor) -> Tensor:
    """``(*lead, B, in) -> (*lead, B)``, as :func:`scalar_mlp`, likewise."""
    return scalar_mlp(network, encoded(network, inputs))


def encoded(network: Parameters, inputs: Tensor) -> Tensor:
    """What the first layer takes: ``inputs`` themselves, where the network has no encoder.

    Else feature t is the sum over d of ``f(delta)[t, d] g(anchor)[t, d]``; a critic's action
    belongs to both.

    Args:
        inputs: ``(*lead, B, 2 S)`` or, of a critic, ``(*lead, B, 2 S + A)``: difference, anchor and
            action.

    Returns:
        ``(*lead, B, num_features)``.
    """
    if f"{DELTA}weight.0" not in network:
        return inputs
    size = inputs.shape[-1] - network[f"{DELTA}weight.0"].shape[-2]  # S
    delta = torch.cat([inputs[..., :size], inputs[..., 2 * size :]], -1)
    anchor = inputs[..., size:]
    products = mlp(part(network, DELTA), delta) * mlp(part(network, ANCHOR), anchor)
    features = network["weight.0"].shape[-2]
    return products.reshape(*products.shape[:-1], features, -1).sum(-1)
