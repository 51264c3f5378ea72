"""The policies of a run, ready to act."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldrl.config.schema import FinetuneConfig, PretrainConfig, TrainConfig
from worldrl.data.actions import from_unit
from worldrl.errors import DataError, RunError
from worldrl.learners import LEARNERS
from worldrl.training import checkpoint
from worldrl.training.logged import Logged
from worldrl.types import Parameters

if TYPE_CHECKING:
    pass


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
