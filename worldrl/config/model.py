"""Settings of world models."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from worldrl.config.base import Settings
from worldrl.config.learners import Hidden


class EnsembleSettings(Settings):
    """Probabilistic dynamics ensemble (Chua et al. 2018, arXiv 1805.12114)."""

    kind: Literal["ensemble"] = "ensemble"
    source: str | None = None
    """A run directory that holds a trained model; None trains one first."""
    hidden: Hidden = (200, 200, 200, 200)
    num_members: PositiveInt = 7
    num_elites: PositiveInt = 5
    layer_norm: bool = False
    normalize_targets: bool = False
    """Learn changes and rewards in units of their deviation in the data: needed where those are
    unlike."""
    learning_rate: PositiveFloat = 1e-3
    weight_decay: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (
        2.5e-5,
        5e-5,
        7.5e-5,
        7.5e-5,
        1e-4,
    )
    """Coupled L2 per layer; a single value serves every layer, and for another depth the
    first, the last and the interpolated middle are used."""
    log_variance_bound_weight: NonNegativeFloat = 0.01
    batch_size: PositiveInt = 256
    max_epochs: PositiveInt | None = None
    """None: only early stopping ends training."""
    patience: PositiveInt = 5
    improvement: float = Field(default=0.01, gt=0, lt=1)
    holdout_ratio: float = Field(default=0.2, gt=0, lt=1)
    max_holdout: PositiveInt = 1000
    test_ratio: float = Field(default=0.02, ge=0, lt=0.5)
    """Share of the episodes that the model does not learn from, to measure it on; none of fewer
    than 20 episodes. The policy's stage uses them as it uses the others."""

    @model_validator(mode="after")
    def _elites_are_members(self) -> Self:
        if self.num_elites > self.num_members:
            raise ValueError(
                f"num_elites is {self.num_elites}, and there are only {self.num_members} members "
                "(num_members)"
            )
        return self
