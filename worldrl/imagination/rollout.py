"""Branched rollouts: short imagined trajectories from logged states.

Janner et al. 2019 (arXiv 1906.08253) and Yu et al. 2020 (arXiv 2005.13239). Every row draws one
elite a step and takes the next observation and the reward of that member's sample; the reward is
lowered by the weighted penalty. Terminal rows are stored and leave; neither the horizon nor an
uncertainty stop sets ``terminated``, but for the stop that is an absorbing state by definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldrl.config.schema import StopKind
from worldrl.imagination.setup import Ends
from worldrl.models.world import World
from worldrl.random import draw
from worldrl.rows import pack, unpack
from worldrl.types import DynamicsModel, Parameters, Penalty, Transitions

#: Rows that one model call works on, over all members: their activations then stay in cache.
CPU_CHUNK = 2048
CUDA_CHUNK = 65536

Act = Callable[[Parameters, Tensor, Tensor | None], Tensor]


class Pessimism(NamedTuple):
    """What is taken off an imagined reward, and where a rollout stops; one value per member."""

    weight: Tensor  # (P,)
    scale: Tensor  # (P,), the penalty is divided by it
    limit: Tensor  # (P,), a rollout stops where the stop's measure exceeds it
    floor: Tensor  # (P,), reward of the step into an absorbing stop


class Stop(NamedTuple):
    """How a rollout ends where the model is unsure."""

    kind: StopKind
    measure: Penalty


class Bounds(NamedTuple):
    """The box that imagined observations are clipped to."""

    low: Tensor  # (S,)
    high: Tensor  # (S,)


class LoggedRange(NamedTuple):
    """What the data holds, to hold imagination against."""

    low: Tensor  # (S,)
    high: Tensor  # (S,)
    spread: Tensor  # (S,) standard deviation, 1 where the data is constant
    reward_low: Tensor  # ()
    reward_high: Tensor  # ()


class Imagined(NamedTuple):
    """One model step for every row."""

    rows: Tensor  # (P, C, W) packed transitions, the reward already penalised
    reward: Tensor  # (P, C), before the penalty
    penalty: Tensor  # (P, C), scaled, unweighted
    disagreement: Tensor  # (P, C), see RolloutHealth
    clipped: Tensor  # (P, C) bool: some dimension left the box
    outside: Tensor  # (P, C) bool: some dimension, or the reward, left what the data holds
    stopped: Tensor  # (P, C) bool: the stop's measure exceeded its limit


class RolloutHealth(NamedTuple):
    """What a refresh tells about itself; each ``(P,)``."""

    rows: Tensor  # transitions written
    penalty_mean: Tensor
    penalty_max: Tensor
    reward_min: Tensor  # before the penalty
    reward_max: Tensor
    reward_mean: Tensor
    disagreement_mean: Tensor  # deviation of the members' means, in deviations of the data
    outside_share: Tensor  # of rows, next observation or reward beyond any logged one
    clipped_share: Tensor  # of rows, some dimension clipped to the box
    terminated_share: Tensor
    stopped_share: Tensor  # of finite rows, dropped ones too: ended there for uncertainty
    nonfinite: Tensor  # rows dropped because a prediction was not finite


Step = Callable[
    [World, Parameters, Tensor, Tensor, Tensor, Tensor, Pessimism, Bounds, LoggedRange], Imagined
]


def imagined_step(act: Act, penalty: Penalty, ends: Ends, stop: Stop | None = None) -> Step:
    """The function of tensors that one rollout step is; whole, so that it compiles."""

    def step(
        world: World,
        policy: Parameters,
        observation: Tensor,  # (P, C, S)
        action_noise: Tensor,  # (P, C, A)
        elite: Tensor,  # (P, C) int64, member numbers
        model_noise: Tensor,  # (P, C, S + 1)
        pessimism: Pessimism,
        bounds: Bounds,
        logged: LoggedRange,
    ) -> Imagined:
        action = act(policy, observation, action_noise)
        prediction = world.ensemble.predict(observation, action)
        chosen = elite[:, None, :, None].expand(-1, 1, -1, prediction.mean.shape[-1])
        mean = prediction.mean.gather(1, chosen).squeeze(1)
        std = prediction.std.gather(1, chosen).squeeze(1)
        sample = mean + std * model_noise
        free, reward = sample[..., :-1], sample[..., -1]
        # What is infinite stays so, and its row is dropped: the box would make a state of it.
        next_observation = free.where(free.isinf(), free.clamp(bounds.low, bounds.high))
        uncertainty = penalty(prediction) / pessimism.scale[:, None]
        penalised = reward - pessimism.weight[:, None] * uncertainty
        done = ends(world.terminator, observation, action, next_observation)
        stopped = torch.zeros_like(done)
        if stop is not None:
            stopped = ~done & (stop.measure(prediction) > pessimism.limit[:, None])
            if stop.kind in ("terminal", "absorb"):
                done = done | stopped
            if stop.kind == "absorb":
                penalised = torch.where(stopped, pessimism.floor[:, None], penalised)
        transitions = Transitions(
            observation, action, penalised, next_observation, done.to(reward.dtype)
        )
        spread = prediction.mean[..., :-1].var(1, correction=0) / logged.spread.square()
        beyond = ((free < logged.low) | (free > logged.high)).any(-1)
        return Imagined(
            rows=pack(transitions),
            reward=reward,
            penalty=uncertainty,
            disagreement=spread.mean(-1).sqrt(),
            clipped=(next_observation != free).any(-1),
            outside=beyond | (reward < logged.reward_low) | (reward > logged.reward_high),
            stopped=stopped,
        )

    return step


def chunk_rows(rows: int, members: int, device: torch.device) -> int:
    """Rows per member in one model call: even chunks, so that little is padding."""
    limit = max((CPU_CHUNK if device.type == "cpu" else CUDA_CHUNK) // members, 1)
    return math.ceil(rows / math.ceil(rows / limit))


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
    keep_stopped: bool = True  # write the step at which a rollout was stopped for uncertainty


@torch.no_grad()
def imagine(
    rollouts: Rollouts, slot: Tensor, number: int, policy: Parameters
) -> tuple[Tensor, RolloutHealth]:
    """Roll out every member's starts, for its horizon at most.

    Noise comes from blocks named by ``number`` and the step and is indexed by row position, so
    that a member's rows are those of its lone run, and can be made again from the number and the
    policy.

    Args:
        slot: ``(P, capacity, W)``; rows are written to its front.

    Returns:
        Rows written ``(P,)`` int64, and their health.
    """
    world, starts, seeds = rollouts.world, rollouts.starts, rollouts.seeds
    batch_size = rollouts.batch_size
    device, members = starts.device, len(seeds)
    observation_size = starts.shape[1]
    action_size = slot.shape[-1] - 2 * observation_size - 2
    elites = world.ensemble.elites
    chunk = chunk_rows(batch_size, members, device)

    def noise(name: str, sample: Callable[[torch.Generator], Tensor]) -> Tensor:
        return draw(seeds, f"rollout.{name}", number, sample, device)

    picked = noise("start", _integers(batch_size, len(starts)))
    observation = starts[picked]  # (P, R, S); each member's live rows come first
    live = [batch_size] * members
    written = [0] * members
    tally = Tally(members, device)
    limits = torch.tensor(list(rollouts.horizons), device=device)[:, None]
    for depth in range(max(rollouts.horizons)):
        action_noise = noise(f"action.{depth}", _normals(batch_size, action_size))
        model_noise = noise(f"model.{depth}", _normals(batch_size, observation_size + 1))
        choice = noise(f"elite.{depth}", _integers(batch_size, elites.shape[1]))
        elite = elites.gather(1, choice)
        width = max(live)
        parts = []
        for first in range(0, width, chunk):
            here = slice(first, first + chunk)
            parts.append(
                rollouts.step(
                    world,
                    policy,
                    _padded(observation[:, here], chunk),
                    _padded(action_noise[:, here], chunk),
                    _padded(elite[:, here], chunk),
                    _padded(model_noise[:, here], chunk),
                    rollouts.pessimism,
                    rollouts.bounds,
                    rollouts.logged,
                )
            )
        imagined = Imagined(*(torch.cat(parts, 1)[:, :width] for parts in zip(*parts, strict=True)))
        rows = imagined.rows
        position = torch.arange(width, device=device)
        given = position < torch.tensor(live, device=device)[:, None]  # (P, width)
        finite = rows.isfinite().all(-1)
        keep = given & finite & (rollouts.keep_stopped | ~imagined.stopped)
        ended = keep & (rows[..., -1] != 0)
        survive = keep & ~ended & ~imagined.stopped
        tally.add(imagined, given, finite, keep, ended)
        kept, live = keep.sum(1).tolist(), (survive & (depth + 1 < limits)).sum(1).tolist()
        if min(live) < width:  # survivors first, then the ended, then the dropped
            rank = 2 - survive.int() - keep.int()
            order = rank.argsort(dim=1, stable=True)
            rows = rows.gather(1, order[..., None].expand_as(rows))
        for member, count in enumerate(kept):
            start = written[member]
            slot[member, start : start + count] = rows[member, :count]
            written[member] += count
        if max(live) == 0:
            break
        observation = unpack(rows, observation_size, action_size).next_observation
    return torch.tensor(written, device=device), tally.health()


class Tally:
    """Sums of what a refresh's :class:`RolloutHealth` reports; stays on the device."""

    def __init__(self, members: int, device: torch.device) -> None:
        zero = torch.zeros(members, device=device)
        self.rows, self.finite, self.nonfinite = (zero.clone() for _ in range(3))
        self.stopped, self.penalty_max = zero.clone(), zero.clone()
        self.sums = dict.fromkeys(
            ("penalty", "reward", "disagreement", "clipped", "outside", "ended"), zero
        )
        self.reward_min, self.reward_max = zero + math.inf, zero - math.inf

    def add(
        self, imagined: Imagined, given: Tensor, finite: Tensor, keep: Tensor, ended: Tensor
    ) -> None:
        """Count one depth; the masks are ``(P, width)``."""
        reward = imagined.reward
        self.rows += keep.sum(1)
        self.finite += (given & finite).sum(1)
        self.nonfinite += (given & ~finite).sum(1)
        self.stopped += (given & finite & imagined.stopped).sum(1)
        values = imagined._asdict() | {"ended": ended}
        for name, total in self.sums.items():
            self.sums[name] = total + values[name].where(keep, 0).sum(1)
        self.penalty_max = torch.maximum(
            self.penalty_max, imagined.penalty.where(keep, 0.0).amax(1)
        )
        self.reward_min = torch.minimum(self.reward_min, reward.where(keep, math.inf).amin(1))
        self.reward_max = torch.maximum(self.reward_max, reward.where(keep, -math.inf).amax(1))

    def health(self) -> RolloutHealth:
        """Sums turned into means and shares."""
        mean = {name: total / self.rows.clamp(min=1) for name, total in self.sums.items()}
        return RolloutHealth(
            rows=self.rows,
            penalty_mean=mean["penalty"],
            penalty_max=self.penalty_max,
            reward_min=self.reward_min.where(self.rows > 0, 0.0),
            reward_max=self.reward_max.where(self.rows > 0, 0.0),
            reward_mean=mean["reward"],
            disagreement_mean=mean["disagreement"],
            outside_share=mean["outside"],
            clipped_share=mean["clipped"],
            terminated_share=mean["ended"],
            stopped_share=self.stopped / self.finite.clamp(min=1),
            nonfinite=self.nonfinite,
        )


