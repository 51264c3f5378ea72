"""Judges of policies: all worlds of a model, critics fitted to the data, and where walks start.

Fitting the critics is an ordinary run of the learner iql, a member a world; a judge is made from
that run and the model's, and is kept whole, so that whoever resumes needs neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from worldrl.config.imagination import NoImaginationSettings
from worldrl.config.judging import JudgeSettings
from worldrl.config.learners import IQLSettings
from worldrl.config.schema import DatasetSettings, RunSettings, TrainConfig
from worldrl.data.dataset import Dataset
from worldrl.errors import RunError
from worldrl.evaluation.off_policy import Estimate
from worldrl.imagination.walks import Ground, ground_of, walk
from worldrl.learners.iql import IQL
from worldrl.models.mlp import part
from worldrl.random import generator
from worldrl.training import checkpoint
from worldrl.training.logged import Logged
from worldrl.training.online.warm_start import learners_of
from worldrl.training.rewards import reward_transform
from worldrl.training.run_directory import RunDirectory
from worldrl.training.stages import flat
from worldrl.training.world.world_model import WorldModel, ends_function, load_world
from worldrl.types import Learner, LearnerState, Parameters

#: What of a learner of values is asked.
ASKED = ("settings", "inputs", "support", "critic", "value")


class Values(NamedTuple):
    """Critics of a run of iql, of K members."""

    settings: IQLSettings
    state: LearnerState  # what ASKED names, (K, ...)


class Judge(NamedTuple):
    """K worlds and as many critics."""

    ground: Ground
    learner: IQL
    values: LearnerState
    starts: Tensor  # (R, S), the same for all policies and judges
    horizon: int

    @torch.no_grad()
    def estimate(self, learner: Learner, policy: Parameters) -> Estimate:
        """What one policy ``(1, ...)`` is worth."""
        count, walks = len(self.ground.seeds), len(self.starts)
        everywhere = {name: one.expand(count, *one.shape[1:]) for name, one in policy.items()}
        starts = self.starts.expand(count, -1, -1)
        discount = self.values["settings"]["discount"]
        zero = torch.zeros(count, dtype=torch.float64, device=starts.device)
        sums = dict.fromkeys(
            ("value", "reward", "discounted", "penalty", "outside", "clipped", "broken", "ended"),
            zero,
        )
        steps, share = zero, torch.ones_like(zero)
        for visited in walk(self.ground, learner.act, everywhere, starts, self.horizon):
            at, alive = visited.transitions, visited.alive
            seen = {
                "value": self.learner.values(self.values, at.observation, at.action),
                "reward": at.reward,
                "discounted": at.reward * share[:, None],
                "penalty": visited.penalty,
                "outside": visited.outside,
                "clipped": visited.clipped,
                "ended": at.terminated,
            }
            for name, value in seen.items():
                sums[name] = sums[name] + value.where(alive, 0).sum(1, dtype=torch.float64)
            sums["broken"] = sums["broken"] + visited.broken.sum(1)
            steps, share = steps + alive.sum(1), share * discount
        ahead = self.learner.state_values(self.values, at.next_observation)
        cut = ahead.where(visited.goes_on, 0).sum(1, dtype=torch.float64)
        taken = steps.clamp(min=1)
        return Estimate(
            value=sums["value"] / (self.horizon * walks),
            model_return=sums["reward"] / walks,
            discounted_value=(sums["discounted"] + share * cut) / walks,
            penalty=sums["penalty"] / taken,
            ended_share=sums["ended"] / walks,
            outside_share=sums["outside"] / taken,
            clipped_share=sums["clipped"] / taken,
            broken_share=sums["broken"] / walks,
            length=steps / walks,
        )


def make_judge(model: WorldModel, values: Values, settings: JudgeSettings, logged: Logged) -> Judge:
    """The judge of a model's worlds and the critics of a run of values."""
    seeds: list[int] = model.facts["seeds"]
    sizes = logged.observation_size, logged.action_size
    ends = ends_function(model.facts["termination"], logged.observation_size)
    picked = torch.randint(
        len(logged.rows), (settings.num_starts,), generator=generator(0, "judge.starts")
    )
    return Judge(
        ground_of(model.world, ends, seeds, settings.penalty, logged.log),
        IQL(values.settings, *sizes, 1),
        values.state,
        logged.transitions.observation[picked.to(logged.rows.device)],
        settings.horizon,
    )


