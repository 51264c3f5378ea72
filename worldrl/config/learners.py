"""Settings of the learners, one class an algorithm, told apart by ``kind``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

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
    layer_norm_place: Literal["before", "after"] = "before"
    """In the critics: before each activation, or after it."""
    init: Literal["default", "edac"] = "default"
    """Of the networks; edac: biases of 0.1, and last layers close to 0."""

    @model_validator(mode="after")
    def _place_is_used(self) -> Self:
        usual = type(self).model_fields["layer_norm_place"].default
        if not self.layer_norm and self.layer_norm_place != usual:
            raise ValueError(
                f"layer_norm_place is {self.layer_norm_place}, and layer_norm is false: there is "
                "none to place. Set learner.layer_norm=true, or leave it out"
            )
        return self


class SACSettings(CriticSettings):
    """Soft actor-critic; what MOPO, MOBILE and RAVL each do otherwise is a setting."""

    kind: Literal["sac"] = "sac"
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


class BCSettings(LearnerSettings):
    """Behaviour cloning with a deterministic tanh policy and mean squared error."""

    kind: Literal["bc"] = "bc"
    hidden: Hidden = (256, 256)
    learning_rate: PerMember[PositiveFloat] = 3e-4


class TD3Settings(CriticSettings):
    """Twin delayed deterministic policy gradients held close to the data; no learner by itself."""

    actor_learning_rate: PerMember[PositiveFloat] = 3e-4
    target_noise: PerMember[NonNegativeFloat] = 0.2
    """Deviation of what is added to the target policy's actions."""
    target_noise_clip: PerMember[NonNegativeFloat] = 0.5
    """The largest of what is added."""
    exploration: NonNegativeFloat = 0.1
    """Deviation of what is added to the policy's actions in imagination."""


class TD3BCSettings(TD3Settings):
    """TD3+BC (Fujimoto & Gu 2021, arXiv 2106.06860)."""

    kind: Literal["td3bc"] = "td3bc"
    standardize: bool = True
    """Learn from observations less their mean in the data, over their deviation there plus 1e-3."""
    alpha: PerMember[NonNegativeFloat] = 2.5
    """Weight of values, in units of their mean size, beside the squared error of cloning."""


class PRDCSettings(TD3Settings):
    """TD3 regularised by the nearest logged action (Ran et al. 2023, arXiv 2306.06569)."""

    kind: Literal["prdc"] = "prdc"
    standardize: bool = True
    """Learn from observations less their mean in the data, over their deviation there plus 1e-3."""
    alpha: PerMember[NonNegativeFloat] = 2.5
    """Weight of values, in units of their mean size, beside the squared distance to the data."""
    observation_weight: PerMember[PositiveFloat] = 2.0
    """Of observations in the distance, where actions count 1: the paper's beta."""
    candidates: PositiveInt | None = 100_000
    """Logged rows that an update searches at most, another evenly spaced sample each time; a row's
    own logged action is always among them. None: all rows."""


class ReBRACSettings(TD3Settings):
    """ReBRAC (Tarasov et al. 2023, arXiv 2305.09836)."""

    kind: Literal["rebrac"] = "rebrac"
    hidden: Hidden = (256, 256, 256)
    actor_learning_rate: PerMember[PositiveFloat] = 1e-3
    critic_learning_rate: PerMember[PositiveFloat] = 1e-3
    layer_norm: bool = True
    """In the critics."""
    layer_norm_place: Literal["before", "after"] = "after"
    """In the critics: before each activation, or after it."""
    init: Literal["default", "edac"] = "edac"
    """Of the networks; edac: biases of 0.1, and last layers close to 0."""
    actor_bc_weight: PerMember[NonNegativeFloat] = 0.01
    """Of the actor's squared distance from the batch's actions: the paper's beta 1."""
    critic_bc_weight: PerMember[NonNegativeFloat] = 0.01
    """Of the target action's squared distance from the next logged one: the paper's beta 2."""


Learner = Annotated[
    SACSettings | BCSettings | TD3BCSettings | PRDCSettings | ReBRACSettings,
    Field(discriminator="kind"),
]
