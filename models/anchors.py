"""Anchors: where a short way back to the data leads (COCOA: Song et al. 2024, arXiv 2404.04682).

A seeker tells the action that leads towards the data, the elites of a world model where it leads.
Both are frozen, and stand in one flat dictionary of tensors, so that a policy can hold them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worldrl.models.ensemble import INPUT_CLIP, Ensemble, Standardizer, forward, standardize
from worldrl.models.mlp import at_least_float32, init_uniform, mlp, part, stack
from worldrl.types import Parameters

SEEKER, ELITES = "seeker.", "elites."


def init_seeker(
    generators: Sequence[torch.Generator],
    inputs: Standardizer,
    action_size: int,
    hidden: Sequence[int],
) -> Parameters:
    """A fresh seeker with layer normalisation, one generator per population seed.

    Args:
        inputs: of observations, D = S; part of the seeker, and no part of what learns.
    """
    sizes = [inputs.mean.shape[-1], *hidden, action_size]
    networks = stack([init_uniform(sizes, (), one, layer_norm=True) for one in generators])
    return networks | {"input_mean": inputs.mean, "input_scale": inputs.scale}


def seek(seeker: Parameters, observation: Tensor) -> Tensor:
    """The action towards the data: ``(P, B, S) -> (P, B, A)``, within (-1, 1)."""
    inputs = Standardizer(seeker["input_mean"], seeker["input_scale"])
    scaled = inputs.standardized(observation).clamp(-INPUT_CLIP, INPUT_CLIP)
    return torch.tanh(at_least_float32(mlp(seeker, scaled)))


def anchor_networks(seeker: Parameters, world: Ensemble) -> Parameters:
    """What :func:`anchors` needs, each ``(P, ...)``: the seeker and the world's elites."""
    elites = world.of_elites()
    whole = elites.parameters | {
        "input_mean": elites.inputs.mean,
        "input_scale": elites.inputs.scale,
        "target_mean": elites.targets.mean,
        "target_scale": elites.targets.scale,
    }
    named = {f"{SEEKER}{name}": value for name, value in seeker.items()}
    return named | {f"{ELITES}{name}": value for name, value in whole.items()}


def is_anchor_network(name: str) -> bool:
    """Is it a tensor of :func:`anchor_networks`, wherever that stands?"""
    return name.rpartition("/")[2].startswith((SEEKER, ELITES))


def anchors(networks: Parameters, observation: Tensor, horizon: int) -> Tensor:
    """``(P, B, S) -> (P, B, S)``: after ``horizon`` steps of the seeker, each the mean of what the
    elites expect."""
    seeker, elites = part(networks, SEEKER), part(networks, ELITES)
    inputs = Standardizer(elites["input_mean"], elites["input_scale"])
    size = observation.shape[-1]
    shift, scale = (elites[name][:, None, :size] for name in ("target_mean", "target_scale"))
    for _ in range(horizon):
        pairs = standardize(inputs, observation, seek(seeker, observation))
        change, _ = forward(elites, pairs[:, None])  # (P, E, B, S + 1)
        observation = observation + change[..., :size].mean(1) * scale + shift
    return observation