@torch.no_grad()
def penalty_quantile(
    ensemble: DynamicsModel,
    penalty: Penalty,
    observation: Tensor,
    action: Tensor,
    quantile: float = 0.95,
) -> Tensor:
    """The penalty's quantile over logged pairs: the unit of ``scale: dataset_quantile``, and the
    limit of a stop.

    Args:
        observation: ``(num_rows, S)``.
        action: ``(num_rows, A)``.

    Returns:
        ``(P,)``, at least the smallest normal float.
    """
    members = ensemble.elites.shape[0]
    chunk = chunk_rows(len(observation), members, observation.device)
    values = [
        penalty(
            ensemble.predict(
                observation[first : first + chunk].expand(members, -1, -1),
                action[first : first + chunk].expand(members, -1, -1),
            )
        )
        for first in range(0, len(observation), chunk)
    ]
    joined = torch.cat(values, 1)
    rank = max(math.ceil(quantile * joined.shape[1]), 1)  # torch.quantile refuses 2^24 values
    return joined.kthvalue(rank, dim=1).values.clamp(min=torch.finfo(joined.dtype).tiny)


def logged_range(observation: Tensor, reward: Tensor) -> LoggedRange:
    """Of the data's ``(n, S)``, the last of every episode too, and ``(num_rows,)``."""
    spread = observation.std(0, correction=0)
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
