"""Settings of the learners, one class an algorithm, told apart by ``kind``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from worldrl.config.base import Settings
from worldrl.config.members import PerMember, per_member

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


class HuberLoss(Settings):
    """Critics regress on their targets, and large errors count in proportion: squares over twice
    the threshold t up to it, ``|error| - t / 2`` beyond (RIQL, arXiv 2310.12955)."""

    kind: Literal["huber"] = "huber"
    threshold: PositiveFloat = 1.0
    """RIQL's is 1 / sigma**2."""


CriticLoss = Annotated[SquaredLoss | HLGaussLoss | HuberLoss, Field(discriminator="kind")]


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
    """In the critics and IQL's value network, and in SAC's actor."""
    init: Literal["default", "edac", "orthogonal"] = "default"
    """Of the networks; edac: biases of 0.1, and last layers close to 0; orthogonal: orthogonal
    weights, small in the last layers, and no biases."""


class EntropySettings(CriticSettings):
    """What every learner with a policy of tuned entropy has."""

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


class SACSettings(EntropySettings):
    """Soft actor-critic; what MOPO, MOBILE, SAC-N, EDAC and RAVL each do otherwise is a setting."""

    kind: Literal["sac"] = "sac"
    diversity: PerMember[NonNegativeFloat] = 0.0
    """Weight of a loss that turns the critics' slopes in the action apart (EDAC's eta)."""

    @model_validator(mode="after")
    def _diversity_is_of_several(self) -> Self:
        if self.num_critics == 1 and self.diversity != 0.0:
            raise ValueError(
                f"diversity is {self.diversity}, and num_critics is 1: one critic has no other to "
                "differ from. Set num_critics=10, or leave diversity out"
            )
        return self


class CQLSettings(EntropySettings):
    """Conservative Q-learning: SAC whose critics value unlogged actions less (Kumar et al. 2020,
    arXiv 2006.04779). In imagination it is COMBO (Yu et al. 2021, arXiv 2102.08363)."""

    kind: Literal["cql"] = "cql"
    entropy_in_target: bool = False
    conservative_weight: PerMember[NonNegativeFloat] = 5.0
    """Of the conservative term in the critics' loss."""
    num_sampled_actions: PositiveInt = 10
    """Uniform ones, of the policy, and of the policy at the next observation: this many each."""
    gap_target: PerMember[float] | None = None
    """Raise or lower the weight until policy's values exceed logged ones by this much (the
    Lagrange variant); None: the weight stays as it is."""
    min_gap: PerMember[float] | None = None
    """Rows whose gap is below it are not pushed further apart; None: no bound."""
    max_target_backup: bool = False
    """Targets take the best of `num_sampled_actions` next actions."""
    conservative_rows: Literal["all", "imagined"] = "all"
    """Rows at whose observations values are lowered; at logged actions they are always raised."""

    @model_validator(mode="after")
    def _gaps_are_of_rows(self) -> Self:
        if self.min_gap is not None and self.conservative_rows == "imagined":
            raise ValueError(
                "min_gap bounds the gap of a row, and with conservative_rows=imagined no row has "
                "one. Leave one out"
            )
        return self


class BCSettings(LearnerSettings):
    """Behaviour cloning with a deterministic tanh policy and mean squared error."""

    kind: Literal["bc"] = "bc"
    hidden: Hidden = (256, 256)
    learning_rate: PerMember[PositiveFloat] = 3e-4


class IQLSettings(CriticSettings):
    """Implicit Q-learning (Kostrikov et al. 2021, arXiv 2110.06169); RIQL is settings of it."""

    kind: Literal["iql"] = "iql"
    expectile: PerMember[Annotated[float, Field(gt=0, lt=1)]] = 0.7
    """Of the critics' values under the logged actions, that the state's value regresses on."""
    inverse_temperature: PerMember[NonNegativeFloat] = 3.0
    """Logged actions are cloned with weight exp(inverse_temperature * advantage); 0 clones all
    alike."""
    max_weight: PerMember[PositiveFloat] = 100.0
    """Of a cloned action."""
    actor_learning_rate: PerMember[PositiveFloat] = 3e-4
    value_learning_rate: PerMember[PositiveFloat] = 3e-4
    actor_schedule: Literal["constant", "cosine"] = "cosine"
    """Of the actor's learning rate; cosine ends at 0."""
    policy: Literal["gaussian", "deterministic"] = "gaussian"
    """gaussian: of state-independent deviation around a mean within (-1, 1), cloned by likelihood.
    deterministic: cloned by squared error, summed over action dimensions."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the actor's hidden units left out while it learns."""
    quantile: Annotated[float, Field(ge=0, le=1)] | None = None
    """Over the target critics, in value and advantage; None: the least of them, as 0 is too."""
    target_low: PerMember[float] | None = None
    """Least target of the critics; None: any."""
    target_high: PerMember[float] | None = None

    @model_validator(mode="after")
    def _targets_have_a_range(self) -> Self:
        if self.target_low is None or self.target_high is None:
            return self
        low, high = self.target_low, self.target_high
        members = max(len(one) if isinstance(one, tuple) else 1 for one in (low, high))
        if any(
            a >= b
            for a, b in zip(per_member(low, members), per_member(high, members), strict=False)
        ):
            raise ValueError(
                f"target_low is {low} and target_high is {high}: no target lies between them. Set "
                "target_high above target_low"
            )
        return self


Learner = Annotated[
    SACSettings | CQLSettings | BCSettings | IQLSettings, Field(discriminator="kind")
]
