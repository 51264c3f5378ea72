"""From a configuration to a finished run, and from a stopped run to a finished one."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from worldrl.config.members import per_member
from worldrl.config.schema import BranchedSettings, Config, TrainConfig
from worldrl.data.dataset import Dataset, load
from worldrl.errors import ConfigError, RunError, WorldRLError
from worldrl.imagination.learned_termination import fit_termination
from worldrl.imagination.rollout import chunk_rows
from worldrl.learners import LEARNERS
from worldrl.models.world import World
from worldrl.rows import unpack
from worldrl.strict_json import finite
from worldrl.training import checkpoint
from worldrl.training.compilation import should_compile
from worldrl.training.environment import environment_record, set_determinism
from worldrl.training.files import writing
from worldrl.training.logged import logged
from worldrl.training.loop import Session, StoppedEarly, run_stage
from worldrl.training.metrics import MetricsWriter, truncate_after
from worldrl.training.model_report import choose_test_episodes, measure_world, summary
from worldrl.training.policy import PolicyStage, check_buffers
from worldrl.training.run_directory import DatasetRecord, RunDirectory, RunState, Status
from worldrl.training.signals import StopRequests
from worldrl.training.stages import Snapshot, flat, group_seeds, join
from worldrl.training.world import EnsembleStage, holdout_size
from worldrl.training.world_model import (
    WorldModel,
    check_fits,
    ends_function,
    ensemble_from,
    load_world,
    members,
    save_world,
    where_episodes_end,
    with_termination,
)
from worldrl.types import Learner, Policy

#: Calls from which compiling, tens of seconds with a cold cache, is repaid on a CPU.
UPDATES_WORTH_COMPILING = 15_000
STEPS_WORTH_COMPILING = 6_000
CHUNKS_WORTH_COMPILING = 1_500


@dataclass(frozen=True)
class RunResult:
    """What ``pretrain``, ``train`` and ``resume`` return."""

    run: Path
    steps: int
    seconds: float
    metrics: dict[str, Any]
    status: str
    exit_code: int


class Scorer(Protocol):
    """Scores policies in an environment; built by whoever may import environments."""

    def __call__(
        self, policy: Policy, population: int, action_low: Any, action_high: Any, device: Any
    ) -> Mapping[str, Any]:
        """A JSON-able record with at least ``return_mean``."""
        ...


#: ``(config, the dataset's environment id) -> Scorer``
ScorerFactory = Callable[[TrainConfig, str | None], Scorer]


def start(
    config: Config,
    out: Path | None = None,
    quiet: bool = False,
    scorers: ScorerFactory | None = None,
) -> RunResult:
    """Run ``config`` in a new run directory.

    Args:
        out: a new or empty directory; None makes one under ``runs/``.
        quiet: no progress lines.
        scorers: builds environments for ``eval_every``; without it none is ever built.

    Raises:
        WorldRLError: something is wrong with the settings, the data, the model or the directory.
    """
    config = _with_model_settings(_with_whole_paths(config))
    with RunDirectory.create(out, config) as run:
        try:
            return _Execution(run, config, quiet, scorers, None).execute()
        except WorldRLError:
            if not run.status_file.exists():  # no stage began: the name is free for another try
                run.remove()
            raise


def resume(path: Path, quiet: bool = False, scorers: ScorerFactory | None = None) -> RunResult:
    """Continue a stopped or killed run exactly; a finished one is left as it is.

    Raises:
        WorldRLError: there is no run, it is in use, or its data or machine changed.
    """
    with RunDirectory.open(path, exclusive=True) as run:
        if run.status_file.exists():
            status = run.read_status()
            if status.state in ("finished", "stopped_by_guard"):
                print(f"worldrl: nothing to resume: {path} is {status.state}", file=sys.stderr)
                return RunResult(
                    path, status.step, status.seconds, dict(status.metrics), status.state, 0
                )
        last = checkpoint.last_checkpoint(run)
        saved = None if last is None else checkpoint.load(last)
        return _Execution(run, run.read_config(), quiet, scorers, saved).execute()


class _Execution:
    """One process's work on a run."""

    def __init__(
        self,
        run: RunDirectory,
        config: Config,
        quiet: bool,
        scorers: ScorerFactory | None,
        saved: checkpoint.Checkpoint | None,
    ) -> None:
        self.run, self.config, self.quiet, self.scorers = run, config, quiet, scorers
        self.saved = saved
        before = saved.plain if saved else {}
        self.seconds_before = float(before.get("seconds", 0.0))
        self.device = _device(config.device)
        self.determinism = set_determinism(
            before.get("threads", config.threads),
            self.device.type,
            before.get("flush_denormal", True),
        )
        self.compile: dict[str, bool] = dict(before.get("compile", {}))
        self.groups = group_seeds(config.seed, config.population, self.device)
        self.seeds = [seed for group in self.groups for seed in group]

    def execute(self) -> RunResult:
        """Every stage that is not done yet."""
        config, run = self.config, self.run
        settings = config.dataset
        dataset = load(
            settings.source, env_id=settings.env_id, max_episode_steps=settings.max_episode_steps
        )
        self._record(dataset)
        self.dataset, self.logged = dataset, logged(dataset, self.device)
        self.scorer = self._scorer()
        if isinstance(config, TrainConfig) and isinstance(config.imagination, BranchedSettings):
            check_buffers(config.imagination, config.population, self.logged)
        self._launch()
        before: dict[str, Any] = {"stage": "pretrain", "step": -1}
        if self.saved is not None:
            before = self.saved.plain
        for file in run.metrics_file, run.eval_file:
            truncate_after(file, before["stage"], before["step"])
        tensorboard = run.path / "tensorboard" if config.tensorboard else None
        with StopRequests() as stop, MetricsWriter(run.metrics_file, tensorboard) as metrics:
            self.session = Session(
                run,
                config,
                metrics,
                stop,
                self.quiet,
                {},
                self.seconds_before,
                time.monotonic(),
            )
            try:
                return self._stages()
            except WorldRLError:
                status = run.read_status() if run.status_file.exists() else None
                if status is not None:
                    run.write_status(replace(status, state="failed"))
                raise
            except StoppedEarly as early:
                status = run.read_status()
                return RunResult(
                    run.path,
                    status.step,
                    status.seconds,
                    dict(status.metrics),
                    "interrupted",
                    early.exit_code,
                )

    def _stages(self) -> RunResult:
        model: WorldModel | None = None
        if not isinstance(self.config, TrainConfig) or isinstance(
            self.config.imagination, BranchedSettings
        ):
            model = self._world()
            if not isinstance(self.config, TrainConfig):
                return self._finish("pretrain", model.facts["steps"], model.facts["metrics"])
        return self._policy(model)

    # -- the world -------------------------------------------------------------------------

    def _world(self) -> WorldModel:
        """The run's world model: its own, a given run's, or a new one."""
        run, config = self.run, self.config
        if not (run.model / "model.json").exists():
            if config.model.source is not None:
                model = self._borrowed(Path(config.model.source))
            else:
                model = self._pretrain()
            save_world(run.model, model)
        model = load_world(run.model, self.device)
        check_fits(model, self.logged, config.population, str(run.model))
        return model

    def _borrowed(self, source: Path) -> WorldModel:
        with RunDirectory.open(source) as other:
            if not (other.model / "model.json").exists():
                raise RunError(
                    f"{source} holds no finished world model. Finish it with `worldrl resume "
                    f"{source}`, or train one with `worldrl pretrain ensemble`."
                )
            model = load_world(other.model, self.device)
        check_fits(model, self.logged, self.config.population, str(source))
        metadata = self.dataset.metadata
        if model.facts["dataset_sha256"] != metadata.sha256:
            print(
                f"worldrl: warning: the model in {source} was trained on other data than "
                f"{metadata.source}",
                file=sys.stderr,
            )
        return with_termination(model, self.config.termination, metadata.env_id, self.logged)

    def _pretrain(self) -> WorldModel:
        config, logged = self.config, self.logged
        env_id = self.dataset.metadata.env_id
        test = choose_test_episodes(self.dataset, config.model.test_ratio)
        trainable = logged.next_known & ~torch.from_numpy(test).to(self.device)[logged.episode]
        rows = trainable.nonzero().squeeze(1)
        if len(rows) < 2:
            raise ConfigError(
                f"{config.dataset.source} has {len(rows)} transition(s) with a known next "
                "observation; a model needs at least 2, and thousands to be of use."
            )
        decision = where_episodes_end(config.termination, env_id, logged, rows)
        per_epoch = max((len(rows) - holdout_size(config.model, len(rows))), 1)
        epochs = config.model.max_epochs or 30  # what early stopping usually takes
        calls = per_epoch // config.model.batch_size * epochs * config.population
        self._decide("pretrain", calls, STEPS_WORTH_COMPILING)
        stage = EnsembleStage(
            config.model,
            self.groups,
            logged,
            rows,
            self.compile["pretrain"],
            config.precision == "bf16",
        )
        if self.saved is not None and self.saved.plain["stage"] == "pretrain":
            stage.restore(_snapshot(self.saved, self.device))
        metrics = run_stage(stage, self.session)
        stage.check_learned()
        terminator: dict[str, Tensor] = {}
        if decision["kind"] == "learned":
            transitions = unpack(logged.rows[rows], logged.observation_size, logged.action_size)
            learned = fit_termination(transitions, logged.episode[rows], self.seeds)
            terminator = learned.parameters
            decision |= finite(learned.holdout._asdict())
        tensors = join([flat(ensemble) for ensemble in stage.ensembles()])
        world = World(ensemble_from(tensors), terminator)
        ends = ends_function(decision, logged.observation_size)
        quality = measure_world(
            world, self.dataset, logged, test, stage.holdout(), self.seeds, ends
        )
        facts = {
            "observation_size": logged.observation_size,
            "action_size": logged.action_size,
            "action_low": logged.action_low.tolist(),
            "action_high": logged.action_high.tolist(),
            "env_id": env_id,
            "dataset_sha256": self.dataset.metadata.sha256,
            "seeds": self.seeds,
            "settings": config.model.model_dump(mode="json"),
            "termination": decision,
            "steps": stage.step,
            "metrics": finite(metrics | summary(quality)),
            "quality": quality.to_json(),
        }
        return WorldModel(world, facts)

    # -- the policy ------------------------------------------------------------------------

    def _policy(self, model: WorldModel | None) -> RunResult:
        config, logged = self.config, self.logged
        assert isinstance(config, TrainConfig)
        learner = LEARNERS[config.learner.kind](
            config.learner, logged.observation_size, logged.action_size, config.num_updates
        )
        worlds, ends = None, None
        if model is not None:
            sizes = [len(group) for group in self.groups]
            firsts = [sum(sizes[:index]) for index in range(len(sizes))]
            worlds = [
                members(model.world, first, size) for first, size in zip(firsts, sizes, strict=True)
            ]
            ends = ends_function(model.facts["termination"], logged.observation_size)
        self._decide("train", config.num_updates * config.population, UPDATES_WORTH_COMPILING)
        self._decide("rollout", _rollout_calls(config, self.device), CHUNKS_WORTH_COMPILING)
        facts = {
            "observation_size": logged.observation_size,
            "action_size": logged.action_size,
            "action_low": logged.action_low.tolist(),
            "action_high": logged.action_high.tolist(),
            "env_id": self.dataset.metadata.env_id,
        }
        self.session.plain = {**self.session.plain, "policy": facts}
        stage = PolicyStage(
            config,
            learner,
            self.groups,
            logged,
            worlds,
            ends,
            self.compile["train"],
            self.compile["rollout"],
        )
        if self.saved is not None and self.saved.plain["stage"] == "train":
            stage.restore(_snapshot(self.saved, self.device))
        metrics = run_stage(stage, self.session, self._evaluation(stage, learner))
        tripped = [trip for trip in stage.trips if trip is not None]
        for seed, trip in zip(
            (s for group in self.groups for s in group), stage.trips, strict=True
        ):
            if trip is not None:
                print(
                    f"worldrl: the guard stopped seed {seed} at update {trip.step} and kept its "
                    f"last good policy: {trip.reason}",
                    file=sys.stderr,
                )
        if tripped:
            metrics["guard"] = [trip and trip.reason for trip in stage.trips]
        state: RunState = "stopped_by_guard" if len(tripped) == config.population else "finished"
        return self._finish("train", stage.step, metrics, state)

    def _scorer(self) -> Scorer | None:
        """Asked for before anything is trained: an environment may turn out to be missing."""
        config = self.config
        if not isinstance(config, TrainConfig) or not config.eval_every or self.scorers is None:
            return None
        return self.scorers(config, self.dataset.metadata.env_id)

    def _evaluation(
        self, stage: PolicyStage, learner: Learner
    ) -> Callable[[int], Mapping[str, float]] | None:
        scorer = self.scorer
        if scorer is None:
            return None

        def evaluate(step: int) -> dict[str, float]:
            parameters = stage.policy_parameters()

            def policy(observation: Tensor, noise: Tensor | None) -> Tensor:
                return learner.act(parameters, observation, noise)

            record = scorer(
                policy,
                self.config.population,
                self.logged.action_low,
                self.logged.action_high,
                self.device,
            )
            stopped = [trip is not None for trip in stage.trips]
            line = finite({"stage": "train", "step": step, **record, "stopped_by_guard": stopped})
            with writing(self.run.eval_file), open(self.run.eval_file, "a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
            return {"return": record["return_mean"]}

        return evaluate

    # -- records ---------------------------------------------------------------------------

    def _record(self, dataset: Dataset) -> None:
        run = self.run
        record = DatasetRecord(
            self.config.dataset.source,
            dataset.metadata.sha256,
            {
                "transitions": dataset.num_transitions,
                "episodes": dataset.num_episodes,
                "env_id": dataset.metadata.env_id,
                "return_mean": float(dataset.returns().mean()),
                "return_max": float(dataset.returns().max()),
                "warnings": dataset.metadata.warnings,
            },
        )
        if run.dataset_file.exists():
            before = run.read_dataset()
            if before.sha256 != record.sha256:
                raise RunError(
                    f"{self.config.dataset.source} has changed since this run began (sha256 "
                    f"{before.sha256[:12]}..., now {record.sha256[:12]}...). Put the old file "
                    "back, or start a new run on the new data."
                )
            return
        for warning in dataset.metadata.warnings:
            print(f"worldrl: warning: {warning}", file=sys.stderr)
        run.write_environment(environment_record(str(self.device)))
        run.write_dataset(record)

    def _launch(self) -> None:
        from lightning.fabric import Fabric

        devices = [self.device.index] if self.device.index is not None else 1
        Fabric(accelerator=self.device.type, devices=devices).launch()

    def _decide(self, what: str, calls: int, worth_it_from: int) -> None:
        """Compile or not: decided once and kept in every checkpoint."""
        if what not in self.compile:
            self.compile[what] = should_compile(
                self.config.compile, calls, worth_it_from, self.device
            )
        self.session.plain = {
            **self.session.plain,
            "compile": dict(self.compile),
            "threads": self.determinism.threads,
            "flush_denormal": self.determinism.flush_denormal,
        }

    def _finish(
        self, stage: str, steps: int, metrics: dict[str, Any], state: RunState = "finished"
    ) -> RunResult:
        seconds = self.session.seconds
        self.run.write_status(Status(state, stage, steps, steps, seconds, metrics))
        return RunResult(self.run.path, steps, seconds, metrics, state, 0)


def _with_whole_paths(config: Config) -> Config:
    """Local sources as absolute paths, so that a run can be resumed from any folder."""
    source = Path(config.dataset.source)
    if source.exists():
        dataset = config.dataset.model_copy(update={"source": str(source.resolve())})
        config = config.model_copy(update={"dataset": dataset})
    return config


def _with_model_settings(config: Config) -> Config:
    """A given model's own settings in place of what the recipe would have trained."""
    if config.model.source is None:
        return config
    with RunDirectory.open(Path(config.model.source)) as run:
        trained = run.read_config().model
    source = str(Path(config.model.source).resolve())
    return config.model_copy(update={"model": trained.model_copy(update={"source": source})})


def _device(setting: str) -> torch.device:
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(setting)
    except RuntimeError:
        raise ConfigError(f"device={setting} is no device; use auto, cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index is not None):
        raise ConfigError(f"device={setting} is not supported; use auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device={setting}, but torch {torch.__version__} finds no CUDA device here. Use "
            "device=cpu, or install a CUDA build of torch and check `worldrl doctor`."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={setting}, but there are {torch.cuda.device_count()} CUDA devices here, "
            "counted from 0."
        )
    return device


def _snapshot(saved: checkpoint.Checkpoint, device: torch.device) -> Snapshot:
    state = {name: value.to(device) for name, value in saved.state.items()}
    return Snapshot(saved.model, state, saved.plain["progress"])


def _rollout_calls(config: TrainConfig, device: torch.device) -> int:
    """Model calls of all rollouts of a run."""
    imagination = config.imagination
    if not isinstance(imagination, BranchedSettings):
        return 0
    refreshes = math.ceil(config.num_updates / imagination.every)
    chunk = chunk_rows(imagination.batch_size, 1, device)
    depths = sum(per_member(imagination.horizon, config.population))
    return refreshes * math.ceil(imagination.batch_size / chunk) * depths
