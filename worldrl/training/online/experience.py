"""Experience from the environment itself: every member plays in its own and keeps what it lives
through.

What is drawn is a function of seed and step, so a checkpoint holds the transitions, a few counters
and no generator. The episode that is being played when a run is resumed is played again: the
environment is reset with its seed and given the actions of the episode's transitions. That is exact
where an environment's randomness comes from the seed of its reset alone. Where what it observes is
not what was recorded, the member begins a new episode and says so.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldrl.config.schema import FinetuneConfig
from worldrl.data.actions import from_unit
from worldrl.errors import EnvironmentSetupError
from worldrl.evaluation.returns import Env, action_bounds, observation_size
from worldrl.random import draw, stream_seed
from worldrl.training.logged import Logged
from worldrl.types import Learner, LearnerState, Metrics, Parameters

#: Steps whose noise is drawn at once.
BLOCK = 1_000

#: Latest episodes over which returns are reported.
RECENT = 10


@dataclass
class Life:
    """How far one member is; JSON-able."""

    episode: int = 0
    """Number of the one that is being played; its start follows from it."""
    length: int = 0
    returned: float = 0.0
    """Undiscounted, as the environment pays, like all returns here."""
    warmup_returns: list[float] = field(default_factory=list)
    """Of the episodes that ended in the warm-up."""
    returns: list[float] = field(default_factory=list)
    """Of the latest episodes that ended after it."""
    episodes: int = 0
    """Ended ones."""
    reward_max: float = 0.0
    """In size, as learners see rewards."""
    reward_squares: float = 0.0
    """Their sum."""


class OnlineExperience:
    """The transitions of one group's members, and their environments; a
    :class:`worldrl.types.Experience` that is renewed by a step of every member.

    Attributes:
        steps: of every member in its environment so far.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        learner: Learner,
        seeds: Sequence[int],
        environments: Sequence[Env],
        logged: Logged,
    ) -> None:
        self._config, self._learner, self._logged = config, learner, logged
        self._seeds, self._environments = list(seeds), list(environments)
        members, self.capacity = len(seeds), min(config.replay_capacity, config.num_steps)
        self._rows = logged.rows.new_zeros(members, self.capacity, logged.rows.shape[1])
        self.metrics: Metrics = {}
        self.steps = 0
        self.lives = [Life() for _ in seeds]
        self.saved = 0  # rows of each member that a checkpoint holds
        self._noise: tuple[tuple[str, int], Tensor] | None = None
        self._bounds = [self._fitting(one) for one in environments]
        self._observation = np.zeros((members, logged.observation_size), np.float32)
        self._begun = False

    def _fitting(self, environment: Env) -> tuple[NDArray[Any], NDArray[Any]]:
        size, wanted = observation_size(environment), self._logged.observation_size
        if size != wanted:
            raise EnvironmentSetupError(
                f"the environment observes {size} numbers, and the data holds {wanted}: it is "
                "another one. Give the environment of the data as env_id"
            )
        return action_bounds(environment, self._logged.action_size)

    def earliest(self, count: int) -> Tensor:
        """The first transitions of each member ``(P, count, W)``, while all are kept."""
        return self._rows[:, :count]

    def close(self) -> None:
        """Close the environments."""
        for environment in self._environments:
            environment.close()

    @property
    def held(self) -> int:
        """Transitions of each member."""
        return min(self.steps, self.capacity)

    # -- what a group of learners asks for -------------------------------------------------

    def renew(self, step: int, learner: LearnerState) -> int:
        """Play up to the step that update ``step`` learns after; the update that asks for more."""
        config = self._config
        done = step // config.updates_per_step
        self.play(config.warmup_steps + done + 1, self._learner.policy_parameters(learner))
        return (done + 1) * config.updates_per_step

    @property
    def rows(self) -> Tensor:
        """``(m, W)``, all members' rows."""
        return self._rows.flatten(0, 1)

    def indices(self, uniform: Tensor) -> Tensor:
        """``(P, ...)`` float64 in [0, 1) to rows of the member's own, uniformly."""
        member = torch.arange(len(uniform), device=uniform.device) * self.capacity
        return (uniform * self.held).long() + member.view(-1, *[1] * (uniform.dim() - 1))

    def rows_held(self) -> list[int]:
        """Rows of every member."""
        return [self.held] * len(self._seeds)

    def tensors(self, learner: LearnerState) -> dict[str, Tensor]:
        """The transitions, as many as :attr:`saved` says."""
        return {"rows": self._rows[:, : self.saved]}

    def ledger(self) -> dict[str, Any]:
        """The counters; JSON-able."""
        return {"steps": self.steps, "lives": [asdict(life) for life in self.lives]}

    def expect(self, ledger: dict[str, Any], learner: LearnerState) -> None:
        """Take over the counters; the transitions are restored next."""
        self.steps = ledger["steps"]
        self.lives = [Life(**life) for life in ledger["lives"]]

    def remake(self) -> None:
        """Bring the environments to where they were."""
        for member in range(len(self._seeds)):
            if not self._replayed(member):
                print(
                    f"worldrl: seed {self._seeds[member]}: the episode that was being played does "
                    "not come out as it did, so a new one begins: this environment is not a "
                    "function of its seed and the actions, or has changed",
                    file=sys.stderr,
                )
                self._begin(member, self.lives[member].episode + 1)
        self._begun = True

    # -- playing ---------------------------------------------------------------------------

    @torch.no_grad()
    def play(self, until: int, policy: Parameters) -> None:
        """Every member, with this policy, up to its step number ``until``."""
        if not self._begun:
            for member, life in enumerate(self.lives):
                self._begin(member, life.episode)
            self._begun = True
        while self.steps < until:
            action = self._actions(policy)
            packed = [self._step(member, action[member]) for member in range(len(action))]
            self._rows[:, self.steps % self.capacity] = torch.from_numpy(np.stack(packed)).to(
                self._rows.device
            )
            self.steps += 1

    def _actions(self, policy: Parameters) -> NDArray[np.float32]:
        """``(P, A)`` in [-1, 1]: of the policy as it explores, or uniform in such a warm-up."""
        device = self._rows.device
        shape = (BLOCK, self._logged.action_size)
        warm = self.steps < self._config.warmup_steps
        uniform = warm and self._config.warmup_policy == "uniform"
        key = ("finetune.uniform" if uniform else "finetune.explore", self.steps // BLOCK)
        if self._noise is None or self._noise[0] != key:
            sample = torch.rand if uniform else torch.randn
            drawn = draw(
                self._seeds, *key, lambda g: sample(shape, generator=g, device=device), device
            )
            self._noise = key, drawn
        noise = self._noise[1][:, self.steps % BLOCK]
        if uniform:
            action = 2 * noise - 1
        else:
            observation = torch.from_numpy(self._observation).to(device)
            action = self._learner.act(policy, observation[:, None], noise[:, None])[:, 0]
        return action.to("cpu", torch.float32).numpy()

    def _step(self, member: int, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """One step; the packed transition ``(W,)``."""
        life, before = self.lives[member], self._observation[member].copy()
        after, paid, terminated, truncated = self._taken(member, action)
        reward = float(self._logged.rewards(np.array([paid], np.float32))[0])
        if not (np.isfinite(after).all() and math.isfinite(reward)):
            raise EnvironmentSetupError(
                f"the environment gave an observation or a reward that is not finite, to seed "
                f"{self._seeds[member]} at step {self.steps}: no policy can learn from it"
            )
        life.length += 1
        life.returned += paid
        life.reward_max = max(life.reward_max, abs(reward))
        life.reward_squares += reward**2
        packed = np.concatenate([before, action, [reward], after, [float(terminated)]])
        if terminated or truncated:
            warm = self.steps < self._config.warmup_steps
            (life.warmup_returns if warm else life.returns).append(life.returned)
            del life.returns[:-RECENT]
            life.episodes += 1
            self._begin(member, life.episode + 1)
        else:
            self._observation[member] = after
        return packed.astype(np.float32)

    def _taken(
        self, member: int, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool]:
        logged, (low, high) = self._logged, self._bounds[member]
        scaled = np.clip(from_unit(action, logged.action_low, logged.action_high), low, high)
        outcome = self._environments[member].step(scaled.astype(low.dtype))
        after, reward, terminated, truncated, _ = outcome
        return np.array(after, np.float32).ravel(), float(reward), bool(terminated), bool(truncated)

    def _begin(self, member: int, episode: int) -> None:
        life = self.lives[member]
        life.episode, life.length, life.returned = episode, 0, 0.0
        self._observation[member] = self._reset(member, episode)

    def _reset(self, member: int, episode: int) -> NDArray[np.float32]:
        seed = stream_seed(self._seeds[member], "finetune.episode", episode) & 0x7FFFFFFF
        first, _ = self._environments[member].reset(seed=seed)
        return np.array(first, np.float32).ravel()

    def _replayed(self, member: int) -> bool:
        """Play the member's episode again, as far as it was; False where it comes out otherwise."""
        life = self.lives[member]
        if life.length > self.capacity:
            return False  # its first actions are forgotten
        numbers = torch.arange(self.steps - life.length, self.steps) % self.capacity
        rows = self._rows[member, numbers.to(self._rows.device)].cpu().numpy()
        size, width = self._logged.observation_size, self._logged.action_size
        observation = self._reset(member, life.episode)
        for row in rows:
            if not np.array_equal(observation, row[:size]):
                return False
            observation, _, terminated, truncated = self._taken(member, row[size : size + width])
            following = row[size + width + 1 : -1]
            if terminated or truncated or not np.array_equal(observation, following):
                return False
        self._observation[member] = observation
        return True
