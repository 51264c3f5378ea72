"""Observations as the networks see them: as they are, standardised by the data's moments, or as an
anchor and the difference from it.

What that takes is part of the policy, so whoever acts with it sees alike; moments are always the
logged data's, whatever the batches hold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldrl.config.learners import CocoaEncoder, LearnerSettings
from worldrl.models.anchors import anchors
from worldrl.types import Log, Parameters

MEAN, SCALE = "observation_mean", "observation_scale"


def moments(log: Log, members: int, standardize: bool) -> Parameters:
    """Mean and deviation plus 1e-3 of the logged observations, ``(P, 1, S)`` each; or nothing."""
    if not standardize:
        return {}
    observation = log.transitions.observation.double()
    found = {MEAN: observation.mean(0), SCALE: observation.std(0, correction=0) + 1e-3}
    dtype = log.transitions.observation.dtype
    return {name: value.to(dtype).expand(members, 1, -1).clone() for name, value in found.items()}


def standardized(inputs: Parameters, observation: Tensor) -> Tensor:
    """``(P, B, S) -> (P, B, S)`` by the :func:`moments` among ``inputs``, if they are there."""
    if MEAN not in inputs:
        return observation
    return (observation - inputs[MEAN]) / inputs[SCALE]


def seen(settings: LearnerSettings, inputs: Parameters, observation: Tensor) -> Tensor:
    """``(P, B, S)`` to what networks take: ``(P, B, S)`` or, encoded, ``(P, B, 2 S)``, the
    difference from the anchor and the anchor (Song et al. 2024, arXiv 2404.04682).

    Args:
        inputs: the :func:`moments`, if any, and for an encoder the networks that tell anchors.
    """
    own = standardized(inputs, observation)
    if not isinstance(settings.encoder, CocoaEncoder):
        return own
    anchor = anchors(inputs, observation, settings.encoder.anchor_horizon)
    anchor = standardized(inputs, anchor)
    return torch.cat([own - anchor, anchor], -1)
