"""What the stages of one process's work on a run share."""

from __future__ import annotations

import sys
from typing import Any

import torch

from worldrl.config.schema import Config
from worldrl.data.dataset import Dataset, load
from worldrl.errors import ConfigError, RunError
from worldrl.training import checkpoint
from worldrl.training.compilation import should_compile
from worldrl.training.environment import environment_record, set_determinism
from worldrl.training.logged import logged
from worldrl.training.loop import Session
from worldrl.training.rewards import reward_transform
from worldrl.training.run_directory import DatasetRecord, RunDirectory
from worldrl.training.stages import Snapshot, Stage, group_seeds


class Execution:
    """The data on the device, the seeds, and what was decided when the run began.

    Attributes:
        session: what the loop needs; set once the run's files are open.
        groups: seeds of the members that are trained together.
        compile: what is compiled, by name: decided once and kept in every checkpoint.
    """

    session: Session

    def __init__(
        self, run: RunDirectory, config: Config, saved: checkpoint.Checkpoint | None
    ) -> None:
        self.run, self.config, self.saved = run, config, saved
        before = saved.plain if saved else {}
        # auto was decided when the run began: another kind of device groups members otherwise.
        auto = config.device == "auto"
        self.device = device_of(before.get("device", "auto") if auto else config.device)
        self.determinism = set_determinism(
            before.get("threads", config.threads),
            self.device.type,
            before.get("flush_denormal", True),
        )
        if before.get("flush_denormal") and not self.determinism.flush_denormal:
            raise RunError(
                f"{run.path} flushes denormal numbers to zero, and the threads that torch has "
                "started in this process do not: the run would go on inexactly. Resume it in a "
                f"process of its own: worldrl resume {run.path}"
            )
        self.compile: dict[str, bool] = dict(before.get("compile", {}))
        self.groups = group_seeds(config.seed, config.population, self.device)
        settings = config.dataset
        self.dataset = load(
            settings.source, env_id=settings.env_id, max_episode_steps=settings.max_episode_steps
        )
        self._record(self.dataset)
        rewards = reward_transform(settings, self.dataset)
        self.logged = logged(self.dataset, self.device, rewards)

    @property
    def seeds(self) -> list[int]:
        """Of all members."""
        return [seed for group in self.groups for seed in group]

    def launch(self) -> None:
        """Let Fabric take the device, after everything that is refused without work."""
        from lightning.fabric import Fabric

        devices = [self.device.index] if self.device.index is not None else 1
        fabric = Fabric(accelerator=self.device.type, devices=devices)
        fabric.launch()
        assert fabric.device.type == self.device.type

    def compiles(self, what: str, calls: int, worth_it_from: int) -> bool:
        """Whether to compile a function that is called so often."""
        if what not in self.compile:
            self.compile[what] = should_compile(
                self.config.compile, calls, worth_it_from, self.device
            )
        self.session.plain = {**self.session.plain, **self.decisions}
        return self.compile[what]

    @property
    def decisions(self) -> dict[str, Any]:
        """What was decided when the run began; a checkpoint holds it, and resuming keeps to it."""
        return {
            "device": self.device.type,
            "compile": dict(self.compile),
            "threads": self.determinism.threads,
            "flush_denormal": self.determinism.flush_denormal,
        }

    def restore(self, stage: Stage) -> None:
        """Bring ``stage`` to where the run's checkpoint left it, if it is of this stage."""
        saved = self.saved
        if saved is not None and saved.plain["stage"] == stage.name:
            state = {name: value.to(self.device) for name, value in saved.state.items()}
            stage.restore(Snapshot(saved.model, state, saved.plain["progress"]))

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


def device_of(setting: str) -> torch.device:
    """The device that a setting names.

    Raises:
        ConfigError: there is no such device here.
    """
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(setting)
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
