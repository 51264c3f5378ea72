"""The settings of a run, and their defaults; larger groups have files of their own.

Three roots: :class:`PretrainConfig` for ``worldrl pretrain``, :class:`TrainConfig` for
``worldrl train`` and :class:`FinetuneConfig` for ``worldrl finetune``. Nothing here imports torch.
"""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from worldrl.config.base import Settings
from worldrl.config.imagination import (
    DISAGREEMENTS,
    BranchedSettings,
    ImaginationSettings,
)
from worldrl.config.judging import Acceptance, NoAcceptance
from worldrl.config.learners import Learner, SACSettings, SoftSettings
from worldrl.config.members import wrong_lengths
from worldrl.config.model import EnsembleSettings
from worldrl.config.sampling import Sampling, UniformSampling
from worldrl.config.termination import TerminationSettings


class DatasetSettings(Settings):
    """Where the logged experience comes from."""

    source: str
    """A path (.hdf5, .npz), ``d4rl:NAME`` or ``minari:ID``."""
    env_id: str | None = None
    """The environment that the data is about, where the file does not say."""
    max_episode_steps: PositiveInt | None = None
    """Splits episodes of files that mark no timeouts."""
    reward_normalization: Literal["none", "return_range"] = "none"
    """Of the rewards that learners and models see, never of scores. return_range: times 1000,
    over the difference between the best and the worst episode's return."""
    reward_scale: PositiveFloat = 1.0
    """Then multiplies them."""
    reward_shift: float = 0.0
    """Is then added."""


class EpisodeSettings(Settings):
    """The episodes that score a policy."""

    episodes: PositiveInt = 10
    seed: NonNegativeInt = 0
    """Of the episodes' starts, the same for every member and update."""


class EvaluationSettings(EpisodeSettings):
    """How policies are scored during training."""

    env_id: str | None = None
    """None: the dataset's own environment."""
    allow_other_environment: bool = False
    """Score in another environment than the data's; the result is marked."""


class GuardSettings(Settings):
    """When training is stopped at its last good policy."""

    enabled: bool = True
    value_bound: PositiveFloat = 3.0
    """Trip when |mean Q| exceeds this times max |reward| / (1 - discount); to the largest reward
    comes the policy's entropy times its temperature and, below 0, the penalty taken off."""
    value_growth: PositiveFloat = 1.0
    """Trip when mean Q grows by more than this times a reward while the target network follows
    once, over 1,000 updates on end. A reward is the largest of the logged rewards' root mean
    square, the mean of the best logged episode and that of what is imagined (up to the largest
    logged), plus entropy times temperature. A policy is kept as a good one while mean Q grows by
    less than a quarter of that."""
    critic_loss_growth: PositiveFloat = 100.0
    """Trip when the critic loss exceeds this times its value right after the warm-up, or times the
    logged rewards' mean square where that is larger."""
    warmup: NonNegativeInt = 2_000
    """Updates before the two growth guards may trip."""


class RunSettings(Settings):
    """What every run has."""

    seed: NonNegativeInt = 0
    population: PositiveInt = 1
    """Members trained in one process; member i is the run with seed + i."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes a GPU where there is one."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of matrix products; weights, losses and optimisers stay float32."""
    compile: Literal["auto"] | bool = "auto"
    """auto: where the run is long enough to repay the tens of seconds that compiling takes."""
    threads: PositiveInt | None = None
    """Of one operation on a CPU; None is torch's choice, all cores. 1 where others use them."""
    log_every: PositiveInt = 1_000
    """Updates between lines of metrics.jsonl; the guards look as often."""
    checkpoint_every: PositiveInt = 10_000
    keep_checkpoints: PositiveInt = 2
    tensorboard: bool = False
    """Write event files beside metrics.jsonl."""

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str) -> str:
        if re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is None:
            raise ValueError(f"device={value} is no device; use auto, cpu, cuda or cuda:0")
        return value

    @model_validator(mode="after")
    def _lists_have_one_value_a_member(self) -> Self:
        wrong = list(wrong_lengths(self, self.population))
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class PretrainConfig(RunSettings):
    """``worldrl pretrain``: learn a world model."""

    stage: Literal["pretrain"] = "pretrain"
    recipe: str = ""
    dataset: DatasetSettings
    model: EnsembleSettings = EnsembleSettings()
    termination: TerminationSettings = TerminationSettings()

    @model_validator(mode="after")
    def _trains_a_model(self) -> Self:
        if self.model.source is not None:
            raise ValueError(
                f"model={self.model.source} is a trained model, and this stage trains one. Leave "
                "it out"
            )
        return self


