"""The stage that learns the seeker of COCOA: regression on the actions of rollouts backward.

Song et al. 2024 (arXiv 2404.04682). Some rollouts are held out, whole; the parameters kept are
those with the smallest error there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad_and_value

from worldrl.config.learners import SeekerSettings
from worldrl.errors import ModelError
from worldrl.imagination.reverse import WaysBack
from worldrl.models.anchors import init_seeker, seek
from worldrl.models.ensemble import Standardizer
from worldrl.optim import AdamState, adam_init, adam_step
from worldrl.random import draw, generator
from worldrl.rows import taken
from worldrl.training.compilation import compiled
from worldrl.training.early_stopping import keep_better
from worldrl.training.stages import (
    Snapshot,
    common_step,
    copy_into,
    flat,
    join,
    listed,
    split,
)
from worldrl.types import Parameters

STEPS_PER_CALL = 50  # between looks at the stop request
HOLDOUT_ROWS = 65_536  # that the error on held-out rows is measured with at once


class SeekerStage:
    """All groups' seekers, trained one group after another."""

    name = "seeker"

    def __init__(
        self,
        settings: SeekerSettings,
        groups: Sequence[Sequence[int]],
        ways: Sequence[WaysBack],
        inputs: Standardizer,
        compile_step: bool,
    ) -> None:
        """``ways``: one a group. ``inputs`` ``(1, S)``: of observations, for all members."""
        step = compiled(train_step(settings), compile_step, inputs.mean.device)
        self.groups = [
            SeekerGroup(settings, seeds, own, inputs, step)
            for seeds, own in zip(groups, ways, strict=True)
        ]

    @property
    def step(self) -> int:
        return common_step(self.groups)

    @property
    def total(self) -> int:
        return max(group.total for group in self.groups)

    @property
    def finished(self) -> bool:
        return all(group.finished for group in self.groups)

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Every group up to step ``until``."""
        for group in self.groups:
            group.advance(until, stop)

    def report(self) -> dict[str, list[float]]:
        """Training error since the last report, best error on held-out rollouts, epochs."""
        return listed([group.report() for group in self.groups])

    def check_learned(self) -> None:
        """Refuse seekers that never told an action from held-out rollouts: what is kept of them
        are networks that learned nothing.

        Raises:
            ModelError: with the seeds concerned and what to change.
        """
        failed = [
            seed
            for group in self.groups
            for seed, error in zip(group.seeds, group.best_error, strict=True)
            if not bool(error.isfinite())
        ]
        if failed:
            raise ModelError(
                f"the seeker of the encoder diverged for seed(s) {failed}: it never had a finite "
                "error on held-out rollouts of the reverse model. Lower "
                "learner.encoder.seeker.learning_rate, set model.normalize_targets=true, or look "
                "for extreme values with `worldrl data info`."
            )

    def seekers(self) -> Parameters:
        """The best of all members so far, ``(P, ...)``."""
        return join([group.best | group.fixed for group in self.groups])

    def snapshot(self) -> Snapshot:
        """The seekers as the model; everything else as the state."""
        return Snapshot(
            self.seekers(),
            join([group.tensors() for group in self.groups]),
            {"steps": [group.step for group in self.groups]},
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of the same settings and rollouts."""
        parts = split(snapshot.state, [len(group.seeds) for group in self.groups])
        for group, part, step in zip(self.groups, parts, snapshot.plain["steps"], strict=True):
            copy_into(group.tensors(), part)
            group.step = step


