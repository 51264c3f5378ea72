"""One group of a run's policies: its learners, its synthetic buffer, and the guards over both."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldrl.config.members import per_member
from worldrl.config.schema import BranchedSettings, GuardSettings, PenaltyKind, TrainConfig
from worldrl.errors import RunError
from worldrl.imagination.buffer import SyntheticBuffer
from worldrl.imagination.penalties import PENALTIES
from worldrl.imagination.rollout import (
    Pessimism,
    RolloutHealth,
    Step,
    imagine,
    logged_range,
    observation_bounds,
    penalty_quantile,
)
from worldrl.models.world import World
from worldrl.random import draw
from worldrl.training.guards import Memory, Scale, Trip, check
from worldrl.training.logged import Logged
from worldrl.training.stages import copy_into, flat
from worldrl.types import Learner, LearnerState, Parameters

#: Updates whose noise and indices are drawn at once.
NOISE_BLOCK = 100

Update = Callable[..., None]

NOTHING_IMAGINED = (
    "no imagined transition was kept: every prediction was not finite, or every rollout was "
    "dropped at its first step; set model.normalize_targets=true or train the model longer, or "
    "loosen imagination.stop"
)


class Block(NamedTuple):
    """What it takes to make one refresh of the synthetic buffer again."""

    refresh: int
    policy: Parameters
    digest: list[str]  # sha256 of each member's rows; empty until a checkpoint asks


class PolicyGroup:
    """The learners of a few seeds, batched along P, with their synthetic buffer."""

    def __init__(
        self,
        config: TrainConfig,
        learner: Learner,
        seeds: Sequence[int],
        first: int,  # number of the first seed's member in the run's population
        logged: Logged,
        world: World | None,
        update: Update,
        step: Step | None,
    ) -> None:
        self.learner, self.seeds, self.logged, self.world = learner, list(seeds), logged, world
        self._update, self._step = update, step
        device, members = logged.rows.device, len(self.seeds)
        self.total = config.num_updates
        self.batch_size = config.learner.batch_size
        self.state: LearnerState = learner.initialise(self.seeds, device, first)
        self.good = {name: value.clone() for name, value in flat(self.state).items()}
        self.trips: list[Trip | None] = [None] * members
        self.step = 0
        self.sums = torch.zeros(len(learner.metric_names), members, device=device)
        self.sum_count = 0
        self.memories = [Memory()] * members
        self.health: RolloutHealth | None = None
        self._noise: tuple[int, Tensor, Tensor, Tensor] | None = None
        self.scales = value_scales(logged, self.state["settings"])

        imagination = config.imagination
        if isinstance(imagination, BranchedSettings):
            self.imagination: BranchedSettings | None = imagination
            own = slice(first, first + members)
            horizons = per_member(imagination.horizon, config.population)
            self.horizons = horizons[own]
            # 0.29 * 100 is 28.999...: still 29 rows.
            self.real = int(imagination.real_ratio * self.batch_size + 1e-9)
            self.blocks: list[Block] = []
            self.buffer = SyntheticBuffer(
                members,
                imagination.retain,
                imagination.batch_size * max(horizons),  # one shape for the compiled update
                logged.rows.shape[1],
                device,
            )
            self.bounds = observation_bounds(logged.observation, imagination.clip_range)
            self.range = logged_range(logged.observation, logged.reward)
            assert world is not None
            self.pessimism = pessimism(imagination, world, logged, config.population, own)
        else:
            self.imagination = None
            self.real = self.batch_size
            self.blocks = []

    @property
    def stopped(self) -> bool:
        """Every member was stopped by a guard."""
        return all(trip is not None for trip in self.trips)

    @property
    def finished(self) -> bool:
        return self.stopped or self.step >= self.total

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Updates up to number ``until``, refreshing the synthetic buffer where it is due."""
        while self.step < until and not self.stopped and not stop():
            end = min(until, (self.step // NOISE_BLOCK + 1) * NOISE_BLOCK)
            if self.imagination is not None:
                refresh = self.step // self.imagination.every
                if not self.blocks or self.blocks[-1].refresh < refresh:
                    self.refresh(refresh)
                end = min(end, (refresh + 1) * self.imagination.every)
            self._run_updates(end - self.step)

    def _run_updates(self, count: int) -> None:
        first = self.step % NOISE_BLOCK
        noise, real, uniform = self._noise_block(self.step // NOISE_BLOCK)
        synthetic, imagined = self.logged.rows, real[:, :, :0]
        if self.imagination is not None:
            synthetic, imagined = self.buffer.flat_rows, self.buffer.indices(uniform)
        for index in range(first, first + count):
            self._update(
                self.state,
                self.logged.rows,
                synthetic,
                real[:, index],
                imagined[:, index],
                noise[:, index],
                self.sums,
            )
        self.sum_count += count
        self.step += count
        self._hold_stopped()

    def _noise_block(self, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noise ``(P, K, ...)``, logged row numbers ``(P, K, real)`` and uniforms for the rest."""
        if self._noise is None or self._noise[0] != block:
            device, rows = self.logged.rows.device, len(self.logged.rows)
            rest = self.batch_size - self.real
            noise = draw(
                self.seeds,
                "policy.noise",
                block,
                lambda g: self.learner.noise(g, NOISE_BLOCK, self.batch_size),
                device,
            )
            real = draw(
                self.seeds,
                "policy.rows",
                block,
                lambda g: torch.randint(
                    rows, (NOISE_BLOCK, self.real), generator=g, device=g.device
                ),
                device,
            )
            uniform = draw(
                self.seeds,
                "policy.imagined",
                block,
                lambda g: torch.rand(
                    NOISE_BLOCK, rest, generator=g, device=g.device, dtype=torch.float64
                ),
                device,
            )
            self._noise = block, noise, real, uniform
        return self._noise[1:]

    def refresh(self, number: int) -> None:
        """Imagine with the current policy and fill the next slot of the buffer."""
        policy = {
            name: value.clone()
            for name, value in self.learner.policy_parameters(self.state).items()
        }
        self.blocks.append(Block(number, policy, []))
        self.imagine(self.blocks[-1])
        assert self.imagination is not None
        self.blocks = self.blocks[-self.imagination.retain :]

    def imagine(self, block: Block) -> None:
        """Fill the slot that ``block`` describes."""
        assert self.imagination is not None
        assert self._step is not None
        assert self.world is not None
        self.health = imagine(
            self._step,
            self.world,
            block.policy,
            self.logged.observation,
            self.buffer,
            block.refresh,
            self.seeds,
            self.imagination.batch_size,
            self.horizons,
            self.pessimism,
            self.bounds,
            self.range,
            keep_stopped=self.imagination.stop.kind != "drop",
        )

    def report(self, guard: GuardSettings) -> dict[str, list[float]]:
        """Means since the last report, health of imagination, and what the guards make of it."""
        means = self.sums / max(self.sum_count, 1)
        for member, trip in enumerate(self.trips):
            if trip is not None:
                means[:, member] = torch.nan  # of updates that were thrown away, or of none
        self.sums.zero_()
        self.sum_count = 0
        metrics = dict(zip(self.learner.metric_names, means.tolist(), strict=True))
        if self.health is not None:
            for name, value in self.health._asdict().items():
                metrics[f"imagined_{name}"] = value.tolist()
            cost = self.pessimism.weight * self.health.penalty_mean
            metrics["imagined_penalty_cost"] = cost.tolist()
        tensors = flat(self.state)
        finite = torch.stack(
            [
                value.reshape(len(value), -1).isfinite().all(1)
                for name, value in tensors.items()
                if not name.startswith("settings/")  # what is not capped has an infinite cap
            ]
        ).all(0)
        readings = []
        for member in range(len(self.seeds)):
            own = {name: values[member] for name, values in metrics.items()}
            scale, memory = self.scales[member], self.memories[member]
            verdict = check(guard, own, bool(finite[member]), self.step, scale, memory)
            readings.append(verdict.reading)
            if self.trips[member] is not None:
                continue
            self.memories[member] = verdict.memory
            self.trips[member] = verdict.trip if guard.enabled else None
            if verdict.memory.good_step == self.step:
                for name, value in tensors.items():
                    self.good[name][member] = value[member]
        if "value_mean" in metrics:
            for name in ("value_limit", "value_growth", "value_pace"):
                metrics[name] = [getattr(reading, name) for reading in readings]
        self._hold_stopped()
        return metrics

    def _hold_stopped(self) -> None:
        """Put stopped members back to their last good state: their group may go on."""
        stopped = [member for member, trip in enumerate(self.trips) if trip is not None]
        if stopped:
            for name, value in flat(self.state).items():
                value[stopped] = self.good[name][stopped]

    def tensors(self) -> dict[str, Tensor]:
        """References to everything that must be saved, each ``(P, ...)``."""
        found = {f"learner/{name}": value for name, value in flat(self.state).items()}
        found |= {f"good/{name}": value for name, value in self.good.items()}
        found["sums"] = self.sums.T
        if self.imagination is not None:
            # Every group has the same names, however many refreshes it made before it stopped.
            policy = self.learner.policy_parameters(self.state)
            empty = {name: torch.zeros_like(value) for name, value in policy.items()}
            policies = [block.policy for block in self.blocks]
            policies += [empty] * (self.imagination.retain - len(policies))
            for slot, policy in enumerate(policies):
                found |= {f"blocks/{slot}/{name}": value for name, value in policy.items()}
        return found

    def digested_blocks(self) -> list[Block]:
        """The live blocks, each with the digests of its rows."""
        self.blocks = [
            block if block.digest else block._replace(digest=self._digest(block.refresh))
            for block in self.blocks
        ]
        return self.blocks

    def _digest(self, refresh: int) -> list[str]:
        counts = self.buffer.counts[:, refresh % self.buffer.retain].tolist()
        slot = self.buffer.slot(refresh)
        return [
            hashlib.sha256(slot[member, :count].cpu().numpy().tobytes()).hexdigest()
            for member, count in enumerate(counts)
        ]

    def restore(
        self,
        tensors: dict[str, Tensor],
        step: int,
        trips: list[Trip | None],
        blocks: list[Block],
    ) -> None:
        """Continue from saved tensors; refuses a buffer that does not come out as it was."""
        self.step, self.trips = step, trips
        policy = self.learner.policy_parameters(self.state)
        self.blocks = [
            block._replace(policy={name: torch.empty_like(value) for name, value in policy.items()})
            for block in blocks
        ]
        copy_into(self.tensors(), tensors)
        for block in self.blocks:
            self.imagine(block)
            if self._digest(block.refresh) != block.digest:
                raise RunError(
                    "the synthetic data of this run came out differently when it was made again, "
                    "so the run cannot be continued exactly: the machine, its number of threads "
                    "or the versions of torch differ from those in environment.json. Resume "
                    "where the run was started, or start a new run."
                )


def pessimism(
    imagination: BranchedSettings, world: World, logged: Logged, population: int, own: slice
) -> Pessimism:
    """Penalties and limits of the members ``own`` of a run's population."""
    device = logged.rows.device

    def numbers(value: float | tuple[float, ...]) -> Tensor:
        return torch.tensor(per_member(value, population)[own], device=device)

    def quantile(kind: PenaltyKind, share: float) -> Tensor:
        measure = PENALTIES[kind]
        return penalty_quantile(world.ensemble, measure, logged.observation, logged.action, share)

    weight = numbers(imagination.penalty.weight)
    scale, limit = torch.ones_like(weight), torch.full_like(weight, math.inf)
    if imagination.penalty.scale == "dataset_quantile":
        scale = quantile(imagination.penalty.kind, 0.95)
    stop = imagination.stop
    if stop.kind != "none":
        limit = quantile(stop.measure, stop.quantile) * numbers(stop.factor)
    floor = (logged.reward.min() - stop.cost).expand_as(weight)
    return Pessimism(weight, scale, limit, floor)


def value_scales(logged: Logged, settings: Mapping[str, Tensor]) -> list[Scale]:
    """What values can be, for each member; a learner without a target network has no lag."""
    largest = float(logged.reward.abs().max())
    typical = float(logged.reward.square().mean().sqrt())
    discounts = settings["discount"]
    lags = 1 / settings.get("target_rate", torch.ones_like(discounts))
    return [
        Scale(largest, typical, discount, lag)
        for discount, lag in zip(discounts.tolist(), lags.tolist(), strict=True)
    ]