class TrainConfig(RunSettings):
    """``worldrl train``: learn a policy, in imagination or from the data alone."""

    stage: Literal["train"] = "train"
    recipe: str = ""
    dataset: DatasetSettings
    model: EnsembleSettings = EnsembleSettings()
    termination: TerminationSettings = TerminationSettings()
    imagination: ImaginationSettings = BranchedSettings()
    learner: Learner = SACSettings()
    sampling: Sampling = UniformSampling()
    num_updates: PositiveInt = 1_000_000
    eval_every: NonNegativeInt = 0
    """Updates, or steps of fine-tuning, between evaluations in the environment; 0: none."""
    evaluation: EvaluationSettings = EvaluationSettings()
    guard: GuardSettings = GuardSettings()
    acceptance: Acceptance = NoAcceptance()

    @property
    def logged_share(self) -> float:
        """Of the rows of a batch."""
        return 1.0 if self.imagination.kind == "none" else self.imagination.real_ratio

    @property
    def uses_model(self) -> bool:
        """Does imagination or the learner ask a learned world model?"""
        imagined = self.imagination.kind not in ("none", "simulator")
        return imagined or self.learner.encoder.kind != "none"

    @model_validator(mode="after")
    def _acceptance_has_judges(self) -> Self:
        if self.acceptance.kind == "none" or self.model.source is not None:
            return self
        if not self.uses_model:
            raise ValueError(
                f"acceptance.kind is {self.acceptance.kind}, which judges policies in a world "
                f"model, and imagination is {self.imagination.kind}: there is no model. Name one "
                "with model=RUN, or set acceptance=none"
            )
        if self.population == 1:
            raise ValueError(
                f"acceptance.kind is {self.acceptance.kind}, which needs the worlds of several "
                "seeds, and this run learns one. Train them with `worldrl pretrain ensemble "
                "population=3` and name that run with model=RUN, or set acceptance=none"
            )
        return self

    def _judges(self, imagination: BranchedSettings) -> int:
        """Members that a penalty or a stop looks at."""
        model = self.model
        return model.num_members if imagination.judges == "members" else model.num_elites

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        imagination = self.imagination
        used = self.uses_model or self.acceptance.kind != "none"
        if self.model.source is not None and not used:
            raise ValueError(
                f"model={self.model.source} is given, and imagination is {imagination.kind}: "
                "nothing would use the model. Leave it out, or choose a recipe that imagines in "
                "one, such as mopo"
            )
        if imagination.kind == "simulator" and self.learner.encoder.kind != "none":
            raise ValueError(
                f"learner.encoder is {self.learner.encoder.kind}, whose anchors a learned world "
                "model tells, and imagination is simulator, which is none. Set "
                "learner.encoder=none, or imagination=branched"
            )
        if imagination.kind == "branched" and self._judges(imagination) == 1:
            measures = [imagination.penalty.kind] if imagination.penalty.kind != "none" else []
            measures += [imagination.stop.measure] if imagination.stop.kind != "none" else []
            if zero := [measure for measure in measures if measure in DISAGREEMENTS]:
                name = "num_members" if self.model.num_members == 1 else "num_elites"
                raise ValueError(
                    f"model.{name} is 1, and {' and '.join(zero)} would always be 0: one "
                    "member cannot disagree. Set more members, or max_aleatoric"
                )
        if self.imagination.kind != "none" and self.learner.kind == "bc":
            raise ValueError(
                "learner.kind is bc, and imagination is "
                f"{self.imagination.kind}: imagined actions are the cloned policy's own. Set "
                "imagination=none"
            )
        if (
            self.sampling.kind != "uniform"
            and imagination.kind != "none"
            and imagination.real_ratio * self.learner.batch_size < 1
        ):
            raise ValueError(
                f"sampling.kind is {self.sampling.kind}, and no row of a batch is logged: "
                f"imagination.real_ratio is {imagination.real_ratio:g}. Raise it, or leave "
                "sampling out"
            )
        return self

    @model_validator(mode="after")
    def _there_are_rows_to_clone(self) -> Self:
        learner, imagination = self.learner, self.imagination
        cloning = isinstance(learner, SoftSettings) and learner.cloning_updates > 0
        if imagination.kind == "none" or not cloning:
            return self
        if imagination.real_ratio * learner.batch_size < 1:
            raise ValueError(
                f"imagination.real_ratio is {imagination.real_ratio:g}, which leaves no logged row "
                "in a batch to clone. Raise it, or set learner.cloning_updates=0"
            )
        return self

    @model_validator(mode="after")
    def _cql_has_the_rows_it_compares(self) -> Self:
        learner, imagination = self.learner, self.imagination
        if learner.kind != "cql":
            return self
        if imagination.kind == "none":
            if learner.conservative_rows == "imagined":
                raise ValueError(
                    "learner.conservative_rows is imagined, and imagination is none: there are no "
                    "such rows. Set it to all, or choose the recipe combo"
                )
            return self
        if learner.min_gap is not None:
            raise ValueError(
                "learner.min_gap bounds the gap of a logged row, and imagined rows have none. "
                "Leave it out, or set imagination=none"
            )
        if imagination.real_ratio * learner.batch_size < 1:
            raise ValueError(
                f"imagination.real_ratio is {imagination.real_ratio:g}, which leaves no logged row "
                "in a batch, and cql raises values at logged actions. Set it to 0.5"
            )
        return self

    @model_validator(mode="after")
    def _h2o_has_the_rows_it_compares(self) -> Self:
        learner, imagination = self.learner, self.imagination
        if learner.kind != "h2o":
            return self
        if imagination.kind == "none":
            raise ValueError(
                "learner.kind is h2o, which learns from logged rows and simulated ones, and "
                "imagination is none. Set imagination=simulator, or learner.kind=cql"
            )
        if imagination.real_ratio * learner.batch_size < 1:
            raise ValueError(
                f"imagination.real_ratio is {imagination.real_ratio:g}, which leaves no logged row "
                "in a batch, and h2o holds simulated rows against logged ones. Set it to 0.5"
            )
        return self

    @model_validator(mode="after")
    def _a_learner_of_a_model_has_one(self) -> Self:
        if self.learner.kind != "mobile":
            return self
        imagination = self.imagination
        needs = "learner.kind is mobile, which"
        if imagination.kind == "none":
            raise ValueError(
                f"{needs} asks a world model what its elites disagree about, and imagination is "
                "none. Set imagination=branched and imagination.penalty.kind=none, or "
                "learner.kind=sac"
            )
        if imagination.kind == "adversarial":
            raise ValueError(
                f"{needs} asks the world model as it was learned, and imagination is adversarial, "
                "which changes it. Set imagination=branched and imagination.penalty.kind=none, or "
                "learner.kind=sac"
            )
        if imagination.kind == "simulator":
            raise ValueError(
                f"{needs} asks a world model what its elites disagree about, and imagination is "
                "simulator, which is one. Set imagination=branched and "
                "imagination.penalty.kind=none, or learner.kind=h2o"
            )
        if imagination.penalty.kind != "none":
            raise ValueError(
                f"{needs} is pessimistic in its targets, and imagination.penalty.kind is "
                f"{imagination.penalty.kind}, which would lower rewards as well. Set "
                "imagination.penalty.kind=none, or learner.kind=sac"
            )
        if self.model.num_elites == 1:
            raise ValueError(
                f"{needs} needs elites that can disagree, and model.num_elites is 1. Set more, or "
                "learner.kind=sac"
            )
        return self


