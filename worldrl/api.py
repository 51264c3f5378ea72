"""The Python API: what the commands do, as functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldrl.config.judging import JudgeSettings
from worldrl.config.label import LabelSettings
from worldrl.config.loader import load_config
from worldrl.config.schema import Config, FinetuneConfig, PretrainConfig, TrainConfig
from worldrl.config.selection import SelectSettings
from worldrl.data.actions import from_unit
from worldrl.data.dataset import Dataset
from worldrl.data.dataset import load as load_dataset
from worldrl.data.export import Extras, export
from worldrl.data.measures import Summary, summary
from worldrl.data.pieces import joined, pieces
from worldrl.errors import ConfigError, DataError, EnvironmentSetupError, RunError
from worldrl.imagination.simulator import Stepper, simulator_stepper
from worldrl.learners import LEARNERS
from worldrl.strict_json import finite
from worldrl.training import checkpoint, run
from worldrl.training.judging.runs import judge_of_runs, learned_in, termination_of, worlds_of
from worldrl.training.label_file import LabelResult, check_out, label_file
from worldrl.training.logged import Logged, logged
from worldrl.training.rewards import reward_transform
from worldrl.training.run import RunResult
from worldrl.training.systems import Systems
from worldrl.training.train import Scorer
from worldrl.training.world.pretrain import given_world
from worldrl.types import Parameters, Policy

if TYPE_CHECKING:
    import gymnasium

    from worldrl.envs import Scoring
    from worldrl.evaluation.off_policy import OfflineResult
    from worldrl.evaluation.result import Result
    from worldrl.study.directory import Result as StudyResult

__all__ = [
    "LoadedPolicy",
    "evaluate",
    "evaluate_offline",
    "finetune",
    "join",
    "label",
    "load_config",
    "load_dataset",
    "load_policy",
    "pretrain",
    "resume",
    "select",
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
    return run.start(config, None if out is None else Path(out), quiet, systems())


def finetune(config: Config, out: str | Path | None = None, quiet: bool = False) -> RunResult:
    """Go on in the environment from what a run learned from logged data; ``worldrl finetune``.

    Args:
        config: ``load_config("finetune", "wsrl", {"run": RUN, "env_id": "Hopper-v5"})``, say.
    """
    if not isinstance(config, FinetuneConfig):
        raise ConfigError("finetune needs the settings of a finetune recipe")
    return run.start(config, None if out is None else Path(out), quiet, systems())


def resume(path: str | Path, quiet: bool = False) -> RunResult:
    """Continue a run that was stopped or killed; ``worldrl resume``."""
    return run.resume(Path(path), quiet, systems())


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


def select(
    path: str | Path,
    out: str | Path,
    settings: SelectSettings,
    model: str | Path | None = None,
    device: str = "cpu",
) -> Summary:
    """Write rows of a run's data that stand for its task; ``worldrl data select``.

    Args:
        path: of the run, or of one of its checkpoints.
        out: a file for the rows; it must not exist.
        model: the run in whose worlds the policy walks; None: where it learned.

    Returns:
        What the file holds.

    Raises:
        RunError: there is no policy, or no model.
        DataError: there are too few rows, or ``out`` exists.
    """
    from worldrl.training import select as choose

    file = Path(out)
    check_out(file)
    policy = load_policy(path, device)
    source = policy.settings.dataset
    dataset = load_dataset(
        source.source, env_id=source.env_id, max_episode_steps=source.max_episode_steps
    )
    if settings.num > dataset.num_transitions:
        raise DataError(
            f"{source.source} has {dataset.num_transitions} rows, fewer than {settings.num}"
        )
    notes = {
        "source": Path(dataset.metadata.source).name,
        "source_sha256": dataset.metadata.sha256,
        "settings": settings.model_dump(mode="json"),
    }
    if settings.by == "random":
        keep = choose.random_rows(dataset, settings.num, settings.seed)
    elif settings.by == "return":
        keep = choose.best_rows(dataset, settings.num)
    else:
        if settings.member >= policy.population:
            raise RunError(f"{path} has {policy.population} member(s), and none {settings.member}")
        rows = logged(dataset, torch.device(device), reward_transform(source, dataset))
        policy.check_fits(rows)
        worlds = worlds_of(policy.run, policy.settings) if model is None else Path(model)
        world = given_world(worlds, rows, dataset.metadata, termination_of(policy.settings))
        own = policy.member(settings.member)
        keep = choose.visited_rows(dataset, rows, world, policy.learner, own, settings)
        notes |= {
            "policy": policy.run.name,
            "step": policy.steps[settings.member],
            "model": worlds.resolve().name,
            "model_seeds": world.facts["seeds"],
        }
    infos = {"row": np.flatnonzero(keep)}
    extras = Extras(infos, {"select": json.dumps(finite(notes), allow_nan=False)})
    export(pieces(dataset, keep), file, extras)
    return summary(load_dataset(file))


def join(sources: Sequence[str | Path], out: str | Path, env_id: str | None = None) -> Summary:
    """Write the episodes of several datasets into one file; ``worldrl data join``.

    Args:
        out: a file; it must not exist.
        env_id: what the whole is about; None: the environment that all name.

    Returns:
        What the file holds.

    Raises:
        DataError: the datasets are of different systems, or ``out`` exists.
    """
    file = Path(out)
    check_out(file)
    datasets = [load_dataset(source) for source in sources]
    rows = [dataset.num_transitions for dataset in datasets]
    notes = [
        {"source": Path(d.metadata.source).name, "source_sha256": d.metadata.sha256, "rows": count}
        for d, count in zip(datasets, rows, strict=True)
    ]
    infos = {"source": np.repeat(np.arange(len(rows)), rows)}
    extras = Extras(infos, {"join": json.dumps(notes)})
    export(joined(datasets, env_id), file, extras)
    return summary(load_dataset(file))


class LoadedPolicy:
    """The policies of a run, ready to act.

    Args:
        path: of the run, or of one of its checkpoints.

    Attributes:
        population: P, the members of the run.
        steps: ``(P,)``, updates of each member's policy.
        environment_steps: that each member was fine-tuned for; None where it was not.
        stopped_by_guard: ``(P,)``, members whose last good policy this is, not their last.
        shared_model: all members learned in one world model.
        env_id: the environment of the run's data, if the data says.
        action_low, action_high: ``(A,)``, environment units of -1 and 1.
    """

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        directory, last = checkpoint.located(Path(path))
        settings = directory.read_config()
        saved = None if last is None else checkpoint.load(last, device, state=False)
        if saved is None or "policy" not in saved.plain or isinstance(settings, PretrainConfig):
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
        kept = isinstance(settings, TrainConfig) and settings.acceptance.kind != "none"
        self.steps = tuple(
            memory["good_step"] if kept or trip is not None else group["step"]
            for group in progress["groups"]
            for trip, memory in zip(group["trips"], group["guards"], strict=True)
        )
        online = isinstance(settings, FinetuneConfig)
        self.environment_steps: int | None = saved.plain["step"] if online else None
        self.observation_size: int = facts["observation_size"]
        self.env_id: str | None = facts["env_id"]
        self.shared_model: bool = facts["shared_model"]
        self.action_low = np.asarray(facts["action_low"], np.float32)
        self.action_high = np.asarray(facts["action_high"], np.float32)
        self.learner = LEARNERS[settings.learner.kind](
            settings.learner, self.observation_size, len(self.action_low), settings.num_updates
        )
        self.parameters = {
            name.removeprefix("policy/"): value for name, value in saved.model.items()
        }

    @torch.no_grad()
    def __call__(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """``(P, B, S), (P, B, A) or None (deterministic) -> (P, B, A)`` in [-1, 1]."""
        return self.learner.act(self.parameters, observation, noise)

    def member(self, number: int) -> Parameters:
        """The policy of one member, ``(1, ...)``."""
        return {name: value[number : number + 1] for name, value in self.parameters.items()}

    def check_fits(self, logged: Logged) -> None:
        """Refuse data that the policy does not act on.

        Raises:
            DataError: sizes or action bounds differ.
        """
        sizes = self.observation_size, len(self.action_low)
        bounds = (self.action_low, logged.action_low), (self.action_high, logged.action_high)
        if sizes != (logged.observation_size, logged.action_size) or not all(
            np.allclose(*pair) for pair in bounds
        ):
            raise DataError(
                f"the policy of {self.run} does not act on this data: observations, actions or "
                "their bounds are others. Name the data that it learned from"
            )

    @torch.no_grad()
    def act(self, observations: NDArray[Any], member: int = 0) -> NDArray[np.float32]:
        """Deterministic actions of one member: ``(B, S) -> (B, A)`` in environment units."""
        own = self.member(member)
        observation = torch.as_tensor(np.asarray(observations, np.float32))[None]
        unit = self.learner.act(own, observation.to(next(iter(own.values())).device), None)
        scaled = from_unit(unit[0].cpu().numpy(), self.action_low, self.action_high)
        return scaled.astype(np.float32)


def load_policy(path: str | Path, device: str = "cpu") -> LoadedPolicy:
    """The policies of a train run's last checkpoint, or of the checkpoint that is named.

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
    settings = policy.settings
    if env_id is not None:
        scoring = _scoring(policy.env_id, env_id, True)
    elif isinstance(settings, FinetuneConfig):
        scoring = online_scoring(settings, policy.env_id)
    else:
        own = settings.evaluation
        scoring = _scoring(policy.env_id, own.env_id, own.allow_other_environment)
    result = _score(
        policy,
        policy.population,
        (policy.action_low, policy.action_high),
        scoring,
        episodes,
        seed,
        device,
    )
    return replace(
        result,
        steps=policy.steps,
        stopped_by_guard=policy.stopped_by_guard,
        shared_model=policy.shared_model,
        environment_steps=policy.environment_steps,
    )