class SeekerGroup:
    """The seekers of a few seeds, batched along P."""

    def __init__(
        self,
        settings: SeekerSettings,
        seeds: Sequence[int],
        ways: WaysBack,
        inputs: Standardizer,
        step: Callable[..., Tensor],
    ) -> None:
        self.settings, self.seeds, self._step = settings, list(seeds), step
        members, horizon, ends, _ = ways.action.shape
        device = ways.action.device
        self.pairs = tuple(value.flatten(1, 2) for value in ways)
        order = draw(seeds, "seeker.split", 0, lambda g: torch.randperm(ends, generator=g))
        # Pair h * ends + i is step h of rollout i.
        order = order.to(device)[:, None] + ends * torch.arange(horizon, device=device)[:, None]
        held = max(1, int(settings.holdout_ratio * ends))
        self.holdout, self.train = order[..., :held].flatten(1), order[..., held:].flatten(1)
        count = self.train.shape[1]
        self.batch_size = min(settings.batch_size, count)
        self.steps_per_epoch = count // self.batch_size

        scaling = Standardizer(*(value.expand(members, -1).clone() for value in inputs))
        fresh = init_seeker(
            [generator(seed, "seeker.init") for seed in seeds],
            Standardizer(*(value.cpu() for value in scaling)),
            ways.action.shape[-1],
            settings.hidden,
        )
        whole = {name: value.to(device) for name, value in fresh.items()}
        self.fixed = {name: value for name, value in whole.items() if name.startswith("input_")}
        self.network = {name: whole[name] for name in whole if name not in self.fixed}
        self.adam = adam_init(self.network)
        self.best = {name: value.clone() for name, value in self.network.items()}
        self.best_error = torch.full((members,), torch.inf, device=device)
        self.stale_epochs = torch.zeros(members, dtype=torch.int64, device=device)
        self.loss_sum = torch.zeros(members, device=device)
        self.loss_count = torch.zeros(members, device=device)
        self.step = 0
        self._epoch_rows: tuple[int, Tensor] | None = None

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self.step // self.steps_per_epoch

    @property
    def total(self) -> int:
        """Steps at most."""
        return self.settings.max_epochs * self.steps_per_epoch

    @property
    def finished(self) -> bool:
        stale = bool((self.stale_epochs >= self.settings.patience).all())
        return stale or self.step >= self.total

    def tensors(self) -> dict[str, Tensor]:
        """References to everything that training changes."""
        return flat(
            {
                "network": self.network,
                "adam": self.adam,
                "best": self.best,
                "best_error": self.best_error,
                "stale_epochs": self.stale_epochs,
                "loss_sum": self.loss_sum,
                "loss_count": self.loss_count,
            }
        )

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Gradient steps up to number ``until``, with the end of each epoch where it falls."""
        while self.step < until and not self.finished and not stop():
            rows = self._rows_of_epoch(self.epoch)
            within = self.step % self.steps_per_epoch
            count = min(STEPS_PER_CALL, until - self.step, self.steps_per_epoch - within)
            for index in range(within, within + count):
                batch = rows[:, index * self.batch_size : (index + 1) * self.batch_size]
                self.loss_sum += self._step(self.network, self.fixed, self.adam, *self.pairs, batch)
            self.loss_count += count
            self.step += count
            if self.step % self.steps_per_epoch == 0:
                self._end_epoch()

    @torch.no_grad()
    def _end_epoch(self) -> None:
        parts = torch.split(self.holdout, HOLDOUT_ROWS, 1)
        sums = [len(part[0]) * self.errors(part) for part in parts]
        error = torch.stack(sums).sum(0) / self.holdout.shape[1]
        keep_better(
            self.best,
            self.best_error,
            self.stale_epochs,
            self.network,
            error,
            self.settings.improvement,
            self.stale_epochs < self.settings.patience,  # its group may outlast a member
        )

    def errors(self, rows: Tensor) -> Tensor:
        """Mean squared error ``(P,)`` on pairs of these numbers ``(P, k)``."""
        observation, action = (taken(value, rows) for value in self.pairs)
        return squared_error(self.network | self.fixed, observation, action)

    def report(self) -> dict[str, Tensor]:
        """Per seed, as :meth:`SeekerStage.report` says."""
        loss = self.loss_sum / self.loss_count
        self.loss_sum.zero_()
        self.loss_count.zero_()
        epoch = torch.full_like(loss, self.epoch)
        return {"train_mse": loss, "holdout_mse": self.best_error.clone(), "epoch": epoch}

    def _rows_of_epoch(self, epoch: int) -> Tensor:
        """Pair numbers ``(P, n_train)`` in this epoch's order."""
        if self._epoch_rows is None or self._epoch_rows[0] != epoch:
            count = self.train.shape[1]
            order = draw(
                self.seeds, "seeker.epoch", epoch, lambda g: torch.randperm(count, generator=g)
            )
            self._epoch_rows = epoch, self.train.gather(1, order.to(self.train.device))
        return self._epoch_rows[1]


def squared_error(seeker: Parameters, observation: Tensor, action: Tensor) -> Tensor:
    """Mean over rows and dimensions: ``(P, B, S), (P, B, A) -> (P,)``."""
    return (seek(seeker, observation) - action).square().mean((1, 2))


def train_step(settings: SeekerSettings) -> Callable[..., Tensor]:
    """One gradient step as one function of tensors."""

    def step(
        network: Parameters,
        fixed: Parameters,
        adam: AdamState,
        observation: Tensor,  # (P, n, S)
        action: Tensor,  # (P, n, A)
        rows: Tensor,  # (P, B) int64
    ) -> Tensor:
        batch = taken(observation, rows), taken(action, rows)

        def loss(network: Parameters) -> tuple[Tensor, Tensor]:
            errors = squared_error(network | fixed, *batch)
            return errors.sum(), errors

        gradients, (_, errors) = grad_and_value(loss, has_aux=True)(network)
        found: Tensor = errors
        adam_step(network, gradients, adam, torch.full_like(found, settings.learning_rate))
        return found

    return step
