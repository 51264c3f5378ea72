"""Settings of ``worldrl data label``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from worldrl.config.base import Settings
from worldrl.config.learners import Hidden


class LabelSettings(Settings):
    """An ensemble of inverse dynamics models (Zheng et al. 2023, arXiv 2210.06518)."""

    history: NonNegativeInt = 1
    """Observations before the current one that a model sees; 0: the current and the next alone."""
    num_members: PositiveInt = 5
    hidden: Hidden = (1024, 1024)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of each hidden layer that is left out of an update."""
    learning_rate: PositiveFloat = 1e-4
    batch_size: PositiveInt = 1024
    num_updates: PositiveInt = 20_000
    """At most."""
    holdout_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the labelled trajectories that early stopping and the reported errors rest on."""
    check_every: PositiveInt = 100
    """Updates between looks at the held-out trajectories."""
    patience: PositiveInt = 20
    """Looks without a better likelihood of any member after which training ends."""
