"""Settings of how the logged rows of batches are drawn, told apart by ``kind``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from worldrl.config.base import Settings


class UniformSampling(Settings):
    """Every logged transition as often as any other."""

    kind: Literal["uniform"] = "uniform"


class ReturnWeightedSampling(Settings):
    """Transitions of episodes with high returns more often (Hong et al. 2023, arXiv 2306.13085)."""

    kind: Literal["return_weighted"] = "return_weighted"
    temperature: PositiveFloat = 0.1
    """Returns are brought to [0, 1]; the best episode's transitions are drawn exp(1 / temperature)
    times as often as the worst's."""


class AdvantageWeightedSampling(Settings):
    """The same with returns less what a linear regression on initial observations expects."""

    kind: Literal["advantage_weighted"] = "advantage_weighted"
    temperature: PositiveFloat = 0.1


class TopReturnsSampling(Settings):
    """Only the episodes with the highest returns, all their transitions alike."""

    kind: Literal["top_returns"] = "top_returns"
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Of the episodes, rounded down, at least one."""
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the returns that episodes are ordered by; CORL has 0.99."""


Sampling = Annotated[
    UniformSampling | ReturnWeightedSampling | AdvantageWeightedSampling | TopReturnsSampling,
    Field(discriminator="kind"),
]
