"""How wrong a learned world is, and whether it knows.

One-step errors and calibration are taken on held-out rows, open-loop errors on held-out episodes:
a row's neighbours in time are nearly the row itself, so a split by rows flatters a model that is
rolled forward. Everything carries the leading population axis P.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldrl.data.actions import to_unit
from worldrl.data.dataset import Dataset
from worldrl.errors import DataError
from worldrl.models.termination import Agreement, agreement
from worldrl.random import draw
from worldrl.strict_json import finite
from worldrl.types import DynamicsModel, Termination, Transitions

HORIZONS = (1, 2, 5, 10, 25, 50, 100)
COVERAGE_LEVELS = (0.5, 0.8, 0.95)
NUM_LEVELS = 20  # of the calibration error, and bins of the PIT histogram
MIN_STD = 1e-12
CHUNK = 4096  # rows of one model call
#: Targets that vary less than this share of their size are constants and have no relative error.
CONSTANT = 1e-6


class OneStepError(NamedTuple):
    """Of every ensemble member on held-out rows; each ``(P, N)``."""

    mse_norm: Tensor  # squared error by the target's variance, mean over dimensions
    mse_norm_worst: Tensor  # the same of the worst dimension
    nll: Tensor  # mean negative log-likelihood a dimension, in nats, 2 pi included


class Calibration(NamedTuple):
    """Of a predictive distribution on held-out rows, over all dimensions."""

    coverage: Tensor  # (P, 3) share inside the central 50, 80 and 95 % intervals
    ece: Tensor  # (P,) mean |coverage - nominal| over 20 levels
    pit: Tensor  # (P, 20) histogram of the probability integral transform; flat if calibrated


class Segments(NamedTuple):
    """Recorded stretches to replay."""

    observation: Tensor  # (E, T + 1, S)
    action: Tensor  # (E, T, A), in [-1, 1]
    length: Tensor  # (E,) int64, recorded steps; what follows is padding
    scale: Tensor  # (S,) deviation of the held-out observations; infinite where constant


class OpenLoopError(NamedTuple):
    """Error after k steps of recorded actions, in deviations of the observation; each ``(P, K)``.

    One diverging segment decides a root mean square, so the median is there as well.
    """

    mean_rmse: Tensor  # the elites' mean prediction is fed back
    mean_median: Tensor
    sampled_rmse: Tensor  # one elite's sample is fed back
    sampled_median: Tensor


@torch.no_grad()
def one_step_error(model: DynamicsModel, rows: Transitions) -> OneStepError:
    """Errors of every ensemble member's own prediction.

    Args:
        rows: ``(P, R)`` that the model was not trained on.
    """
    target = _target(rows)  # (P, R, S + 1)
    variance = _variance(_change(rows))[:, None]  # (P, 1, S + 1), infinite where constant
    squared, log_density = [], []
    for part in _chunks(rows):
        prediction = model.predict(rows.observation[:, part], rows.action[:, part])
        error = (target[:, None, part] - prediction.mean).double()
        std = prediction.std.double()
        squared.append(error.square().sum(2))
        density = -0.5 * (error / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
        log_density.append(density.mean(-1).sum(-1))
    count = rows.reward.shape[1]
    ratio = torch.stack(squared).sum(0) / count / variance  # (P, N, S + 1)
    varying = variance.isfinite()
    mean = ratio.sum(-1) / varying.sum(-1).clamp(min=1)
    return OneStepError(mean, ratio.amax(-1), -torch.stack(log_density).sum(0) / count)


@torch.no_grad()
def calibration(model: DynamicsModel, rows: Transitions) -> tuple[Calibration, Calibration]:
    """Of the best elite alone, and of the elites' mixture matched by one Gaussian.

    Constant dimensions are left out: every wide interval covers them.

    Args:
        rows: ``(P, R)`` that the model was not trained on.
    """
    target = _target(rows).double()
    single, mixture = [], []
    for part in _chunks(rows):
        mean, std = _elites(model, rows.observation[:, part], rows.action[:, part])
        mean, std = mean.double(), std.double()
        center = mean.mean(1)
        spread = (std.square() + mean.square()).mean(1) - center.square()
        single.append(_pit(target[:, part], mean[:, 0], std[:, 0]))
        mixture.append(_pit(target[:, part], center, spread.clamp(min=0).sqrt()))
    varying = _variance(_change(rows)).isfinite().all(0)  # (S + 1,)
    pits = [torch.cat(parts, 1)[..., varying] for parts in (single, mixture)]
    return _calibration(pits[0]), _calibration(pits[1])


def segments(
    heldout: Dataset,
    action_low: NDArray[Any],
    action_high: NDArray[Any],
    horizon: int = max(HORIZONS),
    max_segments: int = 256,
    device: torch.device | str = "cpu",
) -> Segments:
    """Stretches of ``horizon`` steps from the start of each episode on, one after another.

    Args:
        heldout: episodes that the model was not trained on, of flat observations.
        action_low: ``(A,)``, what -1 stands for.
        action_high: ``(A,)``, what 1 stands for.
        max_segments: more are thinned out evenly.

    Raises:
        DataError: no step has a recorded successor.
    """
    known = heldout.lengths - ~heldout.final_known  # steps whose successor is recorded
    episode = np.repeat(np.arange(len(known)), -(-known // horizon))
    offset = np.concatenate([np.arange(0, steps, horizon) for steps in known])
    if len(episode) == 0:
        raise DataError(
            f"{heldout.metadata.source}: no held-out step has a recorded successor, so a model "
            "cannot be compared with it. Hold out more episodes."
        )
    chosen = np.unique(np.linspace(0, len(episode) - 1, max_segments).round().astype(np.int64))
    episode, offset = episode[chosen], offset[chosen]
    length = np.minimum(known[episode] - offset, horizon)
    first = heldout.starts[episode] + offset
    step = np.minimum(np.arange(horizon), length[:, None] - 1)  # padding repeats the last
    action = to_unit(heldout.actions[first[:, None] + step], action_low, action_high)
    point = np.minimum(np.arange(horizon + 1), length[:, None])
    observation = heldout.observations[(first + episode)[:, None] + point]
    values = torch.from_numpy(np.array(heldout.observations, np.float64))
    return Segments(
        torch.as_tensor(observation, dtype=torch.float32, device=device),
        torch.as_tensor(action, device=device),
        torch.as_tensor(length, device=device),
        _variance(values[None])[0].sqrt().float().to(device),
    )


@torch.no_grad()
def open_loop_error(
    model: DynamicsModel,
    recorded: Segments,
    seeds: Sequence[int],
    horizons: Sequence[int] = HORIZONS,
) -> OpenLoopError:
    """Replay recorded actions in the model and compare where it arrives.

    Args:
        recorded: the same stretches for every member.
        seeds: P, of the sampled replay.
        horizons: K numbers of steps; NaN where no stretch is that long.
    """
    members = len(seeds)
    by_mean = recorded.observation[:, 0].expand(members, -1, -1)
    by_sample = by_mean
    found: dict[int, list[Tensor]] = {}
    steps = min(max(horizons), recorded.action.shape[1])
    for step in range(steps):
        action = recorded.action[:, step].expand(members, -1, -1)
        by_mean = _elites(model, by_mean, action)[0].mean(1)[..., :-1]
        by_sample = _sample(model, by_sample, action, seeds, step)
        if step + 1 in horizons:
            long_enough = recorded.length > step
            truth = recorded.observation[long_enough, step + 1]
            found[step + 1] = [
                value
                for state in (by_mean, by_sample)
                for value in _errors(state[:, long_enough], truth, recorded.scale)
            ]
    missing = [torch.full((members,), torch.nan, device=by_mean.device, dtype=torch.float64)] * 4
    table = [found.get(horizon, missing) for horizon in horizons]
    return OpenLoopError(*(torch.stack(column, 1) for column in zip(*table, strict=True)))


def terminal_agreement(rule: Termination, rows: Transitions) -> Agreement:
    """Precision and recall of a termination rule on recorded rows ``(P, R)``; each ``(P,)``."""
    predicted = rule(rows.observation, rows.action, rows.next_observation)
    return agreement(predicted, rows.terminated)


@dataclass(frozen=True)
class ModelErrorReport:
    """Every measure of one population of models."""

    one_step: OneStepError
    single: Calibration
    mixture: Calibration
    open_loop: OpenLoopError | None
    """None without held-out episodes."""
    horizons: tuple[int, ...]
    terminal: Agreement | None
    """None without a termination rule."""

    def to_json(self) -> dict[str, Any]:
        """One list entry a member; what is not finite is None."""
        parts: dict[str, NamedTuple | None] = {
            "one_step": self.one_step,
            "calibration_single": self.single,
            "calibration_mixture": self.mixture,
            "open_loop": self.open_loop,
            "terminal": self.terminal,
        }
        plain: dict[str, Any] = {"horizons": list(self.horizons)}
        for name, part in parts.items():
            plain[name] = part and finite(part._asdict())
        return plain


def measure(
    model: DynamicsModel,
    rows: Transitions,
    seeds: Sequence[int],
    recorded: Segments | None = None,
    rule: Termination | None = None,
    horizons: Sequence[int] = HORIZONS,
) -> ModelErrorReport:
    """All of the above.

    Args:
        rows: ``(P, R)`` held out.
        seeds: P.
        recorded: from held-out episodes.
    """
    single, mixture = calibration(model, rows)
    return ModelErrorReport(
        one_step_error(model, rows),
        single,
        mixture,
        None if recorded is None else open_loop_error(model, recorded, seeds, horizons),
        tuple(horizons),
        None if rule is None else terminal_agreement(rule, rows),
    )


def _target(rows: Transitions) -> Tensor:
    return torch.cat([rows.next_observation, rows.reward[..., None]], -1)


def _change(rows: Transitions) -> Tensor:
    """What a model learns: the change of the observation, and the reward."""
    change = rows.next_observation - rows.observation
    return torch.cat([change, rows.reward[..., None]], -1).double()


def _chunks(rows: Transitions) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, rows.reward.shape[1], CHUNK)]


def _variance(values: Tensor) -> Tensor:
    """``(P, R, D) -> (P, D)`` float64; infinite for constants, which drop out of ratios."""
    variance = values.var(1, correction=0)
    constant = variance.sqrt() <= CONSTANT * values.abs().amax(1)
    return torch.where(constant, torch.inf, variance)


def _elites(model: DynamicsModel, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """The elites' means and deviations, ``(P, E, R, S + 1)`` each, best first."""
    prediction = model.predict(observation, action)
    chosen = model.elites[:, :, None, None].expand(-1, -1, *prediction.mean.shape[2:])
    return prediction.mean.gather(1, chosen), prediction.std.gather(1, chosen)


