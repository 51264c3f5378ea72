"""Branched rollouts: short imagined trajectories from logged states.

Janner et al. 2019 (arXiv 1906.08253) and Yu et al. 2020 (arXiv 2005.13239). Every row draws one
elite a step and takes the next observation and the reward of that member's sample; the reward is
lowered by the weighted penalty. Terminal rows are stored and leave; neither the horizon nor an
uncertainty stop sets ``terminated``, but for the stop that is an absorbing state by definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from worldrl.imagination.health import RolloutHealth, Tally
from worldrl.imagination.step import (
    Bounds,
    Draws,
    Imagined,
    LoggedRange,
    Pessimism,
    Step,
)
from worldrl.models.world import World
from worldrl.random import draw, generator
from worldrl.rows import taken, unpack
from worldrl.types import DynamicsModel, Parameters, Penalty, Sampled

#: Rows that one model call works on, over all members: their activations then stay in cache.
CPU_CHUNK = 2048
CUDA_CHUNK = 65536
#: Networks that each row runs through at most for calls of that size.
NETWORKS = 16
#: Of rollouts this long most end on the way. A call then has one of so many shares of the starts,
#: so that there are fewer calls as fewer rows are left, and yet no fewer rows than are worth one.
LONG_HORIZON = 50
SHARES = 8
WORTH_A_CALL = 32


def chunk_rows(rows: int, members: int, device: torch.device, networks: int = 1) -> int:
    """Rows per member in one model call: even chunks, so that little is padding.

    Args:
        networks: that each row runs through; beyond a number of them rows become fewer, so that
            what they hold at once stays bounded.
    """
    most = CPU_CHUNK if device.type == "cpu" else CUDA_CHUNK
    limit = max(min(most, most * NETWORKS // networks) // members, 1)
    return math.ceil(rows / math.ceil(rows / limit))


def grouped_rows(rows: int, members: int, elites: int, device: torch.device) -> int:
    """Rows of each elite in one call, where it is alone with them: more than if all had them."""
    return chunk_rows(math.ceil(rows / elites), members * max(2, math.ceil(elites / 8)), device)


class Rollouts(NamedTuple):
    """What the refreshes of P members have in common."""

    step: Step
    world: World
    starts: Tensor  # (num_rows, S): the dataset's observations
    seeds: Sequence[int]
    batch_size: int  # starts of each member
    horizons: Sequence[int]  # one a member
    pessimism: Pessimism
    bounds: Bounds
    logged: LoggedRange
    keep_stopped: bool = True  # write the step at which a rollout was stopped
    steps_left: Tensor | None = None  # (num_rows,) int64, in the episode of each start, at least 1
    elite: Literal["per_step", "per_rollout"] = "per_step"
    grouped: bool = False  # each row runs through its own elite, as the step has it
    candidates: int = 0  # samples that each step of a row chooses from, of all elites; 0: one drawn
    networks: int = 1  # that each row runs through

    @property
    def places(self) -> int:
        """Rows of a member with the empty ones that even out the groups."""
        elites = self.world.ensemble.elites.shape[1] if self.grouped else 1
        return elites * math.ceil(self.batch_size / elites)

    @property
    def chunk(self) -> int:
        """Rows per member in one model call."""
        members, device, elites = len(self.seeds), self.starts.device, 1
        if self.grouped:
            elites = self.world.ensemble.elites.shape[1]
            chunk = grouped_rows(self.places, members, elites, device)
        else:
            chunk = chunk_rows(self.places, members, device, self.networks)
        rows = self.places // elites
        if max(self.horizons) >= LONG_HORIZON:
            chunk = min(chunk, math.ceil(max(rows / SHARES, WORTH_A_CALL / elites)))
        return elites * chunk


@torch.no_grad()
def imagine(
    rollouts: Rollouts, slot: Tensor, number: int, policy: Parameters
) -> tuple[Tensor, RolloutHealth]:
    """Roll out every member's starts, for its horizon at most.

    Noise comes from blocks named by ``number`` and the step and is indexed by row position, so
    that a member's rows are those of its lone run, and can be made again from the number and the
    policy. A row draws its elite; grouped rows are dealt out, an equal share to each elite: for
    every single row that is the same distribution.

    Args:
        slot: ``(P, capacity, W)``; rows are written to its front.

    Returns:
        Rows written ``(P,)`` int64, and their health.
    """
    starts, seeds = rollouts.starts, rollouts.seeds
    batch_size, places = rollouts.batch_size, rollouts.places
    device, members = starts.device, len(seeds)
    observation_size = starts.shape[1]
    action_size = slot.shape[-1] - 2 * observation_size - 2
    world = rollouts.world
    if rollouts.grouped:
        world = world._replace(ensemble=world.ensemble.of_elites())
    elites = world.ensemble.elites

    def noise(name: str, sample: Callable[[torch.Generator], Tensor]) -> Tensor:
        return draw(seeds, f"rollout.{name}", number, sample, device)

    picked = noise("start", _integers(batch_size, len(starts)))
    observation = starts[picked]  # (P, R, S); each member's live rows come first, or their order
    left = torch.tensor(list(rollouts.horizons), device=device)[:, None].expand_as(picked)
    if rollouts.steps_left is not None:
        left = left.minimum(rollouts.steps_left[picked])
    live = [batch_size] * members
    goes_on = torch.ones_like(picked, dtype=torch.bool)
    elite = torch.zeros_like(picked)
    written = [0] * members
    tally = Tally(members, device)
    for depth in range(max(rollouts.horizons)):
        action_noise = noise(f"action.{depth}", _normals(places, action_size))
        samples = (rollouts.candidates,) if rollouts.candidates else ()
        model_noise = noise(f"model.{depth}", _normals(places, *samples, observation_size + 1))
        choice = noise(f"choice.{depth}", _uniforms(places)) if rollouts.candidates else None
        draws_elite = depth == 0 or rollouts.elite == "per_step"
        if rollouts.grouped:
            if draws_elite:
                stream = f"rollout.elite.{depth}"
                sources = [generator(seed, stream, number, device) for seed in seeds]
                order = dealt_out(goes_on, elites.shape[1], sources)
            else:
                order = closed_up(goes_on, elites.shape[1])
            numbers = order.clamp(min=0)  # row 0 stands in an empty place
            observation, left = taken(observation, numbers), taken(left, numbers)
            elite = torch.zeros_like(order)  # a row's place tells it
            width, given = order.shape[1], order >= 0
        else:
            if draws_elite and not rollouts.candidates:
                place = noise(f"elite.{depth}", _integers(batch_size, elites.shape[1]))
                elite = elites.gather(1, place)
            width = max(live)
            left = left[:, :width]
            position = torch.arange(width, device=device)
            given = position < torch.tensor(live, device=device)[:, None]  # (P, width)
        draws = Draws(action_noise, elite, model_noise, choice)
        imagined = _in_chunks(rollouts, world, policy, observation, draws, width)
        rows = imagined.rows
        finite = rows.isfinite().all(-1)
        keep = given & finite & (rollouts.keep_stopped | ~imagined.stopped)
        ended = keep & (rows[..., -1] != 0)
        survive = keep & ~ended & ~imagined.stopped
        goes_on = survive & (depth + 1 < left)
        tally.add(imagined, given, finite, keep, ended)
        kept, live = keep.sum(1).tolist(), goes_on.sum(1).tolist()
        if not rollouts.grouped and min(live) < width:
            # Those that go on first, then other survivors, then the ended, then the dropped.
            rank = 3 - goes_on.int() - survive.int() - keep.int()
            first = rank.argsort(dim=1, stable=True)
            rows = rows.gather(1, first[..., None].expand_as(rows))
            left, elite = left.gather(1, first), elite[:, :width].gather(1, first)
        for member, count in enumerate(kept):
            start = written[member]
            # Grouped rows keep their places.
            scattered = rollouts.grouped and count < width
            own = rows[member][keep[member]] if scattered else rows[member, :count]
            slot[member, start : start + count] = own
            written[member] += count
        if max(live) == 0:
            break
        observation = unpack(rows, observation_size, action_size).next_observation
    return torch.tensor(written, device=device), tally.health()


def dealt_out(live: Tensor, elites: int, sources: Sequence[torch.Generator]) -> Tensor:
    """Live rows in random order, for elites to take in turns: ``(P, R) bool -> (P, W) int64``.

    Every elite gets as many rows as any other, or one less, and a row gets each with the same
    probability. Row numbers; -1 is an empty place.
    """
    orders = []
    for own, source in zip(live, sources, strict=True):
        rows = own.nonzero().squeeze(1)
        count, device = len(rows), rows.device
        rows = rows[torch.randperm(count, generator=source, device=device)]
        if missing := -count % elites:
            # Who of the elites gets the rows left over is drawn too.
            last = F.pad(rows[count + missing - elites :], (0, missing), value=-1)
            drawn = torch.randperm(elites, generator=source, device=device)
            rows = torch.cat([rows[: count + missing - elites], last[drawn]])
        orders.append(rows)
    return pad_sequence(orders, batch_first=True, padding_value=-1)


def closed_up(live: Tensor, elites: int) -> Tensor:
    """Live rows, each with the elite that it has: ``(P, R) bool -> (P, W) int64``, -1 is empty."""
    own = live.view(len(live), -1, elites).transpose(1, 2).int()  # (P, E, R / E)
    counts = own.sum(-1, keepdim=True)
    turns = own.argsort(dim=-1, descending=True, stable=True)[..., : int(counts.max())]
    numbers = turns * elites + torch.arange(elites, device=live.device)[:, None]
    empty = torch.arange(turns.shape[-1], device=live.device) >= counts
    return numbers.masked_fill(empty, -1).transpose(1, 2).flatten(1)


def _in_chunks(
    rollouts: Rollouts,
    world: World,
    policy: Parameters,
    observation: Tensor,
    draws: Draws,
    width: int,
) -> Imagined:
    """One step of the first ``width`` rows."""
    chunk = rollouts.chunk

    def part(first: int) -> Imagined:
        def own(rows: Tensor) -> Tensor:
            return _padded(rows[:, first : min(first + chunk, width)], chunk)

        return rollouts.step(
            world,
            policy,
            own(observation),
            Draws._make(None if value is None else own(value) for value in draws),
            rollouts.pessimism,
            rollouts.bounds,
            rollouts.logged,
        )

    parts = zip(*(part(first) for first in range(0, width, chunk)), strict=True)
    return Imagined._make(
        None if each[0] is None else torch.cat(each, 1)[:, :width] for each in parts
    )


@torch.no_grad()
def measured(
    ensemble: DynamicsModel,
    penalty: Penalty,
    observation: Tensor,
    action: Tensor,
    spread: Tensor,
    seeds: Sequence[int],
) -> Tensor:
    """A penalty of logged pairs, with a sample of a drawn elite as in a rollout.

    Args:
        observation: ``(num_rows, S)``.
        action: ``(num_rows, A)``.
        spread: ``(S + 1,)``, of the data.

    Returns:
        ``(P, num_rows)``.
    """
    members, rows, device = len(seeds), len(observation), observation.device
    choice = draw(seeds, "measure.elite", 0, _integers(rows, ensemble.elites.shape[1]), device)
    noise = draw(seeds, "measure.model", 0, _normals(rows, len(spread)), device)
    elite = ensemble.elites.gather(1, choice)
    networks = ensemble.num_members
    chunk = chunk_rows(rows, members, device, networks)
    values = []
    for first in range(0, rows, chunk):
        here = slice(first, first + chunk)
        prediction = ensemble.predict(
            observation[here].expand(members, -1, -1), action[here].expand(members, -1, -1)
        )
        chosen = elite[:, None, here, None].expand(-1, 1, -1, len(spread))
        mean, std = (value.gather(1, chosen).squeeze(1) for value in prediction)
        sample = mean + std * noise[:, here]
        values.append(penalty(Sampled(prediction, elite[:, here], sample, spread)))
    return torch.cat(values, 1)


def upper_quantile(values: Tensor, quantile: float = 0.95) -> Tensor:
    """Of ``(P, n)``: the unit of ``scale: dataset_quantile``, and the limit of a stop.

    Returns:
        ``(P,)``, at least the smallest normal float.
    """
    rank = max(math.ceil(quantile * values.shape[1]), 1)  # torch.quantile refuses 2^24 values
    return values.kthvalue(rank, dim=1).values.clamp(min=torch.finfo(values.dtype).tiny)


def logged_range(observation: Tensor, reward: Tensor) -> LoggedRange:
    """Of the data's ``(n, S)``, the last of every episode too, and ``(num_rows,)``."""
    spread = torch.cat([observation.std(0, correction=0), reward.std(correction=0)[None]])
    return LoggedRange(
        observation.amin(0),
        observation.amax(0),
        spread.where(spread > 0, 1.0),
        reward.amin(),
        reward.amax(),
    )


def observation_bounds(observation: Tensor, widen: float | None) -> Bounds:
    """The data's range ``(n, S)``, each side widened by a fraction of it; None: no box."""
    if widen is None:
        limit = torch.full_like(observation[0], math.inf)
        return Bounds(-limit, limit)
    low, high = observation.amin(0), observation.amax(0)
    margin = widen * (high - low)
    return Bounds(low - margin, high + margin)


def _normals(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(shape, generator=generator, device=generator.device)


def _uniforms(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.rand(shape, generator=generator, device=generator.device)


def _integers(count: int, high: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randint(
        high, (count,), generator=generator, device=generator.device
    )


def _padded(rows: Tensor, count: int) -> Tensor:
    """``(P, n <= count, ...) -> (P, count, ...)``: shapes stay static for the compiled step."""
    missing = count - rows.shape[1]
    if missing == 0:
        return rows.contiguous()  # one stride pattern, as the compiled step was traced with
    return torch.cat([rows, rows.new_zeros(rows.shape[0], missing, *rows.shape[2:])], 1)