class FootingSettings(Settings):
    """When to say that fine-tuning loses what the offline run had learned."""

    steps: NonNegativeInt = 20_000
    """After the warm-up in which to look; 0: never."""
    max_value_shift: PositiveFloat = 0.3
    """Of mean Q on the warm-up's transitions, as a share of its size before the first update."""
    max_return_drop: PositiveFloat = 0.25
    """Of the latest episodes' mean return, as a share of that of the warm-up's."""


class FinetuneConfig(RunSettings):
    """``worldrl finetune``: go on in the environment from what was learned from logged data."""

    stage: Literal["finetune"] = "finetune"
    recipe: str = ""
    run: str | None = None
    """The run of `worldrl train` to go on from."""
    weights: Literal["run", "fresh"] = "run"
    """run: its policies, critics and temperature; fresh: none, its data alone."""
    tile_noise: NonNegativeFloat = 0.01
    """Where more critics are asked for than the run has, its critics are repeated, and weights of
    the repeated ones changed by a normal draw times this times themselves."""
    env_id: str | None = None
    """None: the dataset's own environment."""
    allow_other_environment: bool = False
    """Learn and score in another environment than the data's; results are marked."""
    dataset: DatasetSettings
    learner: Learner = SACSettings()
    offline_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of a batch that is from the dataset; the rest is from the environment."""
    num_steps: PositiveInt = 500_000
    """Of each member in its environment, the warm-up's among them; all intervals count them."""
    warmup_steps: NonNegativeInt = 5_000
    """Before the first update."""
    warmup_policy: Literal["learned", "uniform"] = "learned"
    """What acts in the warm-up."""
    updates_per_step: PositiveInt = 1
    """Updates that follow every step after the warm-up."""
    replay_capacity: PositiveInt = 2_000_000
    """Latest transitions that are kept of each member."""
    eval_every: NonNegativeInt = 0
    """Updates, or steps of fine-tuning, between evaluations in the environment; 0: none."""
    evaluation: EpisodeSettings = EpisodeSettings()
    footing: FootingSettings = FootingSettings()
    guard: GuardSettings = GuardSettings()

    @property
    def num_updates(self) -> int:
        """Of each member, in all."""
        return (self.num_steps - self.warmup_steps) * self.updates_per_step

    @property
    def sampling(self) -> Sampling:
        """Of the dataset's rows."""
        return UniformSampling()

    @property
    def logged_share(self) -> float:
        """Of the rows of a batch."""
        return self.offline_ratio

    @model_validator(mode="after")
    def _something_is_learned(self) -> Self:
        if self.num_steps <= self.warmup_steps:
            raise ValueError(
                f"num_steps is {self.num_steps}, and warmup_steps is {self.warmup_steps}: no step "
                "would be left to learn from. Set more, or a shorter warm-up"
            )
        return self

    @model_validator(mode="after")
    def _a_footing_can_be_lost(self) -> Self:
        if self.weights == "fresh" and self.footing != FootingSettings():
            raise ValueError(
                "footing would be unused: it watches over what a run had learned, and weights is "
                "fresh. Leave it out, or set weights=run"
            )
        return self

    @model_validator(mode="after")
    def _the_learner_can_go_on(self) -> Self:
        why = {
            "bc": "clones what is logged and has no values to improve it by",
            "cql": "is made for logged data alone",
            "mobile": "asks a world model, and here is none",
            "h2o": "holds a simulator against logged data, and here is none",
        }.get(self.learner.kind)
        if why is not None:
            raise ValueError(
                f"learner.kind is {self.learner.kind}, which {why}. Go on from a run of sac, cql, "
                "mobile or h2o with learner.kind=sac, from one of td3bc, rebrac, prdc or iql with "
                "its own, or start afresh on a run's data with --recipe rlpd"
            )
        if isinstance(self.learner, SoftSettings) and self.learner.cloning_updates > 0:
            raise ValueError(
                "learner.cloning_updates clones what is logged before values are raised, and "
                "fine-tuning goes on from there. Leave it out"
            )
        if 0 < self.offline_ratio * self.learner.batch_size < 1:
            raise ValueError(
                f"offline_ratio is {self.offline_ratio:g}, which leaves no logged row in a batch "
                f"of {self.learner.batch_size}. Raise it, or set it to 0"
            )
        return self


Config = PretrainConfig | TrainConfig | FinetuneConfig