def evaluate_offline(
    paths: Sequence[str | Path],
    model: str | Path | None = None,
    dataset: str | None = None,
    settings: JudgeSettings | None = None,
    env_id: str | None = None,
    episodes: int = 10,
    seed: int = 0,
    device: str = "cpu",
    quiet: bool = False,
) -> OfflineResult:
    """Judge policies in a world model, without the real system; ``worldrl evaluate --offline``.

    Args:
        paths: runs, or checkpoints of runs, of one environment.
        model: the run whose worlds judge; None: the first run's own worlds.
        dataset: what the worlds and the critics learned from; None: the first run's data.
        env_id: play episodes there too, to tell how well the estimates rank the policies.
        episodes, seed: of those episodes.

    Raises:
        RunError: there is no policy, no model, or critics of other data.
        ModelError: the model does not fit the data.
        DataError: a policy does not act on this data.
    """
    from worldrl.evaluation.off_policy import Judged, OfflineResult

    unique = list(dict.fromkeys(Path(path).resolve() for path in paths))  # `last` is a link
    policies = [load_policy(path, device) for path in unique]
    first = policies[0]
    source = first.settings.dataset
    if dataset is not None:
        source = source.model_copy(update={"source": dataset})
    worlds = worlds_of(first.run, first.settings) if model is None else Path(model)
    settings, place = settings or JudgeSettings(), torch.device(device)
    bench = judge_of_runs(worlds, source, first.settings, settings, place, quiet)
    found = []
    for path, policy in zip(unique, policies, strict=True):
        policy.check_fits(bench.logged)
        played: Sequence[float | None] = [None] * policy.population
        if env_id is not None:
            bounds = policy.action_low, policy.action_high
            scoring = _scoring(policy.env_id, env_id, True)
            result = _score(policy, policy.population, bounds, scoring, episodes, seed, device)
            played = [float(np.mean(row)) for row in result.returns]
        own = learned_in(worlds, policy.run, policy.settings)
        found += [
            Judged(
                str(path),
                member,
                policy.steps[member],
                own,
                bench.judge.estimate(policy.learner, policy.member(member)),
                played[member],
            )
            for member in range(policy.population)
        ]
    return OfflineResult(bench.protocol, tuple(found))


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


