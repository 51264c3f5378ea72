"""Settings of imagined experience, one class a way to make it, told apart by ``kind``."""

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
from worldrl.config.filters import Filter, NoFilter
from worldrl.config.members import PerMember, per_member
from worldrl.config.model import EnsembleSettings

DISAGREEMENTS = (
    "max_dev_from_mean",
    "max_pairwise_diff",
    "mean_std",
    "normalized_std",
    "ll_var",
    "loo_kl",
)
"""Penalties that are 0 where there is one member."""


StopKind = Literal["none", "truncate", "drop", "terminal", "absorb"]


Measure = Literal[
    "max_aleatoric",
    "max_dev_from_mean",
    "max_pairwise_diff",
    "ensemble_std",
    "ensemble_var",
    "mean_std",
    "normalized_std",
]
"""Of what the members predict alone."""
StopMeasure = Literal[Measure, "ll_var", "loo_kl"]
"""Also those that ask which member made the sample."""


PenaltyKind = Literal["none", StopMeasure]


Elite = Literal["per_step", "per_rollout"]


def _changed(settings: Settings, *but: str) -> list[str]:
    """Names of what differs from its default."""
    fields = type(settings).model_fields
    return [
        name
        for name, field in fields.items()
        if name not in but and getattr(settings, name) != field.default
    ]


class PenaltySettings(Settings):
    """Pessimism: reward - weight * penalty."""

    kind: PenaltyKind = "max_aleatoric"
    """Of the ensemble's members: none; max_aleatoric, the largest norm of a deviation (MOPO);
    max_dev_from_mean, the largest distance of a mean from their mean; max_pairwise_diff, of two
    means (MOReL); ensemble_std and ensemble_var, deviation and variance of their mixture; mean_std,
    deviation of their means; normalized_std, that with the reward, in deviations of the data;
    ll_var, variance of their log-densities of the sample; loo_kl, divergence of the Gaussian that
    made the sample from the others. To end rollouts in place of a penalty (MOReL's), set
    imagination.stop."""
    weight: PerMember[NonNegativeFloat] = 0.5
    scale: Literal["none", "dataset_quantile"] = "none"
    """dataset_quantile divides by the 0.95 quantile of the penalty on the data."""

    @model_validator(mode="after")
    def _is_used(self) -> Self:
        if self.kind == "none" and (given := _changed(self, "kind")):
            raise ValueError(
                f"{' and '.join(given)} would be unused: kind is none. Set "
                "imagination.penalty.kind=max_aleatoric or another one, or leave it out"
            )
        return self


class StopSettings(Settings):
    """Where a rollout ends before its horizon because the model is unsure."""

    kind: StopKind = "none"
    """truncate: keep the step, do not call it terminal. drop: leave the step out. terminal: keep it
    and call it terminal (MOREC's code). absorb: that, with the least logged reward minus `cost` in
    place of its own (MOReL, arXiv 2005.05951: the ood_truncate of other catalogues)."""
    measure: StopMeasure = "max_pairwise_diff"
    quantile: float = Field(default=1.0, gt=0, le=1)
    """Of the measure on the data: beyond it a rollout stops; 1 is the largest."""
    deviations: PerMember[NonNegativeFloat] | None = None
    """Stop in place of that beyond the measure's mean on the data plus so many of its deviations
    there (MOReL's rule)."""
    factor: PerMember[PositiveFloat] = 1.0
    """Multiplies that limit."""
    cost: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _is_used(self) -> Self:
        given = _changed(self)
        if self.kind == "none" and given:
            raise ValueError(
                f"{' and '.join(given)} would be unused: kind is none. Set "
                "imagination.stop.kind=truncate, drop, terminal or absorb, or leave it out"
            )
        if self.kind != "absorb" and "cost" in given:
            raise ValueError(f"cost is of kind=absorb, and kind is {self.kind}. Leave it out")
        if self.deviations is not None and "quantile" in given:
            raise ValueError(
                "quantile and deviations are two limits, and there is one. Leave one out, or set "
                "imagination.stop.deviations=null to have the quantile"
            )
        return self


class RolloutSettings(Settings):
    """What all short model rollouts from dataset states have."""

    horizon: PerMember[PositiveInt] = 5
    """Steps of an imagined rollout at most."""
    episode_limit: PositiveInt | None = None
    """End a rollout too where its episode, counted from the start that was logged, would have so
    many steps; None: the horizon alone."""
    batch_size: PositiveInt = 50_000
    """Rollout starts per refresh."""
    every: PositiveInt = 1_000
    """Updates between refreshes."""
    retain: PositiveInt = 5
    """Refreshes kept in the synthetic buffer."""
    real_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Share of a batch that is logged; to learn from the log alone, imagination=none."""
    clip_range: PositiveFloat | None = 0.5
    """Widen the data's observation range by this fraction and clip to it; None: no clip."""

    def most_rows(self, population: int) -> int:
        """Rows that a refresh makes at most, for each member."""
        return self.batch_size * max(per_member(self.horizon, population))


