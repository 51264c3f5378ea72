"""The stage that learns a world: a probabilistic ensemble by maximum likelihood.

Bootstrap, holdout, early stopping and elites follow MOPO and its descendants (arXiv 2005.13239):
the bootstrap is drawn once, an epoch permutes every member's rows, a member's snapshot is taken
when its holdout error improved by more than one percent, training ends when no member improved for
``patience`` epochs, and elites are chosen by errors computed again from the snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from worldrl.config.model import EnsembleSettings
from worldrl.errors import ModelError
from worldrl.models.ensemble import (
    Ensemble,
    Standardizer,
    changes,
    fit_standardizer,
    forward,
    gaussian_loss,
    init_ensemble,
    layer_weight_decay,
    standardize,
)
from worldrl.models.mlp import num_layers
from worldrl.optim import AdamState, adam_init, adam_step
from worldrl.random import draw, generator
from worldrl.training.compilation import compiled
from worldrl.training.early_stopping import keep_better
from worldrl.training.logged import Logged
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


class Subject(NamedTuple):
    """What an ensemble is to learn."""

    name: str  # begins the names of its random streams
    reward: bool = True


WORLD = Subject("world")


class EnsembleStage:
    """All groups' ensembles, trained one group after another in slices of an epoch."""

    def __init__(
        self,
        settings: EnsembleSettings,
        groups: Sequence[Sequence[int]],
        logged: Logged,
        rows: Tensor,
        compile_step: bool,
        autocast: bool,
        name: str = "pretrain",
        subject: Subject = WORLD,
    ) -> None:
        """``rows`` ``(n,)``: numbers of the logged rows to learn from (holdout included)."""
        self.name, self.subject = name, subject
        step = compiled(_train_step(settings, logged, autocast), compile_step, rows.device)
        self.groups = [
            EnsembleGroup(settings, seeds, logged, rows, step, subject) for seeds in groups
        ]

    @property
    def step(self) -> int:
        return common_step(self.groups)

    @property
    def total(self) -> int | None:
        totals = [group.total for group in self.groups]
        return max(total for total in totals if total) if all(totals) else None

    @property
    def finished(self) -> bool:
        return all(group.finished for group in self.groups)

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Every group up to step ``until``."""
        for group in self.groups:
            group.advance(until, stop)

    def report(self) -> dict[str, list[float]]:
        """Training and holdout errors, mean over the ensemble's members."""
        return listed([group.report() for group in self.groups])

    def snapshot(self) -> Snapshot:
        """The best parameters so far as the model; everything else as the state."""
        tensors = [group.tensors() for group in self.groups]
        return Snapshot(
            join([flat(group.ensemble()) for group in self.groups]),
            join(tensors),
            {"steps": [group.step for group in self.groups]},
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of the same settings and data."""
        sizes = [len(group.seeds) for group in self.groups]
        parts = split(snapshot.state, sizes)
        for group, part, step in zip(self.groups, parts, snapshot.plain["steps"], strict=True):
            copy_into(group.tensors(), part)
            group.step = step
            group.settle()

    def check_learned(self) -> None:
        """Refuse an ensemble with members that never predicted a finite number.

        Raises:
            ModelError: with the seeds concerned and what to change.
        """
        failed = [
            seed
            for group in self.groups
            for seed, error in zip(group.seeds, group.best_error, strict=True)
            if not bool(error.isfinite().all())
        ]
        if failed:
            raise ModelError(
                f"the {self.subject.name} model diverged for seed(s) {failed}: some ensemble "
                "member never had a finite error on held-out rows. Set "
                "model.normalize_targets=true, lower model.learning_rate, or look for extreme "
                "values with `worldrl data info`."
            )

    def ensembles(self) -> list[Ensemble]:
        """The trained ensembles, one a group."""
        return [group.ensemble() for group in self.groups]

    def holdout(self) -> Tensor:
        """Numbers of the rows held out for early stopping, ``(P, H)``."""
        return torch.cat([group.holdout for group in self.groups])


class EnsembleGroup:
    """The ensembles of a few seeds, batched: parameters are ``(P, N, ...)``."""

    def __init__(
        self,
        settings: EnsembleSettings,
        seeds: Sequence[int],
        logged: Logged,
        rows: Tensor,
        step: Callable[..., Tensor],
        subject: Subject = WORLD,
    ) -> None:
        self.subject = subject
        self.settings, self.seeds, self.logged, self._step = settings, list(seeds), logged, step
        device = rows.device
        members, holdout = settings.num_members, holdout_size(settings, len(rows))
        order = draw(
            seeds, f"{subject.name}.split", 0, lambda g: torch.randperm(len(rows), generator=g)
        )
        order = rows[order.to(device)]  # (P, n)
        self.holdout, self.train = order[:, :holdout], order[:, holdout:]
        count = self.train.shape[1]
        picked = draw(
            seeds,
            f"{subject.name}.bootstrap",
            0,
            lambda g: torch.randint(count, (members, count), generator=g),
        ).to(device)
        self.bootstrap = self.train[:, None].expand(-1, members, -1).gather(2, picked)
        self.batch_size = min(settings.batch_size, count)
        self.steps_per_epoch = count // self.batch_size

        pairs = torch.cat(logged.transitions[:2], 1)
        self.inputs = fit_standardizer(pairs, self.train)
        self.targets = _target_standardizer(settings, logged, self.train, subject)
        self.parameters = {
            name: value.to(device)
            for name, value in init_ensemble(
                [generator(seed, f"{subject.name}.init") for seed in seeds],
                logged.observation_size,
                logged.action_size,
                settings.hidden,
                members,
                settings.layer_norm,
                subject.reward,
            ).items()
        }
        self.adam = adam_init(self.parameters)
        self.best = {name: value.clone() for name, value in self.parameters.items()}
        shape = (len(seeds), members)
        self.best_error = torch.full(shape, torch.inf, device=device)
        self.stale_epochs = torch.zeros(len(seeds), dtype=torch.int64, device=device)
        self.stopped = torch.zeros(len(seeds), dtype=torch.bool, device=device)
        self.loss_sum = torch.zeros(len(seeds), device=device)
        self.loss_count = torch.zeros(len(seeds), device=device)
        self.step = 0
        self._epoch_rows: tuple[int, Tensor] | None = None
        self._all_stopped = False

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self.step // self.steps_per_epoch

    @property
    def total(self) -> int | None:
        """Steps at most."""
        epochs = self.settings.max_epochs
        return None if epochs is None else epochs * self.steps_per_epoch

    @property
    def finished(self) -> bool:
        return self._all_stopped or (self.total is not None and self.step >= self.total)

    def tensors(self) -> dict[str, Tensor]:
        """References to everything that training changes."""
        return flat(
            {
                "parameters": self.parameters,
                "adam": self.adam,
                "best": self.best,
                "best_error": self.best_error,
                "stale_epochs": self.stale_epochs,
                "stopped": self.stopped,
                "loss_sum": self.loss_sum,
                "loss_count": self.loss_count,
            }
        )

    def settle(self) -> None:
        """Derive host-side facts after the tensors were overwritten."""
        self._all_stopped = bool(self.stopped.all())

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Gradient steps up to number ``until``, with the end of each epoch where it falls."""
        while self.step < until and not self.finished and not stop():
            rows = self._rows_of_epoch(self.epoch)
            within = self.step % self.steps_per_epoch
            count = min(STEPS_PER_CALL, until - self.step, self.steps_per_epoch - within)
            for index in range(within, within + count):
                batch = rows[:, :, index * self.batch_size : (index + 1) * self.batch_size]
                self.loss_sum += self._step(
                    self.parameters,
                    self.adam,
                    self.logged.rows,
                    batch,
                    self.inputs,
                    self.targets,
                )
            self.loss_count += count
            self.step += count
            if self.step % self.steps_per_epoch == 0:
                self._end_epoch()

    @torch.no_grad()
    def _end_epoch(self) -> None:
        error = self.holdout_error(self.parameters)
        # The log-variance bounds belong to a seed, not to a member: kept with any snapshot.
        keep_better(
            self.best,
            self.best_error,
            self.stale_epochs,
            self.parameters,
            error,
            self.settings.improvement,
            ~self.stopped,  # a stopped seed is frozen; its group may go on
        )
        self.stopped |= self.stale_epochs >= self.settings.patience
        self.settle()

    @torch.no_grad()
    def holdout_error(self, parameters: Parameters) -> Tensor:
        """Mean squared error of the mean prediction on held-out rows, ``(P, N)``."""
        inputs, targets = _model_batch(self.logged, self.holdout, self.inputs, self.targets)
        mean, _ = forward(parameters, inputs[:, None])
        return (mean - targets[:, None]).square().mean((-1, -2))

    def ensemble(self) -> Ensemble:
        """The snapshots with the elites that they deserve."""
        error = self.holdout_error(self.best)
        elites = error.argsort(1)[:, : self.settings.num_elites]
        return Ensemble(self.best, self.inputs, self.targets, elites)

    def report(self) -> dict[str, Tensor]:
        """Per seed: training error since the last report, best holdout error, epochs.

        The training error of a group that took no step since then is NaN.
        """
        loss = self.loss_sum / self.loss_count
        self.loss_sum.zero_()
        self.loss_count.zero_()
        return {
            "train_mse": loss,
            "holdout_mse": self.best_error.mean(1),
            "epoch": torch.full_like(loss, self.epoch),
        }

    def _rows_of_epoch(self, epoch: int) -> Tensor:
        """Row numbers ``(P, N, n_train)`` in this epoch's order, every member its own."""
        if self._epoch_rows is None or self._epoch_rows[0] != epoch:
            members, count = self.bootstrap.shape[1:]
            order = draw(
                self.seeds,
                f"{self.subject.name}.epoch",
                epoch,
                lambda g: torch.stack([torch.randperm(count, generator=g) for _ in range(members)]),
            )
            self._epoch_rows = epoch, self.bootstrap.gather(2, order.to(self.bootstrap.device))
        return self._epoch_rows[1]


def holdout_size(settings: EnsembleSettings, rows: int) -> int:
    """Rows held out: a share of the data, capped, at least one."""
    return max(1, min(int(settings.holdout_ratio * rows), settings.max_holdout))


def expected_steps(settings: EnsembleSettings, rows: int) -> int:
    """Steps that early stopping usually comes to."""
    per_epoch = max(rows - holdout_size(settings, rows), 1) // settings.batch_size
    return per_epoch * (settings.max_epochs or 30)


def _model_batch(
    logged: Logged, rows: Tensor, inputs: Standardizer, targets: Standardizer
) -> tuple[Tensor, Tensor]:
    """Standardised inputs and targets of logged ``rows`` ``(P, ...)``."""
    batch = logged.at(rows)
    wanted = targets.standardized(changes(batch)[..., : targets.mean.shape[-1]])
    return standardize(inputs, batch.observation, batch.action), wanted


def _target_standardizer(
    settings: EnsembleSettings, logged: Logged, train: Tensor, subject: Subject
) -> Standardizer:
    width = logged.observation_size + subject.reward
    if settings.normalize_targets:
        return fit_standardizer(changes(logged.transitions)[:, :width], train)
    shape = (train.shape[0], width)
    zero = torch.zeros(shape, device=train.device)
    return Standardizer(zero, zero + 1)


def _train_step(
    settings: EnsembleSettings, logged: Logged, autocast: bool
) -> Callable[..., Tensor]:
    """One gradient step as one function of tensors."""
    device = logged.rows.device.type

    def step(
        parameters: Parameters,
        adam: AdamState,
        logged_rows: Tensor,
        rows: Tensor,  # (P, N, B) int64
        inputs: Standardizer,
        targets: Standardizer,
    ) -> Tensor:
        view = logged._replace(rows=logged_rows)
        x, y = _model_batch(view, rows, inputs, targets)

        def loss(parameters: Parameters) -> tuple[Tensor, Tensor]:
            return gaussian_loss(parameters, x, y, settings.log_variance_bound_weight)

        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            gradients, (_, aux) = grad_and_value(loss, has_aux=True)(parameters)
        error: Tensor = aux
        rate = torch.full_like(error, settings.learning_rate)
        decay = layer_weight_decay(settings.weight_decay, num_layers(parameters))
        adam_step(parameters, gradients, adam, rate, decay)
        return error

    return step