def systems() -> Systems:
    """What runs build."""
    return Systems(scorer, environments, simulator)


def environments(settings: FinetuneConfig, recorded: str | None) -> Callable[[], gymnasium.Env]:
    """What builds the environments that policies are fine-tuned in."""
    factory = online_scoring(settings, recorded).factory
    factory().close()  # says now, not after hours, what is missing
    return factory


def online_scoring(settings: FinetuneConfig, recorded: str | None) -> Scoring:
    """The environment to fine-tune and to score in.

    Raises:
        EnvironmentSetupError: none is named, it cannot be built, or it is another one than the
            data's and ``settings`` do not allow that.
    """
    if recorded is None and settings.env_id is None:
        raise EnvironmentSetupError(
            "the data does not name the environment that recorded it. Say where to go on: "
            "env_id=Hopper-v5, for example."
        )
    scoring = _scoring(recorded, settings.env_id, True)
    if scoring.other_environment and not settings.allow_other_environment:
        raise EnvironmentSetupError(
            f"the data was recorded in '{scoring.recorded_env_id}', and '{scoring.env_id}' is "
            "another environment. Set allow_other_environment=true to fine-tune and score there; "
            "results are marked."
        )
    return scoring


def scorer(settings: TrainConfig | FinetuneConfig, recorded: str | None) -> Scorer:
    """Scores policies during training as ``settings.evaluation`` says."""
    evaluation = settings.evaluation
    if isinstance(settings, FinetuneConfig):
        scoring = online_scoring(settings, recorded)
    else:
        own = settings.evaluation
        scoring = _scoring(recorded, own.env_id, own.allow_other_environment)
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
