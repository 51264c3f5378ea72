"""Settings of the learners, one class an algorithm, told apart by ``kind``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from worldrl.config.base import Settings
from worldrl.config.members import PerMember

Discount = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Hidden = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class LearnerSettings(Settings):
    """What every learner has."""

    batch_size: PositiveInt = 256
    """Rows of an update."""
    standardize: bool = False
    """Learn from observations less their mean in the data, over their deviation there plus 1e-3."""


class SquaredLoss(Settings):
    """Critics regress on their targets."""

    kind: Literal["squared"] = "squared"


class HLGaussLoss(Settings):
    """Critics classify their targets (Farebrother et al. 2024, arXiv 2403.03950)."""

    kind: Literal["hl_gauss"] = "hl_gauss"
    num_bins: Annotated[int, Field(ge=2)] = 101
    low: PerMember[float] | None = None
    """Least value that can be told; None: of the data's discounted returns, a tenth wider."""
    high: PerMember[float] | None = None
    smoothing: PositiveFloat = 0.75
    """Deviation of a target's Gaussian, in widths of a bin."""


CriticLoss = Annotated[SquaredLoss | HLGaussLoss, Field(discriminator="kind")]


class CriticSettings(LearnerSettings):
    """What every learner of action values has."""

    discount: PerMember[Discount] = 0.99
    hidden: Hidden = (256, 256)
    num_critics: PositiveInt = 2
    """Targets take the least of them."""
    critic_learning_rate: PerMember[PositiveFloat] = 3e-4
    target_rate: PerMember[Share] = 0.005
    """Share of the critic that its target network takes over at every update."""
    critic_loss: CriticLoss = SquaredLoss()
    layer_norm: bool = False
    """In the critics, and in SAC's actor."""
    init: Literal["default", "edac"] = "default"
    """Of the networks; edac: biases of 0.1, and last layers close to 0."""


class SoftSettings(CriticSettings):
    """What soft actor-critics have: :class:`SACSettings` and :class:`MOBILESettings`."""

    actor_learning_rate: PerMember[PositiveFloat] = 1e-4
    temperature_learning_rate: PerMember[PositiveFloat] = 1e-4
    temperature: Literal["auto", "fixed"] = "auto"
    """auto: learned, so that the policy's entropy nears `target_entropy`."""
    initial_temperature: PerMember[PositiveFloat] = 1.0
    max_temperature: PerMember[PositiveFloat] | None = 1.0
    """Of a learned temperature."""
    target_entropy: PerMember[float] | None = None
    """None: `entropy_per_action` times the number of action dimensions."""
    entropy_per_action: PerMember[float] = -1.0
    entropy_in_target: bool = True
    """Count the entropy to come in the critics' targets."""
    actor_schedule: Literal["constant", "cosine"] = "cosine"
    """Of the actor's learning rate; cosine ends at 0."""


class SACSettings(SoftSettings):
    """Soft actor-critic; what MOPO and RAVL each do otherwise is a setting."""

    kind: Literal["sac"] = "sac"


class MOBILESettings(SoftSettings):
    """SAC whose targets are lower where the world model's elites disagree about the values ahead
    (MOBILE: Sun et al. 2023, PMLR 202)."""

    kind: Literal["mobile"] = "mobile"
    entropy_in_target: bool = False
    """Count the entropy to come in the critics' targets."""
    inconsistency_weight: PerMember[NonNegativeFloat] = 0.5
    """Of what is taken off the targets of imagined rows: the deviation, over the elites, of the
    value that each expects ahead."""
    num_samples: PositiveInt = 10
    """Next observations that each elite draws to tell it."""
    target_min: PerMember[float] | None = None
    """Least target; None: none. 0, as published for locomotion, says that no return is below 0, and
    ruins tasks where some are."""


class BCSettings(LearnerSettings):
    """Behaviour cloning with a deterministic tanh policy and mean squared error."""

    kind: Literal["bc"] = "bc"
    hidden: Hidden = (256, 256)
    learning_rate: PerMember[PositiveFloat] = 3e-4


Learner = Annotated[SACSettings | MOBILESettings | BCSettings, Field(discriminator="kind")]