class BranchedSettings(RolloutSettings):
    """Branched model rollouts from dataset states (MBPO, MOPO)."""

    kind: Literal["branched"] = "branched"
    elite: Elite = "per_step"
    """How long a rollout stays with the elite that it drew."""
    judges: Literal["members", "elites"] = "members"
    """Whose predictions penalties and stops compare."""
    penalty: PenaltySettings = PenaltySettings()
    stop: StopSettings = StopSettings()
    filter: Filter = NoFilter()

    @property
    def judged(self) -> bool:
        """Does anything compare what the members predict?"""
        return self.penalty.kind != "none" or self.stop.kind != "none"

    @model_validator(mode="after")
    def _judges_are_asked(self) -> Self:
        if self.judges != "members" and not self.judged:
            raise ValueError(
                "judges would be unused: there is neither a penalty nor a stop. Set "
                "imagination.penalty.kind or imagination.stop.kind, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _filter_stops_and_chooses_alone(self) -> Self:
        if self.filter.kind == "none":
            return self
        if self.stop.kind != "none":
            raise ValueError(
                f"filter.kind is {self.filter.kind} and stop.kind is {self.stop.kind}: both say "
                "where rollouts stop. Set imagination.stop.kind=none or "
                "imagination.filter.kind=none"
            )
        if self.elite != "per_step":
            raise ValueError(
                f"elite={self.elite} would be unused: filter.kind is {self.filter.kind}, which "
                "chooses among the samples of all elites at every step. Leave it out, or set "
                "imagination.filter.kind=none"
            )
        return self


class AdversarialSettings(RolloutSettings):
    """Branched rollouts of a model that learns to be worse for the policy where the data let it
    (RAMBO: Rigter et al. 2022, arXiv 2204.12581)."""

    kind: Literal["adversarial"] = "adversarial"
    elite: Elite = "per_step"
    """How long a rollout stays with the elite that it drew."""
    real_ratio: float = Field(default=0.5, ge=0, lt=1)
    """Share of a batch that is logged; to learn from the log alone, imagination=none."""
    adversarial_weight: PerMember[NonNegativeFloat] = 3e-4
    """Of the expected advantage of what the model says, beside its likelihood of the data; at 0 the
    model merely goes on learning from the data."""
    model_updates: PositiveInt = 1_000
    """Of the model before every refresh but the first."""
    model_batch_size: PositiveInt = 256
    """Logged rows of an update of the model, and imagined ones."""
    model_learning_rate: PositiveFloat = 3e-4
    model_weight_decay: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (
        EnsembleSettings().weight_decay
    )
    """As model.weight_decay."""
    log_variance_bound_weight: NonNegativeFloat = 0.001


class SimulatorSettings(RolloutSettings):
    """Rollouts from dataset states in a given simulator, which need not be exact (H2O: Niu et al.
    2022, arXiv 2206.13464)."""

    kind: Literal["simulator"] = "simulator"
    env_id: str | None = None
    """None: the dataset's own environment."""
    gravity: NonNegativeFloat = 1.0
    """Times the simulator's own; so are the next two. Of MuJoCo environments alone."""
    friction: NonNegativeFloat = 1.0
    damping: NonNegativeFloat = 1.0
    """Of the joints."""
    batch_size: PositiveInt = 1_000
    """Rollout starts per refresh."""
    real_ratio: float = Field(default=0.5, ge=0, lt=1)
    """Share of a batch that is logged; to learn from the log alone, imagination=none."""
    clip_range: PositiveFloat | None = None
    """Widen the data's observation range by this fraction and clip to it; None: no clip."""


def without_pessimism(settings: RolloutSettings) -> BranchedSettings:
    """Other rollouts as branched ones with no penalty and no stop."""
    shared = set(BranchedSettings.model_fields) - {"kind"}
    common = settings.model_dump(include=shared)
    return BranchedSettings(penalty=PenaltySettings(kind="none"), **common)


class NoImaginationSettings(Settings):
    """Learn from the logged data alone."""

    kind: Literal["none"] = "none"


ImaginationSettings = Annotated[
    BranchedSettings | AdversarialSettings | SimulatorSettings | NoImaginationSettings,
    Field(discriminator="kind"),
]
