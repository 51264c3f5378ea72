"""Settings of the learners, one class an algorithm, told apart by ``kind``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from worldrl.config.base import Settings
from worldrl.config.members import PerMember, per_member

Discount = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Init = Literal["default", "edac", "orthogonal"]
Hidden = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class NoEncoder(Settings):
    """Networks take observations as they are."""

    kind: Literal["none"] = "none"


class SeekerSettings(Settings):
    """How the policy that seeks anchors is learned: from rollouts backward in time, which leave the
    data in directions that they keep."""

    horizon: PositiveInt = 5
    """Steps back from every logged next observation."""
    direction_share: NonNegativeFloat = 0.8
    """Of a logged action, drawn once a rollout, in each of its actions."""
    action_noise: NonNegativeFloat = 0.1
    """Deviation of what is added to that."""
    hidden: Hidden = (100, 100)
    learning_rate: PositiveFloat = 1e-3
    batch_size: PositiveInt = 256
    max_epochs: PositiveInt = 50
    patience: PositiveInt = 5
    """Epochs without a smaller error on held-out rollouts, after which learning ends."""
    improvement: float = Field(default=0.01, gt=0, lt=1)
    """Share by which the error must fall to count as smaller."""
    holdout_ratio: float = Field(default=0.1, gt=0, lt=1)


class CocoaEncoder(Settings):
    """Networks take an anchor, where the world model says that a short way back to the data leads,
    and the difference from it, as products of features of either (COCOA: Song et al. 2024,
    arXiv 2404.04682): an unseen observation is an unseen combination of seen parts."""

    kind: Literal["cocoa"] = "cocoa"
    anchor_horizon: PositiveInt = 1
    """Steps of the seeker, in the world model, to the anchor."""
    hidden: Hidden = (64, 64)
    """Of the networks that make the features, two in front of every network."""
    num_features: PositiveInt = 64
    rank: PositiveInt = 4
    """Products that are summed to a feature."""
    seeker: SeekerSettings = SeekerSettings()


Encoder = Annotated[NoEncoder | CocoaEncoder, Field(discriminator="kind")]


class LearnerSettings(Settings):
    """What every learner has."""

    batch_size: PositiveInt = 256
    """Rows of an update."""
    standardize: bool = False
    """Learn from observations less their mean in the data, over their deviation there plus 1e-3."""
    encoder: Encoder = NoEncoder()
    """What stands in front of every network."""
    actor_schedule: Literal["constant", "cosine"] = "constant"
    """Of the policy's learning rate; cosine ends at 0."""


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
    layer_norm_place: Literal["before", "after"] = "before"
    """Before each activation, or after it."""
    init: Init = "default"
    """Of the networks; edac: biases of 0.1, and last layers close to 0; orthogonal: orthogonal
    weights, small in the last layers, and no biases."""

    @property
    def norm(self) -> Literal["before", "after"] | None:
        """Where layer normalisation stands; None where there is none."""
        return self.layer_norm_place if self.layer_norm else None

    @model_validator(mode="after")
    def _place_is_used(self) -> Self:
        usual = type(self).model_fields["layer_norm_place"].default
        if not self.layer_norm and self.layer_norm_place != usual:
            raise ValueError(
                f"layer_norm_place is {self.layer_norm_place}, and layer_norm is false: there is "
                "none to place. Set learner.layer_norm=true, or leave it out"
            )
        return self


class SoftSettings(CriticSettings):
    """What soft actor-critics have: SAC, CQL, MOBILE and H2O."""

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
    cloning_updates: NonNegativeInt = 0
    """Updates in which the actor first clones logged actions by likelihood, beside its entropy, in
    place of raising values (CQL's code). Where logged actions are those of deterministic policies,
    values near them are peaks that an actor far from them does not find."""
    actor_schedule: Literal["constant", "cosine"] = "cosine"


class SACSettings(SoftSettings):
    """Soft actor-critic; what MOPO, MOBILE, SAC-N, EDAC and RAVL each do otherwise is a setting."""

    kind: Literal["sac"] = "sac"
    diversity: PerMember[NonNegativeFloat] = 0.0
    """Weight of a loss that turns the critics' slopes in the action apart (EDAC's eta)."""
    target_critics: PositiveInt | None = None
    """Targets take the least of so many critics, drawn anew at every update (REDQ); None: of
    all."""
    backup_actions: PositiveInt = 1
    """Next actions drawn for a target, which takes the best of them."""
    actor_values: Literal["least", "mean"] = "least"
    """What the actor raises, over the critics."""
    actor_every: PositiveInt = 1
    """Updates of the critics to one of the actor and the temperature."""

    @model_validator(mode="after")
    def _targets_hear_critics_that_exist(self) -> Self:
        if self.target_critics is not None and self.target_critics > self.num_critics:
            raise ValueError(
                f"target_critics is {self.target_critics}, and num_critics is {self.num_critics}: "
                "targets cannot take the least of more than there are. Set learner.num_critics=10, "
                "or lower target_critics"
            )
        return self

    @model_validator(mode="after")
    def _diversity_is_of_several(self) -> Self:
        if self.num_critics == 1 and self.diversity != 0.0:
            raise ValueError(
                f"diversity is {self.diversity}, and num_critics is 1: one critic has no other to "
                "differ from. Set num_critics=10, or leave diversity out"
            )
        return self


class CQLSettings(SoftSettings):
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


class H2OSettings(SoftSettings):
    """SAC on logged rows and on rows of a simulator that is not exact (Niu et al. 2022, arXiv
    2206.13464)."""

    kind: Literal["h2o"] = "h2o"
    entropy_in_target: bool = False
    """Count the entropy to come in the critics' targets."""
    conservative_weight: PerMember[NonNegativeFloat] = 0.01
    """Of what lowers values of simulated rows, by their dynamics gap, and raises logged ones."""
    discriminator_hidden: Hidden = (256, 256)
    """Of the two networks that tell logged rows from simulated ones."""
    discriminator_learning_rate: PerMember[PositiveFloat] = 3e-4
    discriminator_noise: PerMember[NonNegativeFloat] = 0.1
    """Deviation of what is added to their inputs as they learn; observations count in deviations
    of the data."""
    gap_samples: PositiveInt = 10
    """Next observations around the simulated one that a row's dynamics gap is the mean over."""
    gap_noise: PerMember[NonNegativeFloat] = 1.0
    """Their deviation, in deviations of the data."""


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
    init: Init = "edac"
    """Of the networks; edac: biases of 0.1, and last layers close to 0; orthogonal: orthogonal
    weights, small in the last layers, and no biases."""
    actor_bc_weight: PerMember[NonNegativeFloat] = 0.01
    """Of the actor's squared distance from the batch's actions: the paper's beta 1."""
    critic_bc_weight: PerMember[NonNegativeFloat] = 0.01
    """Of the target action's squared distance from the next logged one: the paper's beta 2."""


Learner = Annotated[
    SACSettings
    | CQLSettings
    | MOBILESettings
    | BCSettings
    | IQLSettings
    | TD3BCSettings
    | PRDCSettings
    | ReBRACSettings
    | H2OSettings,
    Field(discriminator="kind"),
]
