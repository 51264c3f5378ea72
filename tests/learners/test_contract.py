"""What every registered learner keeps to; a new one is covered by being registered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import batch_of, converted, log_of, of_member, tree_map
from torch import Tensor

from worldrl.config.fields import group_of
from worldrl.config.schema import TrainConfig
from worldrl.learners import LEARNERS
from worldrl.models.anchors import anchor_networks, init_seeker
from worldrl.models.ensemble import Ensemble, Standardizer, init_ensemble
from worldrl.random import generator
from worldrl.training.compilation import compiled, compiler_available
from worldrl.training.stages import flat
from worldrl.types import (
    Batch,
    Context,
    Learner,
    LearnerState,
    Metrics,
    Noise,
    Transitions,
    ValueLearner,
)

S, A, B, LOGGED = 4, 2, 6, 3
SEEDS = (3, 4, 5)
CPU = torch.device("cpu")
GROUP = group_of(TrainConfig.model_fields["learner"])
assert GROUP is not None
KINDS = sorted(GROUP.classes)

ENCODER = {"kind": "cocoa", "hidden": [6], "num_features": 5, "rank": 2}

#: Settings beside the defaults under which the contract must hold too.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "iql": [
        {"policy": "deterministic"},
        {"dropout": 0.3},
        {"layer_norm": True, "init": "edac"},
        {
            "policy": "deterministic",
            "standardize": True,
            "num_critics": 5,
            "quantile": 0.3,
            "target_low": -1.0,
            "target_high": 1.0,
        },
    ],
    "sac": [
        {"num_critics": 4, "diversity": 2.0},
        {"num_critics": 4, "diversity": 2.0, "layer_norm": True},
        {
            "num_critics": 4,
            "diversity": 2.0,
            "critic_loss": {"kind": "hl_gauss", "num_bins": 11},
        },
        {"init": "orthogonal"},
        {"num_critics": 4, "target_critics": 2, "actor_every": 3, "actor_values": "mean"},
        {"backup_actions": 3},
        {"cloning_updates": 3},
        {"encoder": ENCODER, "standardize": True, "init": "edac", "layer_norm": True},
        {"encoder": ENCODER, "num_critics": 4, "diversity": 2.0},
    ],
    "cql": [
        {"gap_target": 1.0},
        {"max_target_backup": True, "entropy_in_target": True},
        {"conservative_rows": "imagined", "num_sampled_actions": 2},
    ],
    "td3bc": [{"standardize": False}],
    "prdc": [{"standardize": False}, {"candidates": 7}],
    "rebrac": [{"layer_norm_place": "before"}, {"init": "default"}],
    "h2o": [{"num_critics": 3, "entropy_in_target": True, "gap_samples": 2}],
    "mobile": [{"target_min": 0.0}, {"entropy_in_target": True, "num_samples": 3}],
}


def variants() -> list[Any]:
    """Every kind as it is, and with each of its switches the other way."""
    found = []
    for kind in KINDS:
        assert GROUP is not None
        changes: list[dict[str, Any]] = [{}, {"standardize": True}, {"encoder": ENCODER}]
        changes += VARIANTS.get(kind, [])
        if "critic_loss" in GROUP.classes[kind].model_fields:
            changes.append({"critic_loss": {"kind": "hl_gauss", "num_bins": 11}})
            changes.append({"critic_loss": {"kind": "huber", "threshold": 0.1}})
        found += [pytest.param(kind, change, id=f"{kind} {change or ''}") for change in changes]
    return found


every = pytest.mark.parametrize(("kind", "changes"), variants())


def learner_of(kind: str, changes: dict[str, Any]) -> Learner:
    assert GROUP is not None
    settings = GROUP.classes[kind].model_validate({"hidden": (7, 5), **changes})
    return LEARNERS[kind](settings, S, A, 100)


def world(seeds: tuple[int, ...], dtype: torch.dtype) -> Ensemble:
    """Untrained, a member of the population by its seed."""
    count = len(seeds)
    parameters = init_ensemble([generator(seed, "init") for seed in seeds], S, A, (8,), 4)
    return converted(
        Ensemble(
            parameters,
            Standardizer(torch.zeros(count, S + A), torch.ones(count, S + A)),
            Standardizer(torch.zeros(count, S + 1), torch.ones(count, S + 1)),
            torch.stack([torch.randperm(4, generator=generator(seed, "e"))[:2] for seed in seeds]),
        ),
        dtype,
    )


LOG = log_of(40, S, A)


def initialised(learner: Learner, seeds: tuple[int, ...], first: int = 0) -> LearnerState:
    """A fresh state, with what an encoder of those settings asks."""
    state = learner.initialise(seeds, LOG, first)
    if learner.settings.encoder.kind == "cocoa":  # type: ignore[attr-defined]
        inputs = Standardizer(torch.zeros(len(seeds), S), torch.ones(len(seeds), S))
        seeker = init_seeker([generator(seed, "seeker") for seed in seeds], inputs, A, (5,))
        state["inputs"] |= anchor_networks(seeker, world(seeds, torch.float32))
    return state


def context_of(seeds: tuple[int, ...], dtype: torch.dtype) -> Context:
    return Context(converted(LOG, dtype), world(seeds, dtype))


def state_of(learner: Learner, seeds: tuple[int, ...], dtype: torch.dtype) -> LearnerState:
    state: LearnerState = converted(initialised(learner, seeds), dtype)
    return state


def updates(learner: Learner, count: int, dtype: torch.dtype) -> list[tuple[Batch, Noise]]:
    """Batches whose first rows are the log's; another draw for every member."""
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    found = []
    members = len(SEEDS)
    for _ in range(count):
        rows = torch.randint(40, (members, LOGGED), generator=source)
        imagined = Transitions(
            normal(members, B - LOGGED, S),
            normal(members, B - LOGGED, A).tanh(),
            normal(members, B - LOGGED),
            normal(members, B - LOGGED, S),
            (torch.rand(members, B - LOGGED, generator=source) < 0.3).float(),
        )
        joined = [
            torch.cat([logged[rows], other], 1)
            for logged, other in zip(LOG.transitions, imagined, strict=True)
        ]
        batch = batch_of(Transitions(*joined))._replace(logged=rows)
        drawn = [learner.noise(source, 1, B) for _ in range(members)]
        noise = {name: torch.cat([one[name] for one in drawn]) for name in drawn[0]}
        found.append((converted(batch, dtype), converted(noise, dtype)))
    return found


