"""One group of a run's policies: its learners, their experience beside the log, and the guards."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldrl.config.schema import FinetuneConfig, GuardSettings, TrainConfig
from worldrl.models.mlp import stack
from worldrl.random import draw, generator
from worldrl.training.guards import Memory, Scale, Trip, check, remedy
from worldrl.training.judging.acceptance import Gate, Standing
from worldrl.training.logged import Logged
from worldrl.training.sampling import RowSampler
from worldrl.training.stages import copy_into, flat, split
from worldrl.types import (
    Context,
    DelayedTargets,
    DynamicsModel,
    Experience,
    Learner,
    LearnerState,
    Log,
    Noise,
    Parameters,
)

#: Updates whose noise and indices are drawn at once, fewer where an update draws many numbers.
NOISE_BLOCK = 100
BLOCK_NUMBERS = 2**22

Update = Callable[..., None]

NOTHING_IMAGINED = (
    "no imagined transition was kept: every prediction was not finite, or every rollout was "
    "dropped at its first step; of a learned model set model.normalize_targets=true or train it "
    "longer; loosen imagination.stop or lower imagination.filter.limit where one is set"
)


class Members(NamedTuple):
    """Who is in a group, and what they have for themselves."""

    seeds: list[int]
    first: int  # number of the first seed's member in the run's population
    experience: Experience | None  # None: all rows of batches are logged
    context: Context
    anchors: Parameters  # the networks that an encoder asks; empty without one


def members_of(
    groups: Sequence[Sequence[int]],
    log: Log,
    experiences: Sequence[Experience] | None = None,
    models: Sequence[DynamicsModel] | None = None,
    anchors: Parameters | None = None,
) -> list[Members]:
    """Of every group.

    Args:
        groups: seeds.
        experiences, models: one a group, where there are any.
        anchors: the networks that the learner's encoder asks, if it has one, ``(P, ...)``.
    """
    sizes, nothing = [len(seeds) for seeds in groups], [None] * len(groups)
    own = experiences or nothing, models or nothing, split(anchors or {}, sizes)
    return [
        Members(list(seeds), first, experience, Context(log, model), networks)
        for seeds, first, experience, model, networks in zip(
            groups, accumulate(sizes[:-1], initial=0), *own, strict=True
        )
    ]


class PolicyGroup:
    """The learners of a few seeds, batched along P, with their experience beside the log: imagined,
    of an environment, or none."""

    def __init__(
        self,
        config: TrainConfig | FinetuneConfig,
        learner: Learner,
        members: Members,
        logged: Logged,
        sampler: RowSampler,  # of the logged rows of batches
        updates: Sequence[Update],  # one a phase of the learner
        gate: Gate | None,
    ) -> None:
        self.learner, self.logged, self._sampler, self._updates = learner, logged, sampler, updates
        self.seeds, first, self.experience, self._context, anchors = members
        self.total = config.num_updates
        self.batch_size = config.learner.batch_size
        self.state: LearnerState = learner.initialise(self.seeds, self._context.log, first)
        self.kept: LearnerState = copy.deepcopy(self.state)  # of the last good update
        self.learned, self.good = flat(self.state), flat(self.kept)
        # What is frozen is part of every policy (see worldrl.learners.inputs), and held once.
        frozen = {name: value.clone() for name, value in anchors.items()}
        for state in self.state, self.kept:
            state["inputs"] = state.get("inputs", {}) | frozen
        self.gate, self.standings = gate, [Standing()] * len(self.seeds)
        self.trips: list[Trip | None] = [None] * len(self.seeds)
        self.step = 0
        size = 2, len(learner.metric_names), len(self.seeds)
        self.sums = torch.zeros(size, device=logged.rows.device)
        self.memories = [Memory()] * len(self.seeds)
        self._block = block_length(learner, self.batch_size)
        self._noise: tuple[int, Noise, Tensor, Tensor] | None = None
        turn = learner.target_every if isinstance(learner, DelayedTargets) else 1
        self.scales = value_scales(logged, self.state["settings"], sampler, turn)
        self._remedy = remedy(config)
        # 0.29 * 100 is 28.999...: still 29 rows.
        self.real = int(config.logged_share * self.batch_size + 1e-9)

    @property
    def stopped(self) -> bool:
        """Every member was stopped by a guard."""
        return all(trip is not None for trip in self.trips)

    @property
    def finished(self) -> bool:
        return self.stopped or self.step >= self.total

    @property
    def left_in_block(self) -> int:
        """Updates until noise is drawn again."""
        return self._block - self.step % self._block

    @property
    def policy(self) -> Parameters:
        """What the run would end with now: the last policies, or the last accepted ones."""
        return self.learner.policy_parameters(self.state if self.gate is None else self.kept)

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Updates up to number ``until``, refreshing the synthetic buffer and judging policies
        where it is due."""
        while self.step < until and not self.stopped and not stop():
            end = min(until, self.step + self.left_in_block)
            if self.experience is not None:
                end = min(end, self.experience.renew(self.step, self.state))
                self._stop_without_rows(self.experience)
                if self.finished:
                    return
            if self.gate is not None:
                end = min(end, self.gate.next(self.step))
            self._run_updates(end - self.step)
            if self.gate is not None and (self.step == self.total or self.gate.due(self.step)):
                self._judge(self.gate)

    def _judge(self, gate: Gate) -> None:
        """Keep the policies that are accepted."""
        policy = self.learner.policy_parameters(self.state)
        for member, trip in enumerate(self.trips):
            if trip is None:
                own = {name: value[member : member + 1] for name, value in policy.items()}
                standing = gate.consider(self.learner, own, self.standings[member])
                self.standings[member] = standing
                if standing.last is not None and standing.last.accepted:
                    self._keep(member)

    def _keep(self, member: int) -> None:
        """What a member goes back to, should it be stopped."""
        self.memories[member] = self.memories[member]._replace(good_step=self.step)
        for name, value in self.learned.items():
            self.good[name][member] = value[member]

    def _stop_without_rows(self, experience: Experience) -> None:
        for member, rows in enumerate(experience.rows_held()):
            if rows == 0 and self.trips[member] is None:
                self.trips[member] = Trip(NOTHING_IMAGINED, self.step)

    def _run_updates(self, count: int) -> None:
        noise, real, uniform = self._noise_block(self.step // self._block)
        synthetic, imagined = self.logged.rows, real[:, :, :0]
        if self.experience is not None:
            synthetic, imagined = self.experience.rows, self.experience.indices(uniform)
        for step in range(self.step, self.step + count):
            index = step % self._block
            self._updates[step % len(self._updates)](
                self.state,
                self.logged.rows,
                synthetic,
                real[:, index],
                imagined[:, index],
                {name: value[:, index] for name, value in noise.items()},
                self._context,
                self.sums,
            )
        self.step += count
        self._hold_stopped()

    def _noise_block(self, block: int) -> tuple[Noise, Tensor, Tensor]:
        """Noise ``(P, K, ...)``, logged row numbers ``(P, K, real)`` and uniforms for the rest."""
        if self._noise is None or self._noise[0] != block:
            device = self.logged.rows.device
            rest = self.batch_size - self.real
            noise = stack(
                [
                    self.learner.noise(
                        generator(seed, "policy.noise", block, device), self._block, self.batch_size
                    )
                    for seed in self.seeds
                ]
            )
            real = draw(
                self.seeds,
                "policy.rows",
                block,
                lambda g: self._sampler.draw(g, (self._block, self.real)),
                device,
            )
            uniform = draw(
                self.seeds,
                "policy.imagined",
                block,
                lambda g: torch.rand(
                    self._block, rest, generator=g, device=g.device, dtype=torch.float64
                ),
                device,
            )
            self._noise = block, noise, real, uniform
        return self._noise[1:]

    def report(self, guard: GuardSettings) -> dict[str, list[float]]:
        """Means since the last report, health of imagination, and what the guards make of it."""
        means = self.sums[0] / self.sums[1].clamp(min=1)
        # A phase may leave a metric out: until its first value there is none.
        missing = {
            name
            for name, count in zip(
                self.learner.metric_names, self.sums[1, :, 0].tolist(), strict=True
            )
            if count == 0
        }
        means = means.where(self.sums[1] > 0, torch.nan)
        for member, trip in enumerate(self.trips):
            if trip is not None:
                means[:, member] = torch.nan  # of updates that were thrown away, or of none
        self.sums.zero_()
        metrics = dict(zip(self.learner.metric_names, means.tolist(), strict=True))
        if self.experience is not None:
            health = self.experience.metrics
            metrics |= {f"imagined_{name}": value.tolist() for name, value in health.items()}
        finite = torch.stack(
            [
                value.reshape(len(value), -1).isfinite().all(1)
                for name, value in self.learned.items()
                if not name.startswith("settings/")  # what is not capped has an infinite cap
            ]
        ).all(0)
        readings = []
        for member in range(len(self.seeds)):
            own = {name: v[member] for name, v in metrics.items() if name not in missing}
            scale, memory = self.scales[member], self.memories[member]
            verdict = check(guard, own, bool(finite[member]), self.step, scale, memory)
            readings.append(verdict.reading)
            if self.trips[member] is not None:
                continue
            calm = verdict.memory.good_step == self.step
            self.memories[member] = verdict.memory._replace(good_step=memory.good_step)
            if verdict.trip is not None and guard.enabled:
                reason = f"{verdict.trip.reason}; {self._remedy}"
                self.trips[member] = verdict.trip._replace(reason=reason)
            if calm and self.gate is None:
                self._keep(member)
        if "value_mean" in metrics:
            for name in ("value_limit", "value_growth", "value_pace"):
                metrics[name] = [getattr(reading, name) for reading in readings]
        if self.gate is not None:
            told = [standing.metrics() for standing in self.standings]
            metrics |= {name: [one[name] for one in told] for name in told[0]}
            metrics["accepted_step"] = [float(memory.good_step) for memory in self.memories]
        self._hold_stopped()
        return metrics

    def _hold_stopped(self) -> None:
        """Put stopped members back to their last good state: their group may go on."""
        stopped = [member for member, trip in enumerate(self.trips) if trip is not None]
        if stopped:
            for name, value in self.learned.items():
                value[stopped] = self.good[name][stopped]

    def tensors(self) -> dict[str, Tensor]:
        """References to everything that must be saved, each ``(P, ...)``."""
        found = {f"learner/{name}": value for name, value in self.learned.items()}
        found |= {f"good/{name}": value for name, value in self.good.items()}
        found["sums"] = self.sums.permute(2, 0, 1)
        if self.experience is not None:
            sources = self.experience.tensors(self.state)
            found |= {f"refreshes/{name}": value for name, value in sources.items()}
        return found

    def plain(self) -> dict[str, Any]:
        """The rest of what must be saved; JSON-able."""
        return {
            "step": self.step,
            "guards": [memory._asdict() for memory in self.memories],
            "trips": [None if trip is None else trip._asdict() for trip in self.trips],
            "standings": [standing.to_json() for standing in self.standings],
            "refreshes": [] if self.experience is None else self.experience.ledger(),
        }

    def restore(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Continue from what :meth:`tensors` and :meth:`plain` said.

        Raises:
            RunError: synthetic rows do not come out as they were.
        """
        self.step = plain["step"]
        self.memories = [Memory.from_json(memory) for memory in plain["guards"]]
        self.trips = [None if trip is None else Trip(**trip) for trip in plain["trips"]]
        # Absent where an earlier version wrote the checkpoint.
        told = plain.get("standings", [None] * len(self.seeds))
        self.standings = [Standing() if one is None else Standing.from_json(one) for one in told]
        if self.experience is not None:
            self.experience.expect(plain["refreshes"], self.state)
        copy_into(self.tensors(), tensors)
        if self.experience is not None:
            self.experience.remake()


def block_length(learner: Learner, batch_size: int) -> int:
    """Updates whose noise is drawn at once; a function of the settings alone."""
    one = learner.noise(torch.Generator(), 1, batch_size)
    numbers = sum(value.numel() for value in one.values())
    return max(min(NOISE_BLOCK, BLOCK_NUMBERS // max(numbers, 1)), 1)


def value_scales(
    logged: Logged, settings: Mapping[str, Tensor], sampler: RowSampler, turn: int = 1
) -> list[Scale]:
    """What values can be, for each member: no lag without a target network, of a learner without
    values a reward.

    Args:
        turn: updates of which one moves the target networks.
    """
    largest = float(logged.transitions.reward.abs().max())
    typical = math.sqrt(sampler.mean_square(logged.transitions.reward))
    best = float(episode_means(logged).max())
    one = torch.ones_like(next(iter(settings.values())))
    discounts = settings.get("discount", 0 * one)
    lags = turn / settings.get("target_rate", one)
    return [
        Scale(largest, typical, discount, lag, best)
        for discount, lag in zip(discounts.tolist(), lags.tolist(), strict=True)
    ]


def episode_means(logged: Logged) -> Tensor:
    """Mean reward of every logged episode."""
    reward = logged.transitions.reward.double()
    sums = torch.zeros(int(logged.episode.max()) + 1, dtype=reward.dtype, device=reward.device)
    counts = torch.bincount(logged.episode, minlength=len(sums))
    return sums.index_add(0, logged.episode, reward) / counts.clamp(min=1)
