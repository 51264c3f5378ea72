"""Observations as the networks see them: as they are, or standardised by the data's moments.

The moments are part of the policy, so whoever acts with it standardises alike; they are always the
logged data's, whatever the batches hold.
"""

from __future__ import annotations

from torch import Tensor

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