def trained(learner: Learner, state: LearnerState, count: int, dtype: torch.dtype) -> None:
    for number, (batch, noise) in enumerate(updates(learner, count, dtype)):
        learner.update(state, batch, noise, context_of(SEEDS, dtype), number % learner.phases)


@every
def test_shapes(kind: str, changes: dict[str, Any]) -> None:
    learner = learner_of(kind, changes)
    state = initialised(learner, SEEDS)
    for name, value in flat(state).items():
        assert value.shape[0] == len(SEEDS), name
    for value in state["settings"].values():
        assert value.shape == (len(SEEDS),)
        assert value.dtype == torch.float64
    seen: set[str] = set()
    for phase, (batch, noise) in enumerate(updates(learner, learner.phases, torch.float32)):
        metrics = learner.update(state, batch, noise, context_of(SEEDS, torch.float32), phase)
        for value in metrics.values():
            assert value.shape == (len(SEEDS),)
            assert value.isfinite().all()
        seen |= set(metrics)
    assert seen == set(learner.metric_names)
    block = learner.noise(torch.Generator(), 5, B)
    assert all(len(value) == 5 for value in block.values())


@every
def test_every_network_learns_and_the_settings_stay(kind: str, changes: dict[str, Any]) -> None:
    learner = learner_of(kind, changes)
    state = initialised(learner, SEEDS)
    before = {name: value.clone() for name, value in flat(state).items()}
    trained(learner, state, 4 * learner.phases, torch.float32)
    after = flat(state)
    assert list(after) == list(before)
    for name, value in before.items():
        assert after[name].isfinite().all() or name.startswith("settings/"), name
        if name.startswith(("settings/", "inputs/", "support/")):
            assert after[name].equal(value), name
        elif "weight" in name:
            assert not after[name].equal(value), f"{name} did not change"


@every
def test_logged_actions_at_the_bounds_are_harmless(kind: str, changes: dict[str, Any]) -> None:
    """The trap of a squashed density at -1 and 1, whose inverse tanh is infinite."""
    learner = learner_of(kind, changes)
    state = initialised(learner, SEEDS)
    for phase, (batch, noise) in enumerate(updates(learner, 2 * learner.phases, torch.float32)):
        extreme = batch._replace(action=batch.action.sign())
        context = context_of(SEEDS, torch.float32)
        log = context.log._replace(
            transitions=context.log.transitions._replace(action=LOG.transitions.action.sign()),
            next_action=LOG.next_action.sign(),
        )
        context = context._replace(log=log)
        metrics = learner.update(state, extreme, noise, context, phase % learner.phases)
        assert all(value.isfinite().all() for value in metrics.values())
    for name, value in flat(state).items():
        assert value.isfinite().all() or name.startswith("settings/"), name