def _sample(
    model: DynamicsModel, observation: Tensor, action: Tensor, seeds: Sequence[int], step: int
) -> Tensor:
    """One elite's sample a row: ``(P, R, S)``."""
    mean, std = _elites(model, observation, action)
    count, size = observation.shape[1:]

    def noise(name: str, sample: Callable[[torch.Generator], Tensor]) -> Tensor:
        return draw(seeds, f"model_error.{name}", step, sample).to(observation.device)

    elites = mean.shape[1]
    elite = noise("elite", lambda g: torch.randint(elites, (count,), generator=g))
    normal = noise("normal", lambda g: torch.randn(count, size, generator=g))
    chosen = elite[:, None, :, None].expand(-1, 1, -1, size + 1)
    picked_mean, picked_std = (v.gather(1, chosen)[:, 0, :, :-1] for v in (mean, std))
    return picked_mean + picked_std * normal


def _errors(state: Tensor, truth: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Root mean square over segments and dimensions, and the median segment's; each ``(P,)``."""
    varying = int(scale.isfinite().sum())
    squared = ((state - truth).double() / scale).square().sum(-1) / max(varying, 1)  # (P, E)
    if squared.shape[1] == 0:
        missing = squared.new_full((squared.shape[0],), torch.nan)
        return missing, missing
    return squared.mean(1).sqrt(), squared.median(1).values.sqrt()


def _pit(target: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``(P, R, D) -> (P, R, D)``, the predicted probability of less than the target."""
    below: Tensor = torch.special.ndtr((target - mean) / std.clamp(min=MIN_STD))
    return below


def _calibration(pit: Tensor) -> Calibration:
    flat = pit.flatten(1)  # (P, R D)
    inside = (2 * flat - 1).abs()  # the narrowest central interval that holds the target
    nominal = (torch.arange(NUM_LEVELS, device=pit.device).double() + 0.5) / NUM_LEVELS
    covered = torch.stack([(inside <= level).double().mean(1) for level in nominal.tolist()], 1)
    bins = (flat * NUM_LEVELS).long().clamp(0, NUM_LEVELS - 1)
    counts = flat.new_zeros(len(flat), NUM_LEVELS)
    counts.scatter_add_(1, bins, torch.ones_like(flat))
    return Calibration(
        torch.stack([(inside <= level).double().mean(1) for level in COVERAGE_LEVELS], 1),
        (covered - nominal).abs().mean(1),
        counts / flat.shape[1],
    )