def values_config(
    settings: JudgeSettings, dataset: DatasetSettings, seeds: Sequence[int], like: RunSettings
) -> TrainConfig:
    """The run that fits the critics of worlds of these seeds.

    Args:
        like: whose device, threads, precision and compilation the run takes.
    """
    return TrainConfig(
        dataset=dataset,
        learner=IQLSettings(expectile=settings.expectile, discount=settings.discount),
        imagination=NoImaginationSettings(),
        num_updates=settings.value_updates,
        seed=seeds[0],
        population=len(seeds),
        keep_checkpoints=1,
        **like.model_dump(include={"device", "precision", "compile", "threads"}),
    )


def read_values(path: Path, dataset: Dataset, logged: Logged, wanted: TrainConfig) -> Values:
    """The critics of a finished run of iql on this data.

    Args:
        wanted: what :func:`values_config` asks for.

    Raises:
        RunError: the run is of another learner, expectile or discount, of other data or rewards,
            has another number of members than there are worlds, or is not finished.
    """
    with RunDirectory.open(path) as run:
        config = run.read_config()
        if not isinstance(config, TrainConfig) or not isinstance(config.learner, IQLSettings):
            raise RunError(
                f"{path} is no run of the learner iql, whose critics value what is logged. Train "
                "one with `worldrl train iql`, or name a new folder for one"
            )
        same = run.read_dataset().sha256 == dataset.metadata.sha256
        rewards = reward_transform(config.dataset, dataset)
        if not same or not rewards.equals(logged.rewards):
            what = "other data" if not same else f"rewards {rewards}, not {logged.rewards}"
            raise RunError(
                f"the values in {path} were learned from {what}. Name a run of this data, or a new "
                "folder for one"
            )
        count = wanted.population
        for name in "expectile", "discount":
            learned, asked = getattr(config.learner, name), getattr(wanted.learner, name)
            if learned != asked:
                raise RunError(
                    f"the values in {path} were learned with {name} {learned}, and {asked} is "
                    "asked for. Ask for theirs, or name a new folder for others"
                )
        if config.population != count:
            raise RunError(
                f"{path} holds the values of {config.population} seed(s), and the model has "
                f"{count} world(s). Train them with population={count}, or name a new folder"
            )
        last = checkpoint.last_checkpoint(run)
        found = run.read_status().state if last is not None else None
        if found == "stopped_by_guard":
            raise RunError(
                f"a guard stopped the training of the values in {path}: they would judge badly. "
                "Name a new folder for others"
            )
        if last is None or found != "finished":
            raise RunError(
                f"the values in {path} are not learned to the end; go on with `worldrl resume "
                f"{path}`"
            )
    state = learners_of(checkpoint.load(last, logged.rows.device))
    return Values(config.learner, {name: part(state, f"{name}/") for name in ASKED})


def save_judge(path: Path, model: WorldModel, values: Values) -> None:
    """Write the worlds and the critics under ``path``, whole or not at all."""
    facts = {**model.facts, "values": values.settings.model_dump(mode="json")}
    tensors = flat(model.world) | flat(values.state, "values")
    checkpoint.save_model(path, tensors, facts)


def load_judge(path: Path, device: torch.device) -> tuple[WorldModel, Values]:
    """Read what :func:`save_judge` wrote.

    Raises:
        RunError: the files are missing or damaged.
    """
    model = load_world(path, device)
    saved = checkpoint.load_model(path, device)
    settings = IQLSettings.model_validate(saved.plain["values"])
    state = part(saved.tensors, "values/")
    return model, Values(settings, {name: part(state, f"{name}/") for name in ASKED})
