"""The Python API: what the commands do, as functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from worldrl.config.judging import JudgeSettings
from worldrl.config.label import LabelSettings
from worldrl.config.loader import load_config
from worldrl.config.schema import Config, FinetuneConfig, PretrainConfig, TrainConfig
from worldrl.config.selection import SelectSettings
from worldrl.data.dataset import load as load_dataset
from worldrl.data.export import Extras, export
from worldrl.data.measures import Summary, summary
from worldrl.data.pieces import joined, pieces
from worldrl.errors import ConfigError, DataError, RunError
from worldrl.policy import LoadedPolicy, load_policy
from worldrl.strict_json import finite
from worldrl.systems import online_scoring, score_policy, scorer, scoring_of, systems
from worldrl.training import run
from worldrl.training.judging.runs import judge_of_runs, learned_in, termination_of, worlds_of
from worldrl.training.label_file import LabelResult, check_out, label_file
from worldrl.training.logged import logged
from worldrl.training.rewards import reward_transform
from worldrl.training.run import RunResult
from worldrl.training.world.pretrain import given_world

if TYPE_CHECKING:
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
        scoring = scoring_of(policy.env_id, env_id, True)
    elif isinstance(settings, FinetuneConfig):
        scoring = online_scoring(settings, policy.env_id)
    else:
        own = settings.evaluation
        scoring = scoring_of(policy.env_id, own.env_id, own.allow_other_environment)
    result = score_policy(
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
            scoring = scoring_of(policy.env_id, env_id, True)
            result = score_policy(
                policy, policy.population, bounds, scoring, episodes, seed, device
            )
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
