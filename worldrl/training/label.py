"""Labels for action-free trajectories: fit inverse dynamics where actions are known, say them
elsewhere (SS-ORL, Zheng et al. 2023, arXiv 2210.06518).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad_and_value

from worldrl.config.label import LabelSettings
from worldrl.data.action_free import ActionFree, concatenate, context_rows
from worldrl.data.actions import from_unit, to_unit
from worldrl.data.dataset import Dataset
from worldrl.errors import DataError, ModelError
from worldrl.models.ensemble import Standardizer, fit_standardizer
from worldrl.models.inverse import (
    LOG_VARIANCE_BOUNDS,
    Inverse,
    initialise,
    loss,
    mixture,
    mixture_nll,
    nll,
    standardized,
)
from worldrl.optim import adam_init, adam_step
from worldrl.random import generator
from worldrl.training.early_stopping import keep_better
from worldrl.types import Parameters

CHECKED_ROWS = 10_000  # held-out rows that early stopping looks at
BLOCK = 8_192  # rows predicted at once
#: Above this share of the variance unexplained, labels are hardly better than the mean action.
POOR = 0.5
#: Where the label variance is so many times the held-out one, the model knows that it is lost.
UNLIKE = 4.0


class HeldOut(NamedTuple):
    """Errors on labelled trajectories that were not trained on, one number an action dimension.

    Early stopping chose the networks by the likelihood of up to 10,000 of these rows, so the errors
    are a little better than on trajectories never seen at all.
    """

    episodes: int
    rows: int
    normalized_mse: list[float]  # of the clipped label; 1 is as good as the mean action
    nll: list[float]  # of the mixture, actions in [-1, 1]
    nll_of_mean: list[float]  # of a Gaussian with the mean and variance of the training actions
    variance: list[float]  # mean label variance, actions in [-1, 1]


class Fit(NamedTuple):
    """A trained ensemble and what is known about it."""

    inverse: Inverse
    action_mean: Tensor  # (A,) of the training actions, in [-1, 1]
    action_variance: Tensor  # (A,)
    updates: int
    held_out: HeldOut


class Labelled(NamedTuple):
    """Trajectories that all have actions: the labelled ones, then those labelled here."""

    dataset: Dataset
    pseudo: NDArray[np.bool_]  # (N,) the action is a label
    variance: NDArray[np.float32]  # (N, A) of the label, in squared environment units; 0 elsewhere
    fit: Fit
    unlabelled_variance: list[float]  # mean over the labels, actions in [-1, 1]
    warnings: tuple[str, ...]


class _Windows(NamedTuple):
    """Observations and the rows of them around each transition."""

    observations: Tensor  # (M, S)
    context: Tensor  # (N, k + 2) int64

    def at(self, rows: Tensor) -> Tensor:
        """``(...)`` transitions to ``(..., k + 2, S)``."""
        return self.observations[self.context[rows]]


def label(
    unlabelled: ActionFree,
    labelled: Dataset,
    settings: LabelSettings,
    seed: int,
    device: torch.device,
    report: Callable[[int, float], None] = lambda step, nll: None,
) -> Labelled:
    """Fit on ``labelled`` and give every unknown action of ``unlabelled`` one.

    A label is the clipped mean of the ensemble. A terminal row whose next observation is lost has
    nothing to infer its action from: it gets the mean action with the variance of all actions.

    Args:
        report: called at every look at the held-out trajectories with the number of updates and
            the mean likelihood of the members there.

    Raises:
        DataError: the two do not fit each other, or there is too little to fit on.
        ModelError: the fit diverged.
    """
    _check_fit(unlabelled, labelled)
    low, high = (np.asarray(bound, np.float64) for bound in labelled.action_bounds())
    fit = fit_inverse(labelled, settings, seed, device, report)
    mean, variance = _labels(fit, unlabelled, settings.history, device)
    lost = np.zeros(len(mean), bool)
    lost[np.cumsum(unlabelled.lengths) - 1] = ~unlabelled.final_known
    mean[lost], variance[lost] = fit.action_mean.cpu().numpy(), fit.action_variance.cpu().numpy()
    pseudo = ~unlabelled.known
    dataset = concatenate(
        labelled, unlabelled.with_actions(from_unit(mean, low, high).astype(np.float32))
    )
    scaled = np.where(pseudo[:, None], variance * ((high - low) / 2) ** 2, 0)
    seen = variance[pseudo & ~lost]
    unlabelled_variance = seen.mean(0).tolist() if len(seen) else fit.action_variance.tolist()
    return Labelled(
        dataset,
        np.concatenate([np.zeros(labelled.num_transitions, bool), pseudo]),
        np.concatenate([np.zeros_like(labelled.actions), scaled.astype(np.float32)]),
        fit,
        unlabelled_variance,
        (
            *_unlike_names(unlabelled.metadata.env_id, labelled.metadata.env_id),
            *_doubts(fit.held_out, unlabelled_variance, int((lost & pseudo).sum())),
        ),
    )


def fit_inverse(
    labelled: Dataset,
    settings: LabelSettings,
    seed: int,
    device: torch.device,
    report: Callable[[int, float], None] = lambda step, nll: None,
) -> Fit:
    """Train the ensemble by maximum likelihood; every member keeps its best networks.

    Members differ by their first weights, their batches and their dropout. A share of the
    trajectories is held out from all of them.
    """
    low, high = labelled.action_bounds()
    windows = _windows(labelled, settings.history, device)
    action = torch.from_numpy(to_unit(labelled.actions, low, high)).to(device)
    train, held = (torch.from_numpy(rows).to(device) for rows in _split(labelled, settings, seed))
    # The current observation of each training row; windows are scaled by it at all their times.
    now = windows.context[train, settings.history]
    observations = fit_standardizer(windows.observations, now[None])
    best, updates = _descend(windows, action, observations, train, held, settings, seed, report)
    inverse = Inverse(best, observations)
    variance, mean = torch.var_mean(action[train].double(), 0, correction=0)
    mean, variance = mean.float(), variance.float()
    episodes = np.unique(labelled.episode_of_row[held.cpu().numpy()])
    errors = _held_out(inverse, windows, action, held, (mean, variance))
    return Fit(inverse, mean, variance, updates, HeldOut(len(episodes), len(held), *errors))


def _descend(
    windows: _Windows,
    action: Tensor,
    observations: Standardizer,
    train: Tensor,
    held: Tensor,
    settings: LabelSettings,
    seed: int,
    report: Callable[[int, float], None],
) -> tuple[Parameters, int]:
    """The best parameters of each member and the updates that were made."""
    members, device = range(settings.num_members), action.device
    start = [generator(seed, "label.init", member) for member in members]
    sizes = (windows.observations.shape[1], action.shape[1])
    parameters = initialise(start, *sizes, settings.history, settings.hidden)
    parameters = {name: value.to(device) for name, value in parameters.items()}
    adam = adam_init(parameters)
    rate = torch.full((len(members),), settings.learning_rate, device=device)
    best = {name: value.clone() for name, value in parameters.items()}
    best_nll = torch.full((len(members),), torch.inf, dtype=torch.float64, device=device)
    stale = torch.zeros(len(members), dtype=torch.int64, device=device)
    # Shuffled, so that the first rows are of all held-out trajectories.
    order = torch.randperm(len(held), generator=generator(seed, "label.checked"))
    checked = held[order[:CHECKED_ROWS].to(device)]
    batch_size = min(settings.batch_size, len(train))
    for step in range(settings.num_updates):
        block, within = divmod(step, settings.check_every)
        if within == 0:
            shape = (settings.check_every, batch_size)
            drawn = [
                torch.randint(
                    len(train), shape, generator=generator(seed, f"label.rows.{member}", block)
                )
                for member in members
            ]
            batches = train[torch.stack(drawn).to(device)]  # (N, check_every, B)
        rows = batches[:, within]
        gradients, _ = grad_and_value(loss, has_aux=True)(
            parameters,
            standardized(observations, windows.at(rows)),
            action[rows],
            _dropout(settings, seed, step, batch_size, device),
        )
        adam_step(parameters, gradients, adam, rate)
        if within + 1 < settings.check_every and step + 1 < settings.num_updates:
            continue
        reached = _member_nll(Inverse(parameters, observations), windows, action, checked)
        keep_better(best, best_nll, stale, parameters, reached)
        report(step + 1, float(reached.mean()))
        if bool((stale >= settings.patience).all()):  # none learned for so long
            break
    if not bool(best_nll.isfinite().all()):
        raise ModelError(
            "the inverse model diverged: some member never had a finite likelihood on held-out "
            "trajectories. Lower its learning rate, or look for extreme values with "
            "`worldrl data info`."
        )
    return best, step + 1


def _dropout(
    settings: LabelSettings, seed: int, step: int, rows: int, device: torch.device
) -> list[Tensor] | None:
    """Masks of the hidden layers, each ``(N, B, H)``."""
    if settings.dropout == 0:
        return None
    kept = 1 - settings.dropout
    masks = []
    for layer, width in enumerate(settings.hidden):
        mask = torch.empty(settings.num_members, rows, width, device=device)
        for member, one in enumerate(mask):
            stream = f"label.dropout.{member}.{layer}"
            one.bernoulli_(kept, generator=generator(seed, stream, step, device))
        masks.append(mask.div_(kept))
    return masks


def _split(
    labelled: Dataset, settings: LabelSettings, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows held out: whole trajectories, without rows whose next observation
    is lost."""
    known = np.ones(labelled.num_transitions, bool)
    known[labelled.starts + labelled.lengths - 1] = labelled.final_known
    usable = np.unique(labelled.episode_of_row[known])
    if len(usable) < 2:
        raise DataError(
            f"{labelled.metadata.source}: too few trajectories that hold actions and the "
            f"observations that followed: {len(usable)}; at least two are needed, one to learn "
            "from and one to test on"
        )
    order = torch.randperm(len(usable), generator=generator(seed, "label.split")).numpy()
    count = min(max(1, round(settings.holdout_ratio * len(usable))), len(usable) - 1)
    held = np.isin(labelled.episode_of_row, usable[order[:count]])
    return np.flatnonzero(known & ~held), np.flatnonzero(known & held)