@every
def test_acts_within_bounds(kind: str, changes: dict[str, Any]) -> None:
    learner = learner_of(kind, changes)
    state = initialised(learner, SEEDS)
    policy = learner.policy_parameters(state)
    assert all(len(value) == len(SEEDS) for value in policy.values())
    observation, noise = 100 * torch.randn(3, 50, S), 3 * torch.randn(3, 50, A)
    for given in None, noise:
        action = learner.act(policy, observation, given)
        assert action.shape == (3, 50, A)
        assert action.abs().max() <= 1
    again = learner.act(policy, observation, None)
    assert again.equal(learner.act(policy, observation, None))


@every
def test_learners_with_critics_tell_what_an_action_is_worth(
    kind: str, changes: dict[str, Any]
) -> None:
    """Of the critics, which have moved, not of their targets; of the members' own, each."""
    learner = learner_of(kind, changes)
    state = initialised(learner, SEEDS)
    if kind == "bc":
        assert not isinstance(learner, ValueLearner)
        return
    assert isinstance(learner, ValueLearner)
    trained(learner, state, 2 * learner.phases, torch.float32)
    observation, action = torch.randn(3, 9, S), torch.randn(3, 9, A).tanh()
    found = learner.values(state, observation, action)
    assert found.shape == (3, 9)
    assert found.isfinite().all()
    assert not found.equal(learner.values(state, observation, -action))
    assert not found.equal(learner.values(state, -observation, action))
    frozen = tree_map(lambda value: value.clone(), state)
    for name, value in flat(frozen).items():
        if name.startswith("target/"):
            value.fill_(torch.nan)
        if name.startswith("critic/"):
            value[1] = torch.nan
    again = learner.values(frozen, observation, action)
    assert again[[0, 2]].equal(found[[0, 2]])
    assert again[1].isnan().all()


@every
def test_a_member_of_a_population_equals_its_lone_run(kind: str, changes: dict[str, Any]) -> None:
    """In float64, to 1e-6."""
    learner = learner_of(kind, changes)
    together = state_of(learner, SEEDS, torch.float64)
    lone = [state_of(learner, (seed,), torch.float64) for seed in SEEDS]
    for number, (batch, noise) in enumerate(updates(learner, 20, torch.float64)):
        phase = number % learner.phases
        learner.update(together, batch, noise, context_of(SEEDS, torch.float64), phase)
        for member, seed in enumerate(SEEDS):
            own = of_member({"batch": batch, "noise": noise}, member)
            context = context_of((seed,), torch.float64)
            learner.update(lone[member], own["batch"], own["noise"], context, phase)
    for name, value in flat(together).items():
        joined = torch.cat([flat(state)[name] for state in lone])
        torch.testing.assert_close(value, joined, rtol=1e-6, atol=1e-6)


@every
def test_a_later_member_starts_and_learns_as_alone(kind: str, changes: dict[str, Any]) -> None:
    learner = learner_of(kind, changes)
    whole, later = initialised(learner, SEEDS), initialised(learner, SEEDS[1:], first=1)
    for name, value in flat(later).items():
        assert flat(whole)[name][1:].equal(value), name


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {"standardize": True}) for kind in KINDS),
        *((kind, {"encoder": ENCODER}) for kind in ("sac", "iql")),
    ],
)
def test_compiled_equals_eager(kind: str, changes: dict[str, Any]) -> None:
    """Within 1e-4 after 10 updates in float32: fusion reorders sums."""
    if not compiler_available(CPU):
        pytest.skip("no C++ compiler")
    learner = learner_of(kind, changes)

    def of_phase(phase: int) -> Any:
        def update(state: Any, batch: Batch, noise: Noise, context: Context) -> Metrics:
            return learner.update(state, batch, noise, context, phase)

        return compiled(update, True, CPU)

    fast = [of_phase(phase) for phase in range(learner.phases)]
    eager, graph = (state_of(learner, SEEDS, torch.float32) for _ in range(2))
    context = context_of(SEEDS, torch.float32)
    for number, (batch, noise) in enumerate(updates(learner, 10, torch.float32)):
        phase = number % learner.phases
        wanted = learner.update(eager, batch, noise, context, phase)
        found = fast[phase](graph, batch, noise, context)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    for name, value in flat(eager).items():
        torch.testing.assert_close(flat(graph)[name], value, rtol=1e-3, atol=1e-4)


@every
def test_a_ruined_member_leaves_the_others_alone(kind: str, changes: dict[str, Any]) -> None:
    learner = learner_of(kind, changes)
    healthy, ruined = (state_of(learner, SEEDS, torch.float32) for _ in range(2))
    learner.policy_parameters(ruined)["weight.0"][1] = torch.nan
    trained(learner, healthy, 3 * learner.phases, torch.float32)
    trained(learner, ruined, 3 * learner.phases, torch.float32)
    others = tree_map(lambda value: value[[0, 2]], healthy)
    for name, value in flat(others).items():
        assert flat(ruined)[name][[0, 2]].equal(value), name
