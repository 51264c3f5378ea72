"""The judges of ``worldrl evaluate --offline``: from the runs that hold worlds and critics."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from worldrl.config.judging import JudgeSettings
from worldrl.config.schema import DatasetSettings, FinetuneConfig, PretrainConfig, TrainConfig
from worldrl.config.termination import TerminationSettings
from worldrl.data.dataset import load
from worldrl.errors import RunError
from worldrl.training.judging.judge import Judge, make_judge, read_values, values_config
from worldrl.training.logged import Logged, logged
from worldrl.training.loop import StoppedEarly
from worldrl.training.rewards import reward_transform
from worldrl.training.run import fit_values
from worldrl.training.run_directory import RunDirectory
from worldrl.training.world.pretrain import given_world


class Bench(NamedTuple):
    """A judge with what tells how it judges."""

    judge: Judge
    logged: Logged
    protocol: dict[str, Any]  # JSON-able


def worlds_of(run: Path, config: TrainConfig | FinetuneConfig) -> Path:
    """The run whose worlds are at hand: the one that was given, or the run itself.

    Raises:
        RunError: there is none.
    """
    found = _worlds(run, config)
    if found is None:
        raise RunError(
            f"{run} learned without a world model, and policies are judged in one. Name a run that "
            "holds a model of this data: --model RUN"
        )
    return found


def learned_in(worlds: Path, run: Path, config: TrainConfig | FinetuneConfig) -> bool:
    """Did a run's policies learn in these worlds, themselves or before they were fine-tuned?"""
    if isinstance(config, TrainConfig):
        found = _worlds(run, config) if config.uses_model else None
        return found is not None and found.resolve() == worlds.resolve()
    origin = _origin(config)
    return origin is not None and learned_in(worlds, *origin)


def _worlds(run: Path, config: TrainConfig | FinetuneConfig) -> Path | None:
    if isinstance(config, TrainConfig):
        given = config.model.source
        if given is not None and Path(given).is_dir():
            return Path(given)
        return run if (run / "model" / "model.json").exists() else None
    origin = _origin(config)
    return None if origin is None else _worlds(*origin)


def _origin(config: FinetuneConfig) -> tuple[Path, TrainConfig | FinetuneConfig] | None:
    """The run whose weights a fine-tuned one took over, where it still is."""
    if config.weights != "run" or config.run is None or not Path(config.run).is_dir():
        return None
    directory = RunDirectory.open(config.run)
    settings = directory.read_config()
    return None if isinstance(settings, PretrainConfig) else (directory.path, settings)


def termination_of(config: TrainConfig | FinetuneConfig) -> TerminationSettings:
    """How a run's imagined episodes end; fine-tuning imagines none."""
    return config.termination if isinstance(config, TrainConfig) else TerminationSettings()


def judge_of_runs(
    worlds: Path,
    dataset: DatasetSettings,
    like: TrainConfig | FinetuneConfig,
    settings: JudgeSettings,
    device: torch.device,
    quiet: bool = False,
) -> Bench:
    """The judge of a run's worlds; its critics are fitted once and kept beside them.

    Args:
        like: whose rule ends episodes, and whose threads and precision the critics learn with.

    Raises:
        WorldRLError: the data, the model or the critics do not fit each other.
    """
    data = load(dataset.source, env_id=dataset.env_id, max_episode_steps=dataset.max_episode_steps)
    rows = logged(data, device, reward_transform(dataset, data))
    model = given_world(worlds, rows, data.metadata, termination_of(like))
    seeds: list[int] = model.facts["seeds"]
    wanted = values_config(
        settings, dataset, seeds, like.model_copy(update={"device": str(device)})
    )
    place = Path(settings.values) if settings.values else worlds / f"values-{_digest(wanted, data)}"
    try:
        fit_values(place, wanted, quiet)
    except StoppedEarly:
        raise RunError(f"stopped; the values in {place} are learned on when asked again") from None
    judge = make_judge(model, read_values(place, data, rows, wanted), settings, rows)
    protocol = {
        "model": str(worlds),
        "seeds": seeds,
        "shared_model": model.facts.get("shared_model", False),
        "termination": model.facts["termination"],
        "values": str(place),
        "expectile": judge.learner.settings.expectile,
        "discount": judge.learner.settings.discount,
        "dataset": dataset.source,
        "dataset_sha256": data.metadata.sha256,
        "rewards": rows.rewards._asdict(),
        "horizon": settings.horizon,
        "num_starts": settings.num_starts,
        "action": "deterministic",
        "penalty": settings.penalty,
        "penalty_unit": judge.ground.unit.tolist(),
    }
    return Bench(judge, rows, protocol)


def _digest(config: TrainConfig, data: Any) -> str:
    """Names what the critics were learned from, and how."""
    facts = config.model_dump(mode="json", include={"learner", "num_updates", "seed", "population"})
    facts["rewards"] = config.dataset.model_dump(
        mode="json", include={"reward_normalization", "reward_scale", "reward_shift"}
    )
    text = json.dumps([facts, data.metadata.sha256], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
