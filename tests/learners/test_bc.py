"""Behaviour cloning against plain autograd, one member at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support import batch_of, context_of, of_member
from torch import Tensor

from worldrl.config.learners import BCSettings
from worldrl.learners import LEARNERS
from worldrl.learners.bc import BehaviourCloning
from worldrl.types import Batch, Transitions

P, S, A, B = 3, 4, 2, 6
SEEDS = (3, 4, 5)
CONTEXT = context_of(S, A)


def learner(**changes: Any) -> BehaviourCloning:
    settings = BCSettings.model_validate({"hidden": (7, 5), "learning_rate": 1e-2} | changes)
    return BehaviourCloning(settings, S, A, num_updates=8)


def state_of(bc: BehaviourCloning, seeds: tuple[int, ...] = SEEDS) -> Any:
    state = bc.initialise(seeds, CONTEXT.log)
    for part in state["actor"], state["actor_adam"].first, state["actor_adam"].second:
        for name, value in part.items():
            part[name] = value.double()
    return state


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = []
    for _ in range(count):
        action = normal(P, B, A).tanh()
        rest = normal(P, B), normal(P, B, S), torch.zeros(P, B)
        found.append(batch_of(Transitions(normal(P, B, S), action, *rest)))
    return found


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_five_updates_equal_plain_autograd(schedule: str):
    bc = learner(actor_schedule=schedule)
    state = state_of(bc)
    references = []
    for member in range(P):
        actor = {k: v[member].clone().requires_grad_() for k, v in state["actor"].items()}
        references.append((actor, torch.optim.Adam(actor.values(), lr=1e-2)))
    for number, batch in enumerate(batches(5)):
        metrics = bc.update(state, batch, {}, CONTEXT)
        assert tuple(metrics) == bc.metric_names
        for member, (actor, adam) in enumerate(references):
            hidden = batch.observation[member]
            for layer in range(3):
                hidden = hidden @ actor[f"weight.{layer}"] + actor[f"bias.{layer}"]
                hidden = hidden.relu() if layer < 2 else hidden.tanh()
            loss = ((hidden - batch.action[member]) ** 2).sum() / (B * A)
            adam.zero_grad()
            loss.backward()
            if schedule == "cosine":
                adam.param_groups[0]["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * number / 8))
            adam.step()
            assert metrics["actor_loss"][member].item() == pytest.approx(loss.item(), rel=1e-10)
    for member, (actor, adam) in enumerate(references):
        for name, value in actor.items():
            torch.testing.assert_close(state["actor"][name][member], value.data)
            first = state["actor_adam"].first[name][member]
            torch.testing.assert_close(first, adam.state[value]["exp_avg"])


def test_a_member_of_a_population_equals_its_lone_run():
    bc = learner()
    together, lone = state_of(bc), [state_of(bc, (seed,)) for seed in SEEDS]
    for batch in batches(50):
        bc.update(together, batch, {}, CONTEXT)
        for member in range(P):
            bc.update(lone[member], of_member(batch, member), {}, CONTEXT)
    for name, value in together["actor"].items():
        joined = torch.cat([state["actor"][name] for state in lone])
        torch.testing.assert_close(value, joined, rtol=1e-9, atol=1e-9)


def test_acts_within_bounds_and_ignores_noise():
    bc = learner()
    state = state_of(bc)
    policy = bc.policy_parameters(state)
    assert policy["weight.0"] is state["actor"]["weight.0"]
    observation = 100 * torch.randn(P, B, S).double()
    action = bc.act(policy, observation, None)
    assert action.shape == (P, B, A)
    assert action.abs().max() <= 1
    assert action.equal(bc.act(policy, observation, torch.randn(P, B, A).double()))


def test_draws_no_noise():
    assert learner().noise(torch.Generator(), 9, B) == {}


def test_registry_builds_it_from_its_settings():
    built = LEARNERS["bc"](BCSettings(learning_rate=0.5), S, A, 100)  # type: ignore[call-arg]
    assert isinstance(built, BehaviourCloning)
    assert built.initialise((3, 4), CONTEXT.log)["settings"]["learning_rate"].tolist() == [0.5, 0.5]


def test_members_may_have_learning_rates_of_their_own():
    state = learner(learning_rate=(1e-2, 1e-3, 0.1)).initialise((5, 6), CONTEXT.log, first=1)
    assert state["settings"]["learning_rate"].tolist() == [1e-3, 0.1]


def test_recovers_the_policy_that_logged_the_data():
    bc = learner(hidden=(32,), learning_rate=1e-2)
    state = bc.initialise((0, 1), CONTEXT.log)
    generator = torch.Generator().manual_seed(0)
    matrix = 0.5 * torch.randn(S, A, generator=generator)
    nothing = torch.zeros(2, 64)
    for _ in range(400):
        observation = torch.randn(2, 64, S, generator=generator)
        action = (observation @ matrix).tanh()
        batch = batch_of(Transitions(observation, action, nothing, observation, nothing))
        metrics = bc.update(state, batch, {}, CONTEXT)
    assert metrics["actor_loss"].max() < 2e-3
    fresh = torch.randn(2, 500, S, generator=generator)
    error = bc.act(state["actor"], fresh, None) - (fresh @ matrix).tanh()
    assert error.square().mean() < 3e-3
