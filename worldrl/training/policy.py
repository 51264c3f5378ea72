"""The stage that learns a policy from the logged data, in imagination, from experience of its
environments (see worldrl.training.online.stage), or from several of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worldrl.config.schema import FinetuneConfig, TrainConfig
from worldrl.rows import unpack
from worldrl.training.compilation import compiled
from worldrl.training.guards import Trip
from worldrl.training.judging.acceptance import Gate
from worldrl.training.logged import Logged
from worldrl.training.policy_group import Members, PolicyGroup, Update
from worldrl.training.sampling import row_sampler
from worldrl.training.stages import Snapshot, common_step, join, split
from worldrl.types import (
    Batch,
    Context,
    Learner,
    LearnerState,
    Noise,
    Parameters,
)


class PolicyStage:
    """All groups' learners, advanced one group after another."""

    name = "train"

    def __init__(
        self,
        config: TrainConfig | FinetuneConfig,
        learner: Learner,
        groups: Sequence[Members],
        logged: Logged,
        compile_update: bool,
        gate: Gate | None = None,
    ) -> None:
        self.total = config.num_updates
        self._guard = config.guard
        autocast = config.precision == "bf16"
        device = logged.rows.device
        last = learner.phases - 1
        kinds = {
            phase: compiled(
                update_function(learner, logged, autocast, phase), compile_update, device
            )
            for phase in {0, last}
        }
        updates = [kinds[0]] * last + [kinds[last]]
        sampler = row_sampler(config.sampling, logged)
        self.groups = [
            PolicyGroup(config, learner, members, logged, sampler, updates, gate)
            for members in groups
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
        """The policies of all members, ``(P, ...)``; the last accepted ones where a gate judges."""
        return join([group.policy for group in self.groups])

    def snapshot(self) -> Snapshot:
        """The policies as the model; learners, guards and buffer recipes as the state."""
        return Snapshot(
            {f"policy/{name}": value for name, value in self.policy_parameters().items()},
            join([group.tensors() for group in self.groups]),
            {"groups": [group.plain() for group in self.groups]},
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot; the synthetic buffers are made again and verified."""
        parts = split(snapshot.state, [len(group.seeds) for group in self.groups])
        for group, part, plain in zip(self.groups, parts, snapshot.plain["groups"], strict=True):
            group.restore(part, plain)


def update_function(learner: Learner, logged: Logged, autocast: bool, phase: int = 0) -> Update:
    """One update of a phase, sampling included, as one function of tensors."""
    size, width = logged.observation_size, logged.action_size
    device, names = logged.rows.device.type, learner.metric_names

    def update(
        state: LearnerState,
        logged_rows: Tensor,  # (n, W)
        imagined_rows: Tensor,  # (m, W)
        real: Tensor,  # (P, L) int64: the first rows of the batch
        imagined: Tensor,  # (P, B - L) int64
        noise: Noise,
        context: Context,
        sums: Tensor,  # (2, metrics, P), added to: values, and how many there were
    ) -> None:
        rows = torch.cat([logged_rows[real], imagined_rows[imagined]], 1)
        batch = Batch(*unpack(rows, size, width), real)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            metrics = learner.update(state, batch, noise, context, phase)
        zero = sums.new_zeros(sums.shape[-1])
        values = torch.stack([metrics[name].float() if name in metrics else zero for name in names])
        present = torch.stack([zero + float(name in metrics) for name in names])
        sums.add_(torch.stack([values, present]))

    return update
