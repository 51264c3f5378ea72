"""The stage that learns a policy, in imagination, from the logged data, or from both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, repeat

import torch
from torch import Tensor

from worldrl.config.members import per_member
from worldrl.config.schema import BranchedSettings, TrainConfig
from worldrl.imagination.buffer import bytes_needed, check_memory
from worldrl.imagination.penalties import PENALTIES
from worldrl.imagination.rollout import Ends, Step, Stop, imagined_step
from worldrl.models.world import World
from worldrl.rows import unpack
from worldrl.training.compilation import compiled
from worldrl.training.guards import Memory, Trip
from worldrl.training.logged import Logged
from worldrl.training.policy_group import Block, PolicyGroup, Update
from worldrl.training.stages import Snapshot, common_step, join, split
from worldrl.types import Learner, LearnerState, Parameters


class PolicyStage:
    """All groups' learners, advanced one group after another."""

    name = "train"

    def __init__(
        self,
        config: TrainConfig,
        learner: Learner,
        groups: Sequence[Sequence[int]],
        logged: Logged,
        worlds: Sequence[World] | None,
        ends: Ends | None,
        compile_update: bool,
        compile_rollout: bool,
    ) -> None:
        self.total = config.num_updates
        self._guard = config.guard
        autocast = config.precision == "bf16"
        device = logged.rows.device
        update = compiled(update_function(learner, logged, autocast), compile_update, device)
        step: Step | None = None
        if isinstance(config.imagination, BranchedSettings):
            assert worlds is not None
            assert ends is not None
            penalty = PENALTIES[config.imagination.penalty.kind]
            step = imagined_step(learner.act, penalty, ends, _stop(config.imagination))
            if autocast:
                step = _autocast(step, device.type)
            step = compiled(step, compile_rollout, device)
        firsts = accumulate((len(seeds) for seeds in groups[:-1]), initial=0)
        self.groups = [
            PolicyGroup(config, learner, seeds, first, logged, world, update, step)
            for seeds, first, world in zip(
                groups, firsts, worlds or repeat(None, len(groups)), strict=True
            )
        ]

    @property
    def step(self) -> int:
        return common_step(self.groups)

    @property
    def finished(self) -> bool:
        return all(group.finished for group in self.groups)

    @property
    def trips(self) -> list[Trip | None]:
        """Why each member was stopped early, if it was."""
        return [trip for group in self.groups for trip in group.trips]

    @property
    def good_steps(self) -> list[int]:
        """The update whose policy each member goes back to, or went back to."""
        return [memory.good_step for group in self.groups for memory in group.memories]

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Every group up to update ``until``."""
        for group in self.groups:
            group.advance(until, stop)

    def report(self) -> dict[str, list[float]]:
        """Metrics of every member since the last report; guards act here."""
        parts = [group.report(self._guard) for group in self.groups]
        return {name: [v for part in parts for v in part[name]] for name in parts[0]}

    def policy_parameters(self) -> Parameters:
        """The policies of all members, ``(P, ...)``."""
        return join([group.learner.policy_parameters(group.state) for group in self.groups])

    def snapshot(self) -> Snapshot:
        """The policies as the model; learners, guards and buffer recipes as the state."""
        return Snapshot(
            {f"policy/{name}": value for name, value in self.policy_parameters().items()},
            join([group.tensors() for group in self.groups]),
            {
                "steps": [group.step for group in self.groups],
                "sum_counts": [group.sum_count for group in self.groups],
                "guards": [
                    [memory._asdict() for memory in group.memories] for group in self.groups
                ],
                "good_steps": self.good_steps,
                "trips": [None if trip is None else trip._asdict() for trip in self.trips],
                "blocks": [
                    [[block.refresh, block.digest] for block in group.digested_blocks()]
                    for group in self.groups
                ],
            },
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot; the synthetic buffers are made again and verified."""
        plain = snapshot.plain
        trips = [None if trip is None else Trip(**trip) for trip in plain["trips"]]
        parts = split(snapshot.state, [len(group.seeds) for group in self.groups])
        for index, (group, part) in enumerate(zip(self.groups, parts, strict=True)):
            first = sum(len(before.seeds) for before in self.groups[:index])
            group.sum_count = plain["sum_counts"][index]
            group.memories = [Memory.from_json(memory) for memory in plain["guards"][index]]
            group.restore(
                part,
                plain["steps"][index],
                trips[first : first + len(group.seeds)],
                [Block(refresh, {}, digest) for refresh, digest in plain["blocks"][index]],
            )


def _stop(imagination: BranchedSettings) -> Stop | None:
    stop = imagination.stop
    return None if stop.kind == "none" else Stop(stop.kind, PENALTIES[stop.measure])


def check_buffers(imagination: BranchedSettings, members: int, logged: Logged) -> None:
    """Refuse the synthetic buffers of all members together where they do not fit.

    Asked for together, because memory that one was given counts as free until it is written.

    Raises:
        ConfigError: with the bytes needed and free, and the settings that shrink them.
    """
    capacity = imagination.batch_size * max(per_member(imagination.horizon, members))
    needed = bytes_needed(members, imagination.retain, capacity, logged.rows.shape[1])
    check_memory(needed, logged.rows.device)


def update_function(learner: Learner, logged: Logged, autocast: bool) -> Update:
    """One update, sampling included, as one function of tensors."""
    size, width = logged.observation_size, logged.action_size
    device, names = logged.rows.device.type, learner.metric_names

    def update(
        state: LearnerState,
        logged_rows: Tensor,  # (n, W)
        imagined_rows: Tensor,  # (m, W)
        real: Tensor,  # (P, B_real) int64: the first rows of the batch
        imagined: Tensor,  # (P, B - B_real) int64
        noise: Tensor,
        sums: Tensor,  # (metrics, P), added to
    ) -> None:
        rows = torch.cat([logged_rows[real], imagined_rows[imagined]], 1)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            metrics = learner.update(state, unpack(rows, size, width), noise)
        sums.add_(torch.stack([metrics[name].float() for name in names]))

    return update


def _autocast(step: Step, device: str) -> Step:
    def cast(*arguments: object) -> object:
        with torch.autocast(device, torch.bfloat16):
            return step(*arguments)  # type: ignore[arg-type]

    return cast  # type: ignore[return-value]
