"""The Python API: what the commands do, as functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldrl.config.label import LabelSettings
from worldrl.config.loader import load_config
from worldrl.config.schema import Config, PretrainConfig, TrainConfig
from worldrl.data.actions import from_unit
from worldrl.data.dataset import Dataset
from worldrl.data.dataset import load as load_dataset
from worldrl.errors import ConfigError, RunError
from worldrl.imagination.simulator import Stepper, simulator_stepper
from worldrl.learners import LEARNERS
from worldrl.training import checkpoint, run
from worldrl.training.label_file import LabelResult, label_file
from worldrl.training.run import RunResult
from worldrl.training.run_directory import RunDirectory
from worldrl.training.train import Scorer
from worldrl.types import Policy

if TYPE_CHECKING:
    from worldrl.envs import Scoring
    from worldrl.evaluation.result import Result
    from worldrl.study.directory import Result as StudyResult

__all__ = [
    "LoadedPolicy",
    "evaluate",
    "label",
    "load_config",
    "load_dataset",
    "load_policy",
    "pretrain",
    "resume",
    "study_edge_of_reach",
    "study_true_dynamics",
    "train",
]


def pretrain(config: Config, out: str | Path | None = None, quiet: bool = False) -> RunResult:
    """Learn a world model; ``worldrl pretrain``."""
    if not isinstance(config, PretrainConfig):
        raise ConfigError("pretrain needs the settings of a pretrain recipe")
    return run.start(config, None if out is None else Path(out), quiet)


def train(config: Config, out: str | Path | None = None, quiet: bool = False) -> RunResult:
    """Learn a policy; ``worldrl train``."""
    if not isinstance(config, TrainConfig):
        raise ConfigError("train needs the settings of a train recipe")
    return run.start(config, None if out is None else Path(out), quiet, scorer, simulator)


def resume(path: str | Path, quiet: bool = False) -> RunResult:
    """Continue a run that was stopped or killed; ``worldrl resume``."""
    return run.resume(Path(path), quiet, scorer, simulator)


def label(
    unlabelled: str | Path,
    labelled: str | Path,
    out: str | Path,
    settings: LabelSettings | None = None,
    seed: int = 0,
    max_episode_steps: int | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> LabelResult:
    """Infer the actions of action-free trajectories from labelled ones; ``worldrl data label``.

    Args:
        unlabelled: a ``.hdf5`` or ``.npz`` file that lacks ``actions``, or some rows of them.
        labelled: any dataset of the same environment.
        out: a file for the trajectories of both; it must not exist.
        max_episode_steps: splits episodes of files that mark no timeouts.

    Raises:
        DataError: a file cannot be read, the two do not fit each other, or ``out`` exists.
    """
    return label_file(
        str(unlabelled),
        str(labelled),
        Path(out),
        settings or LabelSettings(),
        seed,
        max_episode_steps,
        device,
        quiet,
    )


class LoadedPolicy:
    """The policies of a run, ready to act.

    Attributes:
        population: P, the members of the run.
        steps: ``(P,)``, updates of each member's policy.
        stopped_by_guard: ``(P,)``, members whose last good policy this is, not their last.
        shared_model: all members learned in one world model.
        env_id: the environment of the run's data, if the data says.
        action_low, action_high: ``(A,)``, environment units of -1 and 1.
    """

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        directory = RunDirectory.open(path)
        settings = directory.read_config()
        last = checkpoint.last_checkpoint(directory)
        saved = None if last is None else checkpoint.load(last, device, state=False)
        if saved is None or "policy" not in saved.plain or not isinstance(settings, TrainConfig):
            raise RunError(
                f"{path} holds no policy yet. It comes with the first checkpoint of `worldrl "
                "train`; a pretrain run holds a world model only."
            )
        facts = saved.plain["policy"]
        self.run = directory.path
        self.settings = settings
        self.population = settings.population
        progress = saved.plain["progress"]
        self.stopped_by_guard = tuple(
            trip is not None for group in progress["groups"] for trip in group["trips"]
        )
        good_steps = [
            memory["good_step"] for group in progress["groups"] for memory in group["guards"]
        ]
        self.steps = tuple(
            good if stopped else saved.plain["step"]
            for good, stopped in zip(good_steps, self.stopped_by_guard, strict=True)
        )
        self.observation_size: int = facts["observation_size"]
        self.env_id: str | None = facts["env_id"]
        self.shared_model: bool = facts["shared_model"]
        self.action_low = np.asarray(facts["action_low"], np.float32)
        self.action_high = np.asarray(facts["action_high"], np.float32)
        self._learner = LEARNERS[settings.learner.kind](
            settings.learner, self.observation_size, len(self.action_low), settings.num_updates
        )
        self._parameters = {
            name.removeprefix("policy/"): value for name, value in saved.model.items()
        }

    @torch.no_grad()
    def __call__(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """``(P, B, S), (P, B, A) or None (deterministic) -> (P, B, A)`` in [-1, 1]."""
        return self._learner.act(self._parameters, observation, noise)

    @torch.no_grad()
    def act(self, observations: NDArray[Any], member: int = 0) -> NDArray[np.float32]:
        """Deterministic actions of one member: ``(B, S) -> (B, A)`` in environment units."""
        own = {name: value[member : member + 1] for name, value in self._parameters.items()}
        observation = torch.as_tensor(np.asarray(observations, np.float32))[None]
        unit = self._learner.act(own, observation.to(next(iter(own.values())).device), None)
        scaled = from_unit(unit[0].cpu().numpy(), self.action_low, self.action_high)
        return scaled.astype(np.float32)


def load_policy(path: str | Path, device: str = "cpu") -> LoadedPolicy:
    """The policies of the last checkpoint of a train run.

    Raises:
        RunError: there is no run at ``path``, or it holds no policy yet.
    """
    return LoadedPolicy(path, device)


def evaluate(
    path: str | Path,
    episodes: int = 10,
    env_id: str | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Result:
    """Score every member of a run with deterministic episodes; ``worldrl evaluate``.

    Args:
        env_id: another environment than the data's; the result then is marked.

    Raises:
        RunError: there is no policy at ``path``.
        EnvironmentSetupError: the environment is unknown or does not fit.
    """
    policy = load_policy(path, device)
    evaluation = policy.settings.evaluation
    requested = env_id or evaluation.env_id
    allow = env_id is not None or evaluation.allow_other_environment
    result = _score(
        policy,
        policy.population,
        (policy.action_low, policy.action_high),
        _scoring(policy.env_id, requested, allow),
        episodes,
        seed,
        device,
    )
    return replace(
        result,
        steps=policy.steps,
        stopped_by_guard=policy.stopped_by_guard,
        shared_model=policy.shared_model,
    )


def study_edge_of_reach(
    seeds: int = 3,
    updates: int = 20_000,
    seed: int = 0,
    out: str | Path | None = None,
    quiet: bool = False,
) -> StudyResult:
    """What rollouts leave out, in a world whose values are known; ``worldrl study edge-of-reach``.

    Raises:
        RunError: ``out`` holds something already.
    """
    from worldrl.study.edge_of_reach import edge_of_reach

    return edge_of_reach(seeds, updates, seed, None if out is None else Path(out), quiet)


def study_true_dynamics(
    env_id: str,
    configs: Mapping[str, TrainConfig],
    out: str | Path | None = None,
    quiet: bool = False,
) -> StudyResult:
    """A simulator as the model; ``worldrl study true-dynamics``.

    Args:
        configs: by arm, from :func:`worldrl.study.true_settings.arm_configs`.

    Raises:
        WorldRLError: the data, the environment or the directory does not do.
    """
    from worldrl.envs import make
    from worldrl.study.true_dynamics import true_dynamics

    path = None if out is None else Path(out)
    return true_dynamics(env_id, configs, partial(make, env_id), scorer, path, quiet)


def scorer(settings: TrainConfig, recorded: str | None) -> Scorer:
    """Scores policies during training as ``settings.evaluation`` says."""
    evaluation = settings.evaluation
    scoring = _scoring(recorded, evaluation.env_id, evaluation.allow_other_environment)
    scoring.factory().close()  # says now, not after hours, what is missing

    def score(
        policy: Policy, population: int, action_low: Any, action_high: Any, device: Any
    ) -> dict[str, Any]:
        bounds = (action_low, action_high)
        result = _score(
            policy, population, bounds, scoring, evaluation.episodes, evaluation.seed, device
        )
        return result.to_json()

    return score


def simulator(settings: TrainConfig, dataset: Dataset) -> Stepper:
    """Steps the simulator of ``settings.imagination``, from states as the data shows them.

    Raises:
        EnvironmentSetupError: it cannot be built, or its state cannot be set.
    """
    from worldrl.envs import make_altered

    own, recorded = settings.imagination, dataset.metadata.env_id
    assert own.kind == "simulator"
    if own.env_id is None and recorded is None:
        raise ConfigError(
            "the data does not name an environment, so there is no simulator to imagine in. Set "
            "imagination.env_id"
        )
    # It need not be the one that recorded the data: the learner holds it against the data.
    build = _scoring(recorded, own.env_id, allow_other=True).factory
    altered = partial(make_altered, build, own.gravity, own.friction, own.damping)
    rows = dataset.transitions()
    return simulator_stepper(altered, rows.observation, rows.action)


def _scoring(recorded: str | None, requested: str | None, allow_other: bool) -> Scoring:
    from worldrl.envs import scoring_environment

    return scoring_environment(recorded, requested, allow_other)


def _score(
    policy: Policy,
    population: int,
    bounds: tuple[NDArray[Any], NDArray[Any]],
    scoring: Scoring,
    episodes: int,
    seed: int,
    device: str | torch.device,
) -> Result:
    from worldrl.envs import reference_scores
    from worldrl.evaluation.result import evaluation_result
    from worldrl.evaluation.returns import evaluate_returns

    played = evaluate_returns(
        scoring.factory,
        policy,
        episodes,
        seed,
        population,
        action_low=bounds[0],
        action_high=bounds[1],
        device=device,
    )
    return evaluation_result(
        played,
        env_id=scoring.env_id,
        seed=seed,
        recorded_env_id=scoring.recorded_env_id,
        reference=reference_scores(scoring.env_id),
    )
