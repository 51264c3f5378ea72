"""Settings of how imagined steps are chosen among candidates, told apart by ``kind``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from worldrl.config.base import Settings
from worldrl.config.learners import Hidden


class DynamicsRewardSettings(Settings):
    """How a dynamics reward is learned, where the world does not hold one: discriminators of logged
    steps from those of a Gaussian generator. That part of MOREC was never released; the sizes are
    its, the rates and the length ours."""

    hidden: Hidden = (128, 256)
    """Of the discriminator."""
    generator_hidden: Hidden = (200, 200, 200, 200)
    num_updates: PositiveInt = 200_000
    """Of the discriminator and of the generator, in turns."""
    batch_size: PositiveInt = 256
    learning_rate: PositiveFloat = 3e-4
    """Of both."""
    likelihood_weight: NonNegativeFloat = 0.1
    """Of the logged changes under the generator, beside being taken for logged."""
    snapshots: PositiveInt = 40
    """Of the discriminator that are kept, the last ones (MOREC: every 10th of 400)."""
    snapshot_every: PositiveInt = 2_500
    """Updates between snapshots."""

    @model_validator(mode="after")
    def _snapshots_are_taken(self) -> Self:
        taken = self.num_updates // self.snapshot_every
        if taken < self.snapshots:
            raise ValueError(
                f"num_updates is {self.num_updates:,} and snapshot_every {self.snapshot_every:,}, "
                f"which makes {taken} snapshots, and {self.snapshots} are to be kept (snapshots). "
                "Lower snapshot_every or snapshots, or raise num_updates"
            )
        return self


class NoFilter(Settings):
    """Take the one sample that a step draws."""

    kind: Literal["none"] = "none"


class DynamicsRewardFilter(Settings):
    """Take one of several samples by its dynamics reward, and stop where even that is low (MOREC:
    Luo et al. 2023, arXiv 2310.05422)."""

    kind: Literal["dynamics_reward"] = "dynamics_reward"
    samples_per_elite: PositiveInt = 2
    """Candidates that every elite makes for a step."""
    selector: Literal["softmax", "argmax"] = "softmax"
    """softmax draws a candidate by exp(reward / temperature); argmax takes the best."""
    temperature: PositiveFloat = 0.1
    limit: NonNegativeFloat = 0.6
    """Of the chosen candidate's dynamics reward, which lies between 0.31 and 1.31: a rollout stops
    below it. 0 never stops."""
    on_filter: Literal["terminal", "truncate", "drop"] = "terminal"
    """What becomes of the step at which it stops. terminal: it is kept and called terminal, so that
    nothing is expected after it (MOREC's code). truncate: kept, and not terminal. drop: left out.
    terminal is pessimistic only where returns are above 0."""
    networks: PositiveInt | None = None
    """Snapshots that are asked, evenly spread over those that the reward holds; None: all. What a
    step costs grows with them."""
    reward: DynamicsRewardSettings = DynamicsRewardSettings()

    @model_validator(mode="after")
    def _is_used(self) -> Self:
        default = type(self).model_fields["temperature"].default
        if self.selector == "argmax" and self.temperature != default:
            raise ValueError(
                "temperature would be unused: selector is argmax. Leave it out, or set "
                "imagination.filter.selector=softmax"
            )
        if self.networks is not None and self.networks > self.reward.snapshots:
            raise ValueError(
                f"networks is {self.networks}, and the dynamics reward keeps "
                f"{self.reward.snapshots} snapshots. Lower it, or raise "
                "imagination.filter.reward.snapshots"
            )
        return self


Filter = Annotated[NoFilter | DynamicsRewardFilter, Field(discriminator="kind")]
