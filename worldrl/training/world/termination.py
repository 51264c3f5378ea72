"""Training of the learned termination rule: short, deterministic, and ending with its own test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from worldrl.errors import DataError
from worldrl.models.ensemble import fit_standardizer
from worldrl.models.termination import (
    Agreement,
    agreement,
    choose_threshold,
    end_weight,
    ends,
    initialise,
    joined,
    logits,
    loss,
)
from worldrl.optim import adam_init, adam_step
from worldrl.random import draw, generator
from worldrl.types import Parameters, Transitions

LEARNING_RATE = 1e-3
BLOCK = 1_000  # steps whose batches are drawn at once


class LearnedTermination(NamedTuple):
    """A trained rule with its score on episodes that it was not trained on."""

    parameters: Parameters  # for worldrl.models.termination.ends
    holdout: Agreement


class _Split(NamedTuple):
    """Row numbers of one seed."""

    train_ends: Tensor
    train_others: Tensor
    holdout: Tensor

    @property
    def train(self) -> Tensor:
        return torch.cat([self.train_ends, self.train_others])


def fit_termination(
    rows: Transitions,
    episode: Tensor,
    seeds: Sequence[int],
    stop: Callable[[], bool] = lambda: False,
    steps: int = 5_000,
    batch_size: int = 256,
    holdout_ratio: float = 0.2,
    hidden: Sequence[int] = (128, 128),
) -> LearnedTermination:
    """Train one classifier per seed on the logged ends and continuations.

    A fifth of the episodes that end in a terminal row, and of those that do not, is held out per
    seed; the threshold and the reported agreement come from there. With fewer than two terminal
    episodes none can be held out: the threshold then is 0.5 and the agreement NaN.

    Args:
        rows: ``(R,)`` with their true next observations.
        episode: ``(R,)`` int64, the number of each row's episode.
        seeds: P.
        stop: asked now and then; training ends where it says so.

    Raises:
        DataError: no row is terminal, or all are: there is nothing to tell apart.
    """
    if bool((rows.terminated > 0.5).all()) or not bool((rows.terminated > 0.5).any()):
        raise DataError(
            "the data holds no terminal rows, or nothing else, so there is no end to learn. "
            "Set termination.kind=never, or name a formula with termination.task."
        )
    splits = [_split(rows.terminated > 0.5, episode, seed, holdout_ratio) for seed in seeds]
    sizes = (rows.observation.shape[-1], rows.action.shape[-1])
    parameters = initialise([generator(seed, "termination.init") for seed in seeds], *sizes, hidden)
    parameters = {name: value.to(episode.device) for name, value in parameters.items()}
    inputs = joined(rows.observation, rows.action, rows.next_observation)
    scaling = [fit_standardizer(inputs, split.train[None]) for split in splits]
    parameters["input_mean"] = torch.cat([one.mean for one in scaling])
    parameters["input_scale"] = torch.cat([one.scale for one in scaling])
    _descend(parameters, rows, splits, seeds, stop, steps, batch_size)
    found = [_tune(parameters, rows, split, index) for index, split in enumerate(splits)]
    return LearnedTermination(
        {**parameters, "threshold": torch.cat([threshold for threshold, _ in found])},
        Agreement(
            torch.cat([score.precision for _, score in found]),
            torch.cat([score.recall for _, score in found]),
        ),
    )


def _descend(
    parameters: Parameters,
    rows: Transitions,
    splits: Sequence[_Split],
    seeds: Sequence[int],
    stop: Callable[[], bool],
    steps: int,
    batch_size: int,
) -> None:
    """``steps`` of Adam under a cosine schedule, in place on the network.

    Half of each batch are ends and rows are weighted back to their share: the expected loss is
    that of uniform batches, but most of those would hold no end at all.
    """
    network = {n: v for n, v in parameters.items() if n.startswith(("weight.", "bias."))}
    fixed = {n: v for n, v in parameters.items() if n not in network}
    state = adam_init(network)
    half = batch_size // 2
    num_ends, num_others = (
        torch.tensor([float(len(rows)) for rows in group], device=parameters["threshold"].device)
        for group in zip(*((s.train_ends, s.train_others) for s in splits), strict=True)
    )
    share = 2 * num_ends / (num_ends + num_others)
    weight = torch.stack([share * end_weight(num_ends, num_others), 2 - share], 1)  # (P, 2)
    weight = weight.repeat_interleave(half, 1)  # (P, 2 half)

    def objective(network: Parameters, batch: Transitions) -> tuple[Tensor, Tensor]:
        value, per_seed = loss({**network, **fixed}, batch, weight)
        return value, per_seed

    for step in range(steps):
        if step % BLOCK == 0:
            if stop():
                return
            picked = torch.cat(
                [
                    _draw([split.train_ends for split in splits], seeds, "end", step, half),
                    _draw([split.train_others for split in splits], seeds, "other", step, half),
                ],
                -1,
            )  # (P, BLOCK, 2 half)
        batch = _take(rows, picked[:, step % BLOCK])
        gradients, _ = grad_and_value(objective, has_aux=True)(network, batch)
        rate = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        adam_step(network, gradients, state, torch.full_like(num_ends, rate))


def _draw(
    groups: Sequence[Tensor], seeds: Sequence[int], name: str, step: int, count: int
) -> Tensor:
    """Row numbers for the next :data:`BLOCK` steps from each seed's group: (P, BLOCK, count)."""
    chosen = []
    for seed, group in zip(seeds, groups, strict=True):
        uniform = draw(
            [seed],
            f"termination.{name}",
            step // BLOCK,
            lambda g: torch.rand(BLOCK, count, generator=g, dtype=torch.float64),
        )[0]
        chosen.append(group[(uniform * len(group)).long().to(group.device)])
    return torch.stack(chosen)


@torch.no_grad()
def _tune(
    parameters: Parameters, rows: Transitions, split: _Split, index: int
) -> tuple[Tensor, Agreement]:
    """The threshold ``(1,)`` that one seed's held-out rows prefer, and the agreement there."""
    own = {name: value[index : index + 1] for name, value in parameters.items()}
    holdout = _take(rows, split.holdout[None])
    inputs = holdout.observation, holdout.action, holdout.next_observation
    threshold = choose_threshold(logits(own, *inputs).sigmoid(), holdout.terminated)
    predicted = ends({**own, "threshold": threshold}, *inputs)
    return threshold, agreement(predicted, holdout.terminated)


def _split(terminated: Tensor, episode: Tensor, seed: int, ratio: float) -> _Split:
    """Hold out whole episodes; terminal and other episodes in the same proportion."""
    count = int(episode.max()) + 1
    ended = torch.zeros(count, dtype=torch.bool, device=episode.device)
    ended[episode[terminated]] = True
    order = torch.randperm(count, generator=generator(seed, "termination.split"))
    order = order.to(episode.device)
    held = torch.zeros_like(ended)
    for kind in (True, False):
        candidates = order[ended[order] == kind]
        share = round(ratio * len(candidates))
        if kind and len(candidates) > 1:
            share = max(share, 1)
        held[candidates[:share]] = True
    out = held[episode]
    train_ends, train_others, holdout = (
        mask.nonzero().squeeze(1) for mask in (~out & terminated, ~out & ~terminated, out)
    )
    if len(train_others) == 0:  # short terminal episodes only: nothing to spare
        train_others = (~terminated).nonzero().squeeze(1)
    return _Split(train_ends, train_others, holdout)


def _take(rows: Transitions, index: Tensor) -> Transitions:
    """``(R,)`` rows at ``index`` ``(P, B)``."""
    return Transitions(*(value[index] for value in rows))
