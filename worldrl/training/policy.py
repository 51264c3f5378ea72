"""The stage that learns a policy from the logged data, in imagination, from experience of its
environments (see worldrl.training.finetune_stage), or from several of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from worldrl.config.sampling import UniformSampling
from worldrl.config.schema import FinetuneConfig, ImaginationSettings, TrainConfig
from worldrl.imagination.buffer import bytes_needed, check_memory
from worldrl.imagination.experience import Experience
from worldrl.rows import unpack
from worldrl.training.acceptance import Gate
from worldrl.training.compilation import compiled
from worldrl.training.guards import Trip
from worldrl.training.logged import Logged
from worldrl.training.online import OnlineExperience
from worldrl.training.policy_group import PolicyGroup, Update
from worldrl.training.sampling import row_sampler
from worldrl.training.stages import Snapshot, common_step, join, split
from worldrl.types import (
    Batch,
    Context,
    DynamicsModel,
    Imagination,
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
        groups: Sequence[Sequence[int]],
        logged: Logged,
        imaginations: Sequence[Imagination] | None,
        compile_update: bool,
        models: Sequence[DynamicsModel] | None = None,
        gate: Gate | None = None,
        anchors: Parameters | None = None,
        online: Sequence[OnlineExperience] | None = None,
    ) -> None:
        """
        Args:
            imaginations, models, online: one a group, where there are any.
            anchors: the networks that the learner's encoder asks, if it has one, ``(P, ...)``.
        """
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
        firsts = accumulate((len(seeds) for seeds in groups[:-1]), initial=0)
        nothing, log = [None] * len(groups), logged.log
        sampling = config.sampling if isinstance(config, TrainConfig) else UniformSampling()
        sampler = row_sampler(sampling, logged)
        experiences: Sequence[Experience | OnlineExperience | None] = online or [
            imagined_experience(config, imagination, len(seeds), logged) if imagination else None
            for imagination, seeds in zip(imaginations or nothing, groups, strict=True)
        ]
        own_anchors = split(anchors or {}, [len(seeds) for seeds in groups])
        self.groups = [
            PolicyGroup(
                config,
                learner,
                seeds,
                first,
                logged,
                sampler,
                experience,
                logged_rows(config),
                Context(log, model),
                updates,
                gate,
                own,
            )
            for seeds, first, experience, model, own in zip(
                groups, firsts, experiences, models or nothing, own_anchors, strict=True
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


def logged_rows(config: TrainConfig | FinetuneConfig) -> int:
    """Rows of a batch that are from the log."""
    size = config.learner.batch_size
    if isinstance(config, FinetuneConfig):
        share = config.offline_ratio
    else:
        share = 1.0 if config.imagination.kind == "none" else config.imagination.real_ratio
    return int(share * size + 1e-9)  # 0.29 * 100 is 28.999...: still 29 rows


def imagined_experience(
    config: TrainConfig | FinetuneConfig, imagination: Imagination, members: int, logged: Logged
) -> Experience:
    """The synthetic buffer of a group, kept as the settings say."""
    assert isinstance(config, TrainConfig)
    settings = config.imagination
    assert settings.kind != "none"
    width, device = logged.rows.shape[1], logged.rows.device
    return Experience(imagination, members, settings.every, settings.retain, width, device)


def check_buffers(imagination: ImaginationSettings, members: int, logged: Logged) -> None:
    """Refuse the synthetic buffers of all members together where they do not fit.

    Asked for together, because memory that one was given counts as free until it is written.

    Raises:
        ConfigError: with the bytes needed and free, and the settings that shrink them.
    """
    if imagination.kind != "none":
        rows = imagination.most_rows(members)
        needed = bytes_needed(members, imagination.retain, rows, logged.rows.shape[1])
        check_memory(needed, logged.rows.device)


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