@torch.no_grad()
def _member_nll(inverse: Inverse, windows: _Windows, action: Tensor, rows: Tensor) -> Tensor:
    """``(N,)``: mean over ``rows`` of the negative log-likelihood of an action."""
    total = torch.zeros(inverse.parameters["bias.0"].shape[0], dtype=torch.float64)
    total = total.to(action.device)
    for part in torch.split(rows, BLOCK):
        total += nll(*inverse.predict(windows.at(part)), action[part]).sum((1, 2)).double()
    return total / len(rows)


@torch.no_grad()
def _held_out(
    inverse: Inverse,
    windows: _Windows,
    action: Tensor,
    rows: Tensor,
    training: tuple[Tensor, Tensor],
) -> tuple[list[float], ...]:
    """Normalised error, likelihood, that of the training mean, and label variance."""
    sums = torch.zeros(5, action.shape[1], dtype=torch.float64, device=action.device)
    floor = float(np.exp(LOG_VARIANCE_BOUNDS[0]))
    for part in torch.split(rows, BLOCK):
        truth, members = action[part], inverse.predict(windows.at(part))
        mean, variance = mixture(members)
        terms = (
            (mean.clamp(-1, 1) - truth).square(),
            (training[0] - truth).square(),
            mixture_nll(members, truth),
            nll(training[0], training[1].clamp(min=floor), truth),
            variance,
        )
        sums += torch.stack([term.sum(0, dtype=torch.float64) for term in terms])
    error, of_mean, *others = sums / len(rows)
    # A dimension that never moves is explained by its mean.
    share = torch.where(of_mean > 0, error / of_mean, torch.where(error > floor, torch.inf, 0.0))
    return tuple(values.tolist() for values in (share, *others))


