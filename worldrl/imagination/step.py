"""One step of rollouts: what the model says next, what it pays less the penalty, and where it ends.

A proposal takes one sample of the model for each row; there are three. In all cases the next
observation and the reward are of one sample, of one elite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from worldrl.config.imagination import StopKind
from worldrl.imagination.setup import Ends
from worldrl.models.world import World
from worldrl.rows import pack
from worldrl.types import DynamicsModel, Parameters, Penalty, Prediction, Sampled, Transitions

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

    def clip(self, observation: Tensor) -> Tensor:
        """What is infinite stays so, and its row is dropped: the box would make a state of it."""
        return observation.where(observation.isinf(), observation.clamp(self.low, self.high))


class LoggedRange(NamedTuple):
    """What the data holds, to hold imagination against."""

    low: Tensor  # (S,)
    high: Tensor  # (S,)
    spread: Tensor  # (S + 1,) standard deviation, the reward's last; 1 where the data is constant
    reward_low: Tensor  # ()
    reward_high: Tensor  # ()


class Draws(NamedTuple):
    """What is drawn for one step of every row."""

    action: Tensor  # (P, C, A)
    elite: Tensor  # (P, C) int64, member numbers
    model: Tensor  # (P, C, S + 1); of several candidates (P, C, M, S + 1)
    choice: Tensor | None = None  # (P, C) uniform, of the candidate


class Proposal(NamedTuple):
    """The sample that each row takes."""

    value: Tensor  # (P, C, S + 1), before any box
    member: Tensor  # (P, C) int64, who made it
    prediction: Prediction | None = None  # of all members; None where they were not asked
    dynamics_reward: Tensor | None = None  # (P, C), of the sample; None where none was asked for
    stopped: Tensor | None = None  # (P, C) bool: too implausible to go on from; None: never


Propose = Callable[[World, Tensor, Tensor, Draws, Bounds], Proposal]


class Imagined(NamedTuple):
    """One model step for every row."""

    rows: Tensor  # (P, C, W) packed transitions, the reward already penalised
    reward: Tensor  # (P, C), before the penalty
    penalty: Tensor  # (P, C), scaled, unweighted
    disagreement: Tensor | None  # (P, C), see RolloutHealth; None where members were not asked
    dynamics_reward: Tensor | None  # (P, C); None where none was asked for
    clipped: Tensor  # (P, C) bool: some dimension left the box
    outside: Tensor  # (P, C) bool: some dimension, or the reward, left what the data holds
    stopped: Tensor  # (P, C) bool: too unsure or too implausible to go on from


Step = Callable[[World, Parameters, Tensor, Draws, Pessimism, Bounds, LoggedRange], Imagined]


def from_drawn_elite(
    world: World, observation: Tensor, action: Tensor, draws: Draws, bounds: Bounds
) -> Proposal:
    """The sample of the elite that each row drew, of all members' predictions."""
    prediction = world.ensemble.predict(observation, action)
    chosen = draws.elite[:, None, :, None].expand(-1, 1, -1, prediction.mean.shape[-1])
    mean, std = (value.gather(1, chosen).squeeze(1) for value in prediction)
    return Proposal(mean + std * draws.model, draws.elite, prediction)


def from_own_elite(
    world: World, observation: Tensor, action: Tensor, draws: Draws, bounds: Bounds
) -> Proposal:
    """The world holds elites alone, and row r is of elite r modulo their number: each row runs
    through that one, and nothing asks the others."""
    mean, std = own_predictions(world.ensemble, observation, action)
    return Proposal(mean + std * draws.model, draws.elite)


def imagined_step(
    act: Act,
    penalty: Penalty,
    ends: Ends,
    stop: Stop | None = None,
    propose: Propose = from_drawn_elite,
    implausible_ends: bool = False,
) -> Step:
    """The function of tensors that one rollout step is; whole, so that it compiles.

    Args:
        implausible_ends: a step at which the proposal stops is called terminal.
    """

    def step(
        world: World,
        policy: Parameters,
        observation: Tensor,  # (P, C, S)
        draws: Draws,
        pessimism: Pessimism,
        bounds: Bounds,
        logged: LoggedRange,
    ) -> Imagined:
        action = act(policy, observation, draws.action)
        proposal = propose(world, observation, action, draws, bounds)
        sample, prediction = proposal.value, proposal.prediction
        free, reward = sample[..., :-1], sample[..., -1]
        next_observation = bounds.clip(free)
        done = ends(world.terminator, observation, action, next_observation)
        penalised, disagreement = reward, None
        uncertainty, stopped = torch.zeros_like(reward), torch.zeros_like(done)
        if prediction is not None:
            sampled = Sampled(prediction, proposal.member, sample, logged.spread)
            uncertainty = penalty(sampled) / pessimism.scale[:, None]
            penalised = reward - pessimism.weight[:, None] * uncertainty
            if stop is not None:
                # What is not a number is not within the limit.
                stopped = ~done & ~(stop.measure(sampled) <= pessimism.limit[:, None])
                if stop.kind in ("terminal", "absorb"):
                    done = done | stopped
                if stop.kind == "absorb":
                    penalised = torch.where(stopped, pessimism.floor[:, None], penalised)
            spread = prediction.mean[..., :-1].var(1, correction=0) / logged.spread[:-1].square()
            disagreement = spread.mean(-1).sqrt()
        if proposal.stopped is not None:
            stopped = ~done & proposal.stopped
            if implausible_ends:
                done = done | stopped
        transitions = Transitions(
            observation, action, penalised, next_observation, done.to(reward.dtype)
        )
        beyond = ((free < logged.low) | (free > logged.high)).any(-1)
        return Imagined(
            rows=pack(transitions),
            reward=reward,
            penalty=uncertainty,
            disagreement=disagreement,
            dynamics_reward=proposal.dynamics_reward,
            clipped=(next_observation != free).any(-1),
            outside=beyond | (reward < logged.reward_low) | (reward > logged.reward_high),
            stopped=stopped,
        )

    assert stop is None or propose is not from_own_elite
    return step


def own_predictions(
    elites: DynamicsModel, observation: Tensor, action: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and deviation ``(P, C, S + 1)`` of rows that each run through one elite, in turns.

    Args:
        elites: alone, as :meth:`worldrl.types.DynamicsModel.of_elites` has them.
        observation: ``(P, C, S)``.
        action: ``(P, C, A)``.
    """
    count = elites.elites.shape[1]

    def dealt(rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), -1, count, rows.shape[-1]).transpose(1, 2)

    prediction = elites.predict_each(dealt(observation), dealt(action))
    mean, std = (value.transpose(1, 2).flatten(1, 2) for value in prediction)
    return mean, std
