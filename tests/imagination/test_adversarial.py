"""The adversarial model against torch.autograd and loops, and as part of a run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support import converted, log_of
from torch import Tensor
from torch.distributions import Normal

from worldrl.config.fields import group_of
from worldrl.config.imagination import AdversarialSettings
from worldrl.config.learners import BCSettings, SACSettings
from worldrl.config.schema import TrainConfig
from worldrl.errors import ConfigError
from worldrl.imagination.adversarial import (
    Adversarial,
    AdversarialRollouts,
    Draws,
    adversarial_rollouts,
    adversarial_step,
    mixture_log_density,
    rows_of,
)
from worldrl.imagination.setup import Setup
from worldrl.imagination.step import Bounds
from worldrl.learners import LEARNERS
from worldrl.learners.bc import BehaviourCloning
from worldrl.learners.sac import SAC
from worldrl.models.ensemble import Ensemble, Standardizer, init_ensemble
from worldrl.models.world import World
from worldrl.optim import adam_init
from worldrl.random import generator
from worldrl.training.compilation import compiled, compiler_available
from worldrl.types import LearnerState, Log, Parameters, Prediction, Transitions

P, S, A, B, N, E = 2, 3, 2, 6, 4, 2
SEEDS = (3, 4)
LOG = log_of(40, S, A)
CPU = torch.device("cpu")
SAC_SETTINGS = SACSettings(hidden=(7, 5), discount=0.9)


def ends(terminator: Parameters, observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    return following[..., 0] > terminator["limit"]


def world(seeds: tuple[int, ...] = SEEDS, dtype: torch.dtype = torch.float64) -> World:
    random = [generator(seed, "units") for seed in seeds]
    units = [
        Standardizer(
            torch.stack([torch.randn(size, generator=one) for one in random]),
            torch.stack([0.5 + torch.rand(size, generator=one) for one in random]),
        )
        for size in (S + A, S + 1)
    ]
    ensemble = Ensemble(
        init_ensemble([generator(seed, "init") for seed in seeds], S, A, (8, 6), N),
        *units,
        torch.stack([torch.randperm(N, generator=generator(seed, "e"))[:E] for seed in seeds]),
    )
    found: World = converted(World(ensemble, {"limit": torch.full((len(seeds), 1), 2.0)}), dtype)
    return found


def settings(**changes: Any) -> AdversarialSettings:
    base = {"model_batch_size": B, "model_weight_decay": (0.01,), "model_learning_rate": 1e-2}
    return AdversarialSettings.model_validate(base | changes)


def learner() -> SAC:
    return SAC(SAC_SETTINGS, S, A, 100)


def state_of(seeds: tuple[int, ...], dtype: torch.dtype = torch.float64) -> LearnerState:
    state: LearnerState = converted(learner().initialise(seeds, LOG), dtype)
    return state


def draws(dtype: torch.dtype = torch.float64) -> Draws:
    random = torch.Generator().manual_seed(7)

    def normal(size: int) -> Tensor:
        return torch.randn(P, B, size, generator=random, dtype=torch.float64).to(dtype)

    def integers(high: int) -> Tensor:
        return torch.randint(high, (P, B), generator=random)

    return Draws(integers(40), integers(40), integers(E), normal(S + 1), normal(A), normal(A))


def bounds(dtype: torch.dtype = torch.float64) -> Bounds:
    limit = torch.full((S,), 2.5, dtype=dtype)  # some samples are beyond
    return Bounds(-limit, limit)


def standing(dtype: torch.dtype = torch.float64) -> Adversarial:
    random = torch.Generator().manual_seed(8)
    observation = torch.randn(P, B, S, generator=random, dtype=torch.float64).to(dtype)
    return Adversarial(observation, torch.rand(P, B, generator=random) < 0.3)


def test_the_gradient_of_an_update_is_that_of_plain_autograd() -> None:
    """Loss of every seed by itself, members in loops, densities by torch.distributions."""
    sac, given, own = learner(), settings(), world()
    state, drawn, live = state_of(SEEDS), draws(), standing()
    fresh, weight = torch.tensor([False, True]), torch.tensor([0.7, 2.0], dtype=torch.float64)
    log: Transitions = converted(LOG.transitions, torch.float64)
    before = {n: v.clone().requires_grad_() for n, v in own.ensemble.parameters.items()}
    adam = adam_init(own.ensemble.parameters)
    reached = adversarial_step(given, sac, sac, ends)(
        own, adam, state, log, live, drawn, fresh, weight, bounds()
    )

    again = live.ended | fresh[:, None]
    assert again.any()
    assert not again.all()
    observation = torch.where(again[..., None], log.observation[drawn.start], live.observation)
    policy = sac.policy_parameters(state)
    action = sac.act(policy, observation, drawn.action)
    changed = own.ensemble._replace(parameters=before)
    said = changed.predict(observation, action)
    batch = rows_of(log, drawn.logged)
    likely = changed.predict(batch.observation, batch.action)
    total = torch.zeros(()).double()
    clipped = 0
    for p in range(P):
        elites = own.ensemble.elites[p].tolist()
        scale = own.ensemble.targets.scale[p]
        following, reward, density = [], [], []
        for row in range(B):
            chosen = elites[int(drawn.elite[p, row])]
            sample = said.mean[p, chosen, row] + said.std[p, chosen, row] * drawn.model[p, row]
            sample = sample.detach()
            densities = [
                Normal(said.mean[p, e, row], said.std[p, e, row]).log_prob(sample).sum().exp() / E
                for e in elites
            ]
            density.append(sum(densities).log())
            following.append(sample[:S].clamp(-2.5, 2.5))
            clipped += int((sample[:S].abs() > 2.5).any())
            reward.append(sample[S])
        following, reward = torch.stack(following), torch.stack(reward)
        torch.testing.assert_close(reached.observation[p], following)
        ended = following[:, 0] > 2.0
        assert reached.ended[p].equal(ended)

        def value(seen: Tensor, taken: Tensor, p: int = p) -> Tensor:
            whole = torch.zeros(P, B, S).double(), torch.zeros(P, B, A).double()
            whole[0][p], whole[1][p] = seen, taken
            return sac.values(state, *whole)[p]

        whole = torch.zeros(P, B, S).double()
        whole[p] = following
        taken = sac.act(policy, whole, drawn.next_action)[p]
        advantage = reward + 0.9 * (~ended) * value(following, taken)
        advantage = advantage - value(observation[p], action[p])
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        total = total + weight[p] * (torch.stack(density) * advantage.detach()).mean()

        changes = torch.cat(
            [batch.next_observation[p] - batch.observation[p], batch.reward[p, :, None]], -1
        )
        for e in range(N):
            mean = likely.mean[p, e] - torch.nn.functional.pad(batch.observation[p], (0, 1))
            error = (mean - changes) / scale
            variance = (likely.std[p, e] / scale) ** 2
            total = total + (error**2 / variance + variance.log()).mean()
        spread = before["max_log_variance"][p] - before["min_log_variance"][p]
        total = total + given.log_variance_bound_weight * spread.sum()
    assert clipped
    total.backward()
    for name, value_before in before.items():
        gradient = value_before.grad
        assert gradient is not None
        if name.startswith("weight"):
            gradient = gradient + 0.01 * value_before.detach()
        torch.testing.assert_close(adam.first[name], 0.1 * gradient, rtol=1e-5, atol=1e-8)
        assert not own.ensemble.parameters[name].equal(value_before)


def test_the_density_of_a_mixture_survives_where_its_exponential_does_not() -> None:
    mean, std = torch.zeros(1, 2, 1, 30), torch.full((1, 2, 1, 30), 1e-3)
    far = torch.full((1, 1, 30), 1.0)
    found = mixture_log_density(Prediction(mean, std), far)
    wanted = Normal(0.0, 1e-3).log_prob(torch.tensor(1.0)) * 30
    torch.testing.assert_close(found, wanted.expand(1, 1), rtol=1e-5, atol=0)
    near = mixture_log_density(Prediction(mean, std), torch.zeros(1, 1, 30))
    assert near.item() == pytest.approx(-30 * (math.log(1e-3) + 0.5 * math.log(2 * math.pi)))


def test_compiled_equals_eager() -> None:
    if not compiler_available(CPU):
        pytest.skip("no C++ compiler")
    sac, given, dtype = learner(), settings(), torch.float32
    state, weight = state_of(SEEDS, dtype), torch.tensor([0.7, 2.0])
    step = adversarial_step(given, sac, sac, ends)
    found = []
    for one in step, compiled(step, True, CPU):
        own, live = world(dtype=dtype), standing(dtype)
        adam = adam_init(own.ensemble.parameters)
        for fresh in (True, False, False):
            live = one(
                own, adam, state, LOG.transitions, live, draws(dtype),
                torch.tensor([fresh, False]), weight, bounds(dtype),
            )  # fmt: skip
        found.append({**own.ensemble.parameters, "reached": live.observation})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-4)


def imaginations(
    groups: list[tuple[int, ...]], log: Log = LOG, known: Tensor | None = None, **changes: Any
) -> list[AdversarialRollouts]:
    base = {"batch_size": 20, "model_updates": 7, "horizon": 2, "retain": 2}
    worlds = [world(seeds, torch.float32) for seeds in groups]
    setup = Setup(groups, learner(), worlds, ends, log, 100, lambda step, calls: step, known)
    found = adversarial_rollouts(settings(**base | changes), setup)
    assert all(isinstance(one, AdversarialRollouts) for one in found)
    return found  # type: ignore[return-value]


def changed(imagination: AdversarialRollouts, seeds: tuple[int, ...]) -> dict[str, Tensor]:
    for number in range(3):
        imagination.prepare(number, state_of(seeds, torch.float32))
    return {name: value.clone() for name, value in imagination.state.items()}


def test_a_member_of_a_population_learns_the_model_of_its_lone_run() -> None:
    """With a horizon and a weight of its own."""
    own = {"horizon": (2, 3), "adversarial_weight": (0.5, 1.5)}
    (together,) = imaginations([SEEDS], **own)
    found = changed(together, SEEDS)
    apart = imaginations([(seed,) for seed in SEEDS], **own)
    for member, (one, seed) in enumerate(zip(apart, SEEDS, strict=True)):
        for name, value in changed(one, (seed,)).items():
            torch.testing.assert_close(found[name][member], value[0], rtol=1e-4, atol=1e-4)


def test_the_model_learns_from_the_second_refresh_on_and_its_own_copy_alone() -> None:
    (imagination,) = imaginations([SEEDS])
    base, state = world(dtype=torch.float32), state_of(SEEDS, torch.float32)
    imagination.prepare(0, state)
    model = {n: v for n, v in imagination.state.items() if n.startswith("model/")}
    for name, value in base.ensemble.parameters.items():
        assert model[f"model/{name}"].equal(value)
    imagination.prepare(1, state)
    for name, value in base.ensemble.parameters.items():
        assert not imagination.state[f"model/{name}"].equal(value), name
        assert imagination._branched.rollouts.world.ensemble.parameters[name].equal(value)


def test_a_refresh_is_made_of_its_sources() -> None:
    """Called again after the model went on, with the same sources, it comes out the same."""
    (imagination,) = imaginations([SEEDS])
    state = state_of(SEEDS, torch.float32)
    imagination.prepare(1, state)
    sources = {n: v.clone() for n, v in imagination.sources(state).items()}
    rows, again, other = (torch.zeros(P, imagination.capacity, 2 * S + A + 2) for _ in range(3))
    count, health = imagination.fill(rows, 1, sources)
    imagination.prepare(2, state)
    same, _ = imagination.fill(again, 1, sources)
    assert count.equal(same)
    assert rows.equal(again)
    imagination.fill(other, 1, imagination.sources(state))
    assert not rows.equal(other)
    assert health["model_mse"].shape == (P,)


def test_it_makes_what_the_policy_gains_by_less_likely() -> None:
    """With a heavy weight the rewards that the changed model promises are lower than without."""
    promised = []
    for weight in 0.0, 30.0:
        (imagination,) = imaginations(
            [SEEDS], adversarial_weight=weight, model_updates=60, model_batch_size=64,
            model_learning_rate=3e-3,
        )  # fmt: skip
        state = state_of(SEEDS, torch.float32)
        imagination.prepare(1, state)
        rows = torch.zeros(P, imagination.capacity, 2 * S + A + 2)
        promised.append(imagination.fill(rows, 1, imagination.sources(state))[1]["reward_mean"])
    assert (promised[1] < promised[0] - 0.2).all()


def test_rows_without_a_next_observation_teach_nothing() -> None:
    known = torch.arange(40) % 3 > 0
    broken = LOG.transitions.next_observation.clone()
    broken[~known] = torch.nan
    log = LOG._replace(transitions=LOG.transitions._replace(next_observation=broken))
    found, wanted = (
        changed(imaginations([SEEDS], one, known, clip_range=None)[0], SEEDS) for one in (log, LOG)
    )
    for name, value in wanted.items():
        assert found[name].equal(value), name


def test_a_learner_without_values_is_refused() -> None:
    cloning = BehaviourCloning(BCSettings(), S, A, 100)
    setup = Setup([SEEDS], cloning, [world()], ends, LOG, 100, lambda step, calls: step)
    with pytest.raises(ConfigError, match=r"learner has none.*imagination=none"):
        adversarial_rollouts(settings(), setup)


@pytest.mark.parametrize("kind", ["cql", "iql", "td3bc", "rebrac", "prdc", "h2o"])
def test_any_learner_with_critics_can_be_played_against(kind: str) -> None:
    """A heavy weight on what its policy gains moves the model elsewhere than none does."""
    group = group_of(TrainConfig.model_fields["learner"])
    assert group is not None
    own = LEARNERS[kind](group.classes[kind].model_validate({"hidden": (7, 5)}), S, A, 100)
    state = own.initialise(SEEDS, LOG)
    models = []
    for weight in 0.0, 30.0:
        given = settings(batch_size=20, model_updates=3, adversarial_weight=weight)
        worlds = [world(SEEDS, torch.float32)]
        setup = Setup([SEEDS], own, worlds, ends, LOG, 100, lambda step, calls: step)
        (imagination,) = adversarial_rollouts(given, setup)
        imagination.prepare(1, state)
        models.append({name: value.clone() for name, value in imagination.state.items()})
    name = "model/weight.0"
    assert models[1][name].isfinite().all()
    assert not models[1][name].equal(models[0][name])
