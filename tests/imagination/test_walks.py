"""Walks against a loop written out here, and the judge's sums over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import log_of, of_member
from torch import Tensor

from worldrl.config.learners import IQLSettings
from worldrl.imagination.penalties import PENALTIES
from worldrl.imagination.rollout import measured, upper_quantile
from worldrl.imagination.walks import Ground, ground_of, walk
from worldrl.learners.iql import IQL
from worldrl.models.ensemble import Ensemble, Standardizer, init_ensemble
from worldrl.models.world import World
from worldrl.random import draw, generator
from worldrl.training.judging.judge import ASKED, Judge
from worldrl.types import Parameters, Sampled

S, A, WALKS, HORIZON = 3, 2, 6, 5
SEEDS = (4, 5, 6)
LOG = log_of(60, S, A)
LIMIT = 3.0


class Linear:
    """A policy that is a matrix, and noisy where it is asked to be."""

    def act(self, policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
        action = (observation @ policy["weight"]).tanh()
        return action if noise is None else action + noise


def ends(terminator: Parameters, observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    return following[..., 0] > LIMIT


def world(seeds: tuple[int, ...] = SEEDS) -> World:
    parameters = init_ensemble([generator(seed, "init") for seed in seeds], S, A, (8,), 4)
    count = len(seeds)
    return World(
        Ensemble(
            parameters,
            Standardizer(torch.zeros(count, S + A), torch.ones(count, S + A)),
            Standardizer(torch.zeros(count, S + 1), torch.ones(count, S + 1)),
            torch.stack([torch.randperm(4, generator=generator(seed, "e"))[:2] for seed in seeds]),
        ),
        {},
    )


def ground(seeds: tuple[int, ...] = SEEDS) -> Ground:
    return ground_of(world(seeds), ends, seeds, "ensemble_std", LOG)


def policy(members: int) -> Parameters:
    weight = torch.randn(1, S, A, generator=torch.Generator().manual_seed(7))
    return {"weight": weight.expand(members, -1, -1)}


STARTS = LOG.transitions.observation[:WALKS]


def walked(seeds: tuple[int, ...], number: int = 0) -> list:
    starts = STARTS.expand(len(seeds), -1, -1)
    return list(walk(ground(seeds), Linear().act, policy(len(seeds)), starts, HORIZON, number))


def test_the_penalty_is_in_units_of_its_quantile_on_the_data():
    logged, known = LOG.transitions, ground()
    pairs = logged.observation, logged.action
    values = measured(
        world().ensemble, PENALTIES["ensemble_std"], *pairs, known.logged.spread, SEEDS
    )
    assert known.unit.equal(upper_quantile(values, 0.95))
    assert ((values > known.unit[:, None]).sum(1) == 3).all()  # of 60


@torch.no_grad()
def test_a_walk_is_the_policys_own_action_in_one_elite_a_step():
    """Row by row, with the draws that a walk names."""
    steps, places = walked(SEEDS), world().ensemble
    known = ground()
    for member, seed in enumerate(SEEDS):
        own = of_member(places, member)
        for row in range(WALKS):
            observation, alive = STARTS[row], True
            for depth, visited in enumerate(steps):
                assert bool(visited.alive[member, row]) == alive
                if not alive:
                    break
                action = (observation @ policy(1)["weight"][0]).tanh()
                chosen = draw(
                    [seed], f"walk.elite.{depth}", 0,
                    lambda g: torch.randint(2, (WALKS,), generator=g),
                )[0, row]  # fmt: skip
                noise = draw(
                    [seed], f"walk.model.{depth}", 0,
                    lambda g: torch.randn(WALKS, S + 1, generator=g),
                )[0, row]  # fmt: skip
                elite = own.elites[:, chosen]
                prediction = own.predict(observation[None, None], action[None, None])
                sample = (prediction.mean + prediction.std * noise)[0, elite[0], 0]
                following = sample[:S].clamp(known.bounds.low, known.bounds.high)
                sampled = Sampled(
                    prediction, elite[:, None], sample[None, None], known.logged.spread
                )
                penalty = PENALTIES["ensemble_std"](sampled)[0, 0] / known.unit[member]
                at = of_member(visited.transitions, member)
                for found, wanted in (
                    (at.observation, observation), (at.action, action), (at.reward, sample[S]),
                    (at.next_observation, following), (visited.penalty[member][None], penalty),
                ):  # fmt: skip
                    torch.testing.assert_close(found[0, row], wanted, rtol=1e-4, atol=1e-5)
                alive = bool(following[0] <= LIMIT)
                assert bool(visited.goes_on[member, row]) == alive
                observation = following
    everything = torch.stack([visited.alive for visited in steps])
    assert 0 < (~everything).sum() < everything.numel()  # some walks ended, some did not


def test_a_world_alone_is_walked_as_among_others_and_another_number_draws_anew():
    together = walked(SEEDS)
    for member, seed in enumerate(SEEDS):
        for alone, all_of_them in zip(walked((seed,)), together, strict=False):
            own = of_member(all_of_them, member)
            torch.testing.assert_close(alone.transitions, own.transitions)
            assert alone.alive.equal(own.alive)
    other = walked(SEEDS, number=1)[0].transitions.next_observation
    assert not other.equal(together[0].transitions.next_observation)


def test_what_is_not_finite_ends_a_walk_and_is_told():
    broken = world()
    broken.ensemble.parameters["bias.1"][1] = torch.nan
    spoiled = ground()._replace(world=broken)
    starts = STARTS.expand(3, -1, -1)
    steps = list(walk(spoiled, Linear().act, policy(3), starts, HORIZON))
    assert steps[0].broken.all(1).tolist() == [False, True, False]
    assert not any(visited.alive[1].any() for visited in steps)
    assert not any(visited.broken[1].any() for visited in steps[1:])


# -- the judge --------------------------------------------------------------------------------


def judge(seeds: tuple[int, ...] = SEEDS) -> Judge:
    learner = IQL(IQLSettings(hidden=(7,), discount=0.9, standardize=True), S, A, 1)
    state = learner.initialise(seeds, LOG)
    return Judge(ground(seeds), learner, {name: state[name] for name in ASKED}, STARTS, HORIZON)


@pytest.mark.parametrize("seeds", [SEEDS, (5,)])
def test_the_estimate_against_numpy(seeds):
    """J counts 0 after a walk's end; values are the least critic's at the policy's own action."""
    known = judge(seeds)
    found = known.estimate(Linear(), policy(1))
    steps, count = walked(seeds), len(seeds)
    critic, value = (
        {name: one.double().numpy() for name, one in known.values[part].items()}
        for part in ("critic", "value")
    )
    mean, scale = (known.values["inputs"][f"observation_{n}"].double() for n in ("mean", "scale"))

    def network(weights: dict[str, np.ndarray], inputs: np.ndarray) -> np.ndarray:
        hidden = np.maximum(inputs @ weights["weight.0"] + weights["bias.0"], 0)
        return (hidden @ weights["weight.1"] + weights["bias.1"])[..., 0]

    for k in range(count):
        own = {name: one[k] for name, one in critic.items()}
        ahead = {name: one[k] for name, one in value.items()}
        total, rewards, discounted, penalty, taken, ended = 0.0, 0.0, 0.0, 0.0, 0, 0
        for row in range(WALKS):
            for depth, visited in enumerate(steps):
                if not visited.alive[k, row]:
                    break
                at = visited.transitions
                seen = ((at.observation[k, row].double() - mean[k, 0]) / scale[k, 0]).numpy()
                inputs = np.concatenate([seen, at.action[k, row].double().numpy()])
                total += network(own, inputs[None]).min()
                rewards += float(at.reward[k, row])
                discounted += 0.9**depth * float(at.reward[k, row])
                penalty += float(visited.penalty[k, row])
                taken += 1
                ended += int(at.terminated[k, row])
                if depth == HORIZON - 1 and not at.terminated[k, row]:
                    last = (at.next_observation[k, row].double() - mean[k, 0]) / scale[k, 0]
                    discounted += 0.9**HORIZON * float(network(ahead, last.numpy()[None])[0])
        wanted = {
            "value": total / (HORIZON * WALKS),
            "model_return": rewards / WALKS,
            "discounted_value": discounted / WALKS,
            "penalty": penalty / taken,
            "ended_share": ended / WALKS,
            "length": taken / WALKS,
            "broken_share": 0.0,
        }
        for name, number in wanted.items():
            assert float(getattr(found, name)[k]) == pytest.approx(number, rel=1e-4), name
    assert 0 <= found.clipped_share.min() <= found.outside_share.max() <= 1


def test_every_judge_looks_at_every_policy_by_itself():
    together = judge().estimate(Linear(), policy(1))
    for k, seed in enumerate(SEEDS):
        alone = judge((seed,)).estimate(Linear(), policy(1))
        for one, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(one, all_of_them[k : k + 1])