@torch.no_grad()
def _labels(
    fit: Fit, unlabelled: ActionFree, history: int, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Clipped mean and variance of the label of every row, ``(N, A)`` in [-1, 1]."""
    windows = _windows(unlabelled, history, device)
    means, variances = [], []
    for part in torch.split(torch.arange(len(windows.context), device=device), BLOCK):
        mean, variance = mixture(fit.inverse.predict(windows.at(part)))
        means.append(mean.clamp(-1, 1))
        variances.append(variance)
    return torch.cat(means).cpu().numpy(), torch.cat(variances).cpu().numpy()


def _windows(data: Dataset | ActionFree, history: int, device: torch.device) -> _Windows:
    observations = torch.from_numpy(np.ascontiguousarray(data.observations)).to(device)
    context = torch.from_numpy(context_rows(data.lengths, history)).to(device)
    return _Windows(observations, context)


def _check_fit(unlabelled: ActionFree, labelled: Dataset) -> None:
    ours, theirs = unlabelled.metadata.source, labelled.metadata.source
    shapes = unlabelled.observations.shape[1:], labelled.observation_shape
    for source, shape in zip((ours, theirs), shapes, strict=True):
        if len(shape) != 1:
            raise DataError(
                f"{source}: observations have shape {shape}; actions are inferred from vectors "
                "(S,) only; flatten them"
            )
    if shapes[0] != shapes[1]:
        raise DataError(
            f"{ours} has observations of {shapes[0][0]} numbers, and {theirs} of {shapes[1][0]}; "
            "both must come from the same environment"
        )
    if labelled.discrete:
        raise DataError(
            f"{theirs}: its actions are discrete; only continuous actions (A,) can be inferred"
        )
    if unlabelled.actions is not None and unlabelled.actions.shape[1:] != labelled.action_shape:
        raise DataError(
            f"{ours} has actions of {unlabelled.actions.shape[1]} numbers in some rows, and "
            f"{theirs} of {labelled.action_shape[0]}; both must come from the same environment"
        )


def _unlike_names(ours: str | None, theirs: str | None) -> tuple[str, ...]:
    if ours is None or theirs is None or ours == theirs:
        return ()
    return (
        f"the trajectories without actions say that they are from {ours}, those with actions from "
        f"{theirs}; the labels are worth nothing unless both move alike",
    )


def _doubts(held_out: HeldOut, unlabelled_variance: list[float], lost: int) -> list[str]:
    """What speaks against trusting the labels."""
    doubts = []
    poor = [i for i, share in enumerate(held_out.normalized_mse) if not share <= POOR]
    if poor:
        doubts.append(
            f"action dimension(s) {poor}: more than half of the variance on held-out trajectories "
            "is not explained, so these labels are little better than the mean action; label more "
            "trajectories by hand, or try another history"
        )
    unlike = [
        i
        for i, (here, there) in enumerate(zip(held_out.variance, unlabelled_variance, strict=True))
        if there > UNLIKE * here
    ]
    if unlike:
        doubts.append(
            f"action dimension(s) {unlike}: labels are over {UNLIKE:g} times less certain than on "
            "held-out trajectories; those without actions are unlike those with them, and the "
            "held-out errors say too little about them"
        )
    if lost:
        doubts.append(
            "terminal rows without their next observation, which got the mean action: "
            f"{lost}; their variance is that of all actions"
        )
    return doubts
