"""Soft actor-critic against plain autograd, one member and one critic at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support import batch_of, context_of, converted, of_member, tree_map
from torch import Tensor
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from worldrl.config.learners import SACSettings
from worldrl.learners import LEARNERS
from worldrl.learners.policies import TanhGaussian, tanh_gaussian
from worldrl.learners.sac import SAC
from worldrl.training.compilation import compiled, compiler_available
from worldrl.types import Batch, Metrics, Noise, Parameters, Transitions

P, S, A, B = 3, 4, 2, 5
SEEDS = (10, 11, 12)
NUM_UPDATES = 8
CPU = torch.device("cpu")

CONTEXT = context_of(S, A)


def settings(**changes: Any) -> SACSettings:
    base = {
        "hidden": (7, 5), "actor_learning_rate": 1e-2, "critic_learning_rate": 3e-2,
        "temperature_learning_rate": 2e-2, "target_rate": 0.1, "discount": 0.9,
    }  # fmt: skip
    return SACSettings.model_validate(base | changes)


def learner(**changes: Any) -> SAC:
    return SAC(settings(**changes), S, A, NUM_UPDATES)


def state_of(sac: SAC, seeds: tuple[int, ...] = SEEDS, dtype: torch.dtype = torch.float64) -> Any:
    return converted(sac.initialise(seeds, CONTEXT.log), dtype)


def batches(count: int, dtype: torch.dtype = torch.float64) -> list[tuple[Batch, Noise]]:
    """Random transitions, a third of them terminal, and noise, for all members."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    found = []
    for _ in range(count):
        terminated = (torch.rand(P, B, generator=generator) < 1 / 3).to(dtype)
        action = normal(P, B, A).tanh()
        rows = Transitions(normal(P, B, S), action, normal(P, B), normal(P, B, S), terminated)
        found.append((batch_of(rows), {"actions": normal(P, 2, B, A)}))
    return found


def with_own_noise(sac: SAC, updates: list[tuple[Batch, Noise]]) -> list[tuple[Batch, Noise]]:
    """The same batches with noise of the learner's own, for settings that draw more."""
    generator = torch.Generator().manual_seed(2)
    found = []
    for batch, _ in updates:
        drawn = [sac.noise(generator, 1, B) for _ in range(P)]
        noise = {name: torch.cat([one[name] for one in drawn]).double() for name in drawn[0]}
        found.append((batch, noise))
    return found


class Reference:
    """One member, trained by torch.autograd and torch.optim.Adam; rows and critics in loops."""

    def __init__(self, sac: SAC, state: Any, member: int) -> None:
        self.sac, self.settings = sac, sac.settings
        count = state["critic"]["weight.0"].shape[1]

        def leaves(parameters: Parameters, *index: int) -> Parameters:
            return {k: v[index].clone().requires_grad_() for k, v in parameters.items()}

        self.actor = leaves(state["actor"], member)
        self.critics = [leaves(state["critic"], member, m) for m in range(count)]
        self.targets = [leaves(state["target"], member, m) for m in range(count)]
        self.log_temperature = state["temperature"]["log_value"][member].clone().requires_grad_()
        own = sac.settings
        self.actor_adam = torch.optim.Adam(self.actor.values(), own.actor_learning_rate)
        everything = [value for critic in self.critics for value in critic.values()]
        self.critic_adam = torch.optim.Adam(everything, own.critic_learning_rate)
        self.temperature_adam = torch.optim.Adam(
            [self.log_temperature], own.temperature_learning_rate
        )
        self.updates = 0

    @staticmethod
    def network(parameters: Parameters, inputs: Tensor) -> Tensor:
        layers = sum(name.startswith("weight") for name in parameters)
        for layer in range(layers):
            inputs = inputs @ parameters[f"weight.{layer}"] + parameters[f"bias.{layer}"][0]
            if f"scale.{layer}" in parameters:
                mean, deviation = inputs.mean(), (inputs.var(correction=0) + 1e-5).sqrt()
                inputs = (inputs - mean) / deviation
                inputs = inputs * parameters[f"scale.{layer}"][0] + parameters[f"shift.{layer}"][0]
            if layer < layers - 1:
                inputs = inputs.clamp(min=0)
        return inputs

    def act(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Action ``(A,)`` and log-density of one observation ``(S,)``."""
        output = self.network(self.actor, observation)
        mean, log_std = output[:A], output[A:].clamp(-5, 2)
        action = (mean + log_std.exp() * noise).tanh()
        density = Normal(mean, log_std.exp()).log_prob(mean + log_std.exp() * noise)
        return action, (density - (1 - action**2 + 1e-6).log()).sum()

    def likelihood(self, batch: Batch, member: int, row: int) -> Tensor:
        """Of a logged action, as a row's share of a mean over all rows; 0 of an imagined one."""
        logged = batch.logged.shape[1]
        if row >= logged:
            return torch.zeros(()).double()
        output = self.network(self.actor, batch.observation[member, row])
        squashed = TransformedDistribution(
            Normal(output[:A], output[A:].clamp(-5, 2).exp()), [TanhTransform()]
        )
        action = batch.action[member, row].clamp(-0.999, 0.999)
        return squashed.log_prob(action).sum() * B / logged

    def value(self, critics: list[Parameters], observation: Tensor, action: Tensor) -> Tensor:
        return min(self.values(critics, observation, action))

    def values(self, critics: list[Parameters], observation: Tensor, action: Tensor) -> Any:
        joined = torch.cat([observation, action])
        return [self.network(critic, joined).squeeze() for critic in critics]

    def update(self, batch: Batch, noise: Noise, member: int) -> dict[str, float]:
        own, rows = self.settings, range(B)
        temperature = self.log_temperature.detach().exp()
        if own.max_temperature is not None:
            temperature = temperature.clamp(max=own.max_temperature)

        backups, spread = [], 0.0
        heard = self.targets
        if own.target_critics is not None:
            ranks = noise["target_critics"][member].tolist()
            best = sorted(range(len(ranks)), key=lambda m: -ranks[m])[: own.target_critics]
            heard = [self.targets[m] for m in best]
        with torch.no_grad():
            for row in rows:
                following = batch.next_observation[member, row]
                draws = [noise["actions"][member, 0, row]]
                if own.backup_actions > 1:
                    draws += list(noise["further_actions"][member, row])
                    assert len(draws) == own.backup_actions
                candidates = []
                for draw in draws:
                    action, density = self.act(following, draw)
                    each = self.values(heard, following, action)
                    spread += (sum(each) / len(each) - min(each)).item() / B / len(draws)
                    soft = temperature * density if own.entropy_in_target else 0.0
                    candidates.append(min(each) - soft)
                go_on = 1 - batch.terminated[member, row]
                backups.append(batch.reward[member, row] + own.discount * go_on * max(candidates))

        loss, total_value = torch.zeros(()).double(), 0.0
        for critic in self.critics:
            for row in rows:
                observation, action = batch.observation[member, row], batch.action[member, row]
                value = self.value([critic], observation, action)
                loss = loss + (value - backups[row]) ** 2 / B
                total_value += value.item() / B / len(self.critics)
        self.critic_adam.zero_grad()
        loss.backward()
        self.critic_adam.step()
        with torch.no_grad():
            for critic, target in zip(self.critics, self.targets, strict=True):
                for name, value in target.items():
                    value.mul_(1 - own.target_rate).add_(own.target_rate * critic[name])
        self.updates += 1
        found = {
            "critic_loss": loss.item(),
            "value_mean": total_value,
            "backup_mean": torch.stack(backups).mean().item(),
            **({"value_spread": spread} if len(self.critics) > 2 else {}),
        }
        if self.updates % own.actor_every:
            return found

        actor_loss, densities = torch.zeros(()).double(), []
        for row in rows:
            action, density = self.act(
                batch.observation[member, row], noise["actions"][member, 1, row]
            )
            each = self.values(self.critics, batch.observation[member, row], action)
            value = sum(each) / len(each) if own.actor_values == "mean" else min(each)
            if self.updates - own.actor_every < own.cloning_updates:  # the actor's steps so far
                value = self.likelihood(batch, member, row)
            actor_loss = actor_loss + (temperature * density - value) / B
            densities.append(density.item())
        self.actor_adam.zero_grad()
        actor_loss.backward()
        if own.actor_schedule == "cosine":
            before = self.updates - own.actor_every
            share = 0.5 * (1 + math.cos(math.pi * min(before / NUM_UPDATES, 1)))
            self.actor_adam.param_groups[0]["lr"] = own.actor_learning_rate * share
        self.actor_adam.step()

        mean_density = sum(densities) / B
        if own.temperature == "auto":
            entropy = -float(A) if own.target_entropy is None else own.target_entropy
            self.temperature_adam.zero_grad()
            (-self.log_temperature * (mean_density + entropy)).backward()
            self.temperature_adam.step()
        return found | {
            "actor_loss": actor_loss.item(),
            "temperature": temperature.item(),
            "entropy": -mean_density,
        }


VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no entropy in the target": {"entropy_in_target": False},
    "fixed temperature": {"temperature": "fixed", "initial_temperature": 0.2},
    "temperature above its cap": {"initial_temperature": 3.0},
    "temperature without a cap": {"initial_temperature": 3.0, "max_temperature": None},
    "zero target entropy": {"target_entropy": 0.0},
    "constant actor rate": {"actor_schedule": "constant"},
    "one critic": {"num_critics": 1},
    "five critics": {"num_critics": 5},
    "layer normalisation": {"layer_norm": True},
    "no discount": {"discount": 0.0},
    "edac initialisation": {"init": "edac", "num_critics": 3},
    "two random critics of five": {"num_critics": 5, "target_critics": 2},
    "the best of three next actions": {"backup_actions": 3, "num_critics": 3},
    "the actor at every second update": {"actor_every": 2},
    "an actor that first clones": {"cloning_updates": 2, "actor_every": 1},
    "the critics' mean": {"actor_values": "mean", "num_critics": 3},
    "wsrl on antmaze": {
        "num_critics": 10, "target_critics": 2, "backup_actions": 10, "actor_every": 4,
        "layer_norm": True, "entropy_in_target": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_five_updates_equal_the_reference(changes):
    sac = learner(**changes)
    state = state_of(sac)
    for name, value in state["target"].items():  # targets unlike critics, as later in a run
        value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    references = [Reference(sac, state, member) for member in range(P)]
    for number, (batch, noise) in enumerate(with_own_noise(sac, batches(5))):
        batch = batch._replace(logged=torch.zeros(P, B - 1, dtype=torch.int64))
        metrics = sac.update(state, batch, noise, CONTEXT, number % sac.phases)
        if number % sac.phases == sac.phases - 1:
            assert set(metrics) == set(sac.metric_names)
        for member, reference in enumerate(references):
            wanted = reference.update(batch, noise, member)
            found = {name: value[member].item() for name, value in metrics.items()}
            assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    for member, reference in enumerate(references):
        _assert_equals(state, reference, member)


def _assert_equals(state: Any, reference: Reference, member: int) -> None:
    close = {"rtol": 1e-8, "atol": 1e-9}
    for name, value in reference.actor.items():
        torch.testing.assert_close(state["actor"][name][member], value.data, **close)
        moments = reference.actor_adam.state[value]
        # Adam's steps hide the size of a loss; its moments show it.
        first, second = (state["actor_adam"][i][name][member] for i in (0, 1))
        torch.testing.assert_close(first, moments["exp_avg"], **close)
        torch.testing.assert_close(second, moments["exp_avg_sq"], **close)
    for number, critic in enumerate(reference.critics):
        for name, value in critic.items():
            torch.testing.assert_close(state["critic"][name][member, number], value.data, **close)
            first = state["critic_adam"].first[name][member, number]
            torch.testing.assert_close(
                first, reference.critic_adam.state[value]["exp_avg"], **close
            )
            target = reference.targets[number][name].data
            torch.testing.assert_close(state["target"][name][member, number], target, **close)
    log_temperature = state["temperature"]["log_value"][member]
    torch.testing.assert_close(log_temperature, reference.log_temperature.data, **close)
    if reference.settings.temperature == "auto":
        moments = reference.temperature_adam.state[reference.log_temperature]
        first = state["temperature_adam"].first["log_value"][member]
        torch.testing.assert_close(first, moments["exp_avg"], **close)
    else:
        assert not state["temperature_adam"].steps.any()


# -- population ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "updates", "tolerance"), [(torch.float64, 200, 1e-6), (torch.float32, 20, 1e-4)]
)
def test_a_member_of_a_population_equals_its_lone_run(dtype, updates, tolerance):
    sac = learner(num_critics=3, actor_learning_rate=1e-3, critic_learning_rate=1e-3)
    together = state_of(sac, dtype=dtype)
    lone = [state_of(sac, (seed,), dtype) for seed in SEEDS]
    for batch, noise in batches(updates, dtype):
        metrics = sac.update(together, batch, noise, CONTEXT)
        alone = [
            sac.update(lone[member], of_member(batch, member), of_member(noise, member), CONTEXT)
            for member in range(P)
        ]
    for name, value in metrics.items():
        joined = torch.cat([own[name] for own in alone])
        torch.testing.assert_close(value, joined, rtol=tolerance, atol=tolerance)
    for part in "actor", "critic", "target", "temperature":
        for name, value in together[part].items():
            joined = torch.cat([state[part][name] for state in lone])
            torch.testing.assert_close(value, joined, rtol=tolerance, atol=tolerance)


def test_a_ruined_member_leaves_the_others_alone():
    sac = learner()
    healthy, ruined = state_of(sac), state_of(sac)
    ruined["actor"]["weight.0"][1] = torch.nan
    for batch, noise in batches(5):
        sac.update(healthy, batch, noise, CONTEXT)
        sac.update(ruined, batch, noise, CONTEXT)
    for part in "actor", "critic", "target", "temperature":
        for name, value in healthy[part].items():
            assert value[[0, 2]].equal(ruined[part][name][[0, 2]])
    assert ruined["critic"]["weight.0"][1].isnan().any()


def test_compiled_equals_eager():
    """Within 1e-4 after 20 float32 updates: fusion reorders sums."""
    if not compiler_available(CPU):
        pytest.skip("no C++ compiler")
    sac = learner(hidden=(7,))

    def update(state: Any, batch: Batch, noise: Noise) -> Metrics:
        return sac.update(state, batch, noise, CONTEXT)

    fast = compiled(update, True, torch.device("cpu"))
    eager, graph = state_of(sac, dtype=torch.float32), state_of(sac, dtype=torch.float32)
    for batch, noise in batches(20, torch.float32):
        wanted, found = sac.update(eager, batch, noise, CONTEXT), fast(graph, batch, noise)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
    for part in "actor", "critic", "target", "temperature":
        for name, value in eager[part].items():
            torch.testing.assert_close(graph[part][name], value, rtol=1e-4, atol=1e-4)
    assert graph["actor_adam"].steps.equal(eager["actor_adam"].steps)


# -- the policy ----------------------------------------------------------------------------


def test_log_density_is_that_of_a_squashed_normal():
    generator = torch.Generator().manual_seed(0)
    mean = 0.5 * torch.randn(2, 50, A, generator=generator, dtype=torch.float64)
    log_std = -1 + 0.5 * torch.randn(2, 50, A, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 50, A, generator=generator, dtype=torch.float64)
    action, density = TanhGaussian(mean, log_std).sample(noise)
    squashed = TransformedDistribution(
        Independent(Normal(mean, log_std.exp()), 1), [TanhTransform(cache_size=1)]
    )
    assert density.shape == (2, 50)
    # 1e-6 inside the logarithm counts where 1 - a^2 is small
    torch.testing.assert_close(density, squashed.log_prob(action), rtol=0, atol=1e-4)


def test_log_density_stays_finite_where_tanh_saturates():
    mean = torch.tensor([[[50.0, -50.0]]], requires_grad=True)
    action, density = TanhGaussian(mean, torch.full((1, 1, 2), -5.0)).sample(torch.zeros(1, 1, 2))
    density.sum().backward()
    assert action.abs().max() == 1
    assert density.isfinite().all()
    assert mean.grad is not None
    assert mean.grad.isfinite().all()


def test_log_deviation_is_clipped():
    sac = learner(hidden=(3,))
    actor = state_of(sac)["actor"]
    for value in actor.values():
        value.zero_()
    actor["bias.1"][..., A:] = torch.tensor([-100.0, 100.0])
    distribution = tanh_gaussian(actor, torch.randn(P, B, S).double())
    assert distribution.log_std.equal(torch.tensor([-5.0, 2.0]).double().expand(P, B, A))


def test_acting_with_and_without_noise():
    sac = learner()
    state = state_of(sac)
    policy = sac.policy_parameters(state)
    assert policy["weight.0"] is state["actor"]["weight.0"]
    observation, noise = torch.randn(P, B, S).double(), torch.randn(P, B, A).double()
    distribution = tanh_gaussian(policy, observation)
    assert sac.act(policy, observation, None).equal(distribution.mean.tanh())
    assert sac.act(policy, observation, noise).equal(distribution.sample(noise)[0])


def test_values_are_those_of_every_critic():
    sac = learner(num_critics=3)
    state = state_of(sac)
    observation, action = torch.randn(P, B, S).double(), torch.randn(P, B, A).double()
    values = sac.critics.values(state["critic"], {}, observation, action)
    assert values.shape == (P, 3, B)
    for member in range(P):
        reference = Reference(sac, state, member)
        for number, critic in enumerate(reference.critics):
            for row in range(B):
                wanted = reference.value([critic], observation[member, row], action[member, row])
                assert values[member, number, row].item() == pytest.approx(wanted.item(), abs=1e-12)


# -- settings ------------------------------------------------------------------------------


def test_registry_builds_it_from_its_settings():
    built = LEARNERS["sac"](SACSettings(), S, A, 100)  # type: ignore[call-arg]
    assert isinstance(built, SAC)
    numbers = built.initialise(SEEDS, CONTEXT.log)["settings"]
    assert numbers["discount"].tolist() == [0.99] * P
    assert numbers["target_entropy"].tolist() == [-A] * P
    zero = learner(target_entropy=0.0).initialise(SEEDS, CONTEXT.log)["settings"]
    assert zero["target_entropy"].tolist() == [0.0] * P
    scaled = learner(entropy_per_action=(-0.5, -1.0, 2.0)).initialise(SEEDS, CONTEXT.log)
    assert scaled["settings"]["target_entropy"].tolist() == [-0.5 * A, -A, 2.0 * A]


#: Values for members 0, 1 and 2 of every number that may differ between them.
OWN = {
    "discount": (0.9, 0.5, 0.99),
    "actor_learning_rate": (1e-2, 3e-2, 1e-3),
    "critic_learning_rate": (3e-2, 1e-3, 1e-2),
    "temperature_learning_rate": (2e-2, 5e-2, 1e-2),
    "target_rate": (0.1, 0.5, 0.01),
    "initial_temperature": (1.0, 0.3, 2.0),
    "max_temperature": (2.0, 0.1, 1.0),
    "target_entropy": (-2.0, 0.5, -1.0),
}


def test_members_with_settings_of_their_own_are_what_they_are_alone():
    """In float64, to 1e-9: together, and as a later part of a population."""
    whole = learner(**OWN)
    state = state_of(whole)
    later = converted(whole.initialise(SEEDS[1:], CONTEXT.log, first=1), torch.float64)
    updates = batches(5)
    for batch, noise in updates:
        whole.update(state, batch, noise, CONTEXT)
        rest = tree_map(lambda value: value[1:], {"batch": batch, "noise": noise})
        whole.update(later, rest["batch"], rest["noise"], CONTEXT)
    for member, seed in enumerate(SEEDS):
        alone = learner(**{name: values[member] for name, values in OWN.items()})
        single = state_of(alone, (seed,))
        for batch, noise in updates:
            alone.update(single, of_member(batch, member), of_member(noise, member), CONTEXT)
        for part in "actor", "critic", "target", "temperature":
            for name, value in single[part].items():
                torch.testing.assert_close(state[part][name][member], value[0], rtol=0, atol=1e-9)
                if member:
                    other = later[part][name][member - 1]
                    torch.testing.assert_close(other, value[0], rtol=0, atol=1e-9)


def test_every_setting_that_may_differ_does_make_a_difference():
    """Else the test above would pass for one that is ignored."""
    updates = batches(3)
    reference = state_of(learner())
    found = [reference]
    for name, values in OWN.items():
        changed = {"max_temperature": 0.05}.get(name, values[1])
        found.append(state_of(learner(**{name: changed})))
        for batch, noise in updates:
            learner(**{name: changed}).update(found[-1], batch, noise, CONTEXT)
    for batch, noise in updates:
        learner().update(reference, batch, noise, CONTEXT)
    for name, state in zip(OWN, found[1:], strict=True):
        same = all(
            state[part][key].equal(value)
            for part in ("actor", "critic", "target", "temperature")
            for key, value in reference[part].items()
        )
        assert not same, name


def test_random_target_critics_are_others_every_time_and_each_as_often():
    sac = learner(num_critics=5, target_critics=2)
    ranks = sac.noise(torch.Generator().manual_seed(0), 500, B)["target_critics"]
    chosen = ranks.topk(2, 1).indices
    assert (chosen[:, 0] != chosen[:, 1]).all()
    counts = torch.bincount(chosen.flatten(), minlength=5)
    assert (counts - 200).abs().max() < 5 * 200**0.5
    with pytest.raises(ValidationError, match="there are"):
        settings(num_critics=2, target_critics=3)


def test_target_starts_as_a_copy_of_the_critic():
    state = learner().initialise(SEEDS, CONTEXT.log)
    for name, value in state["critic"].items():
        assert value.equal(state["target"][name])
        assert value.data_ptr() != state["target"][name].data_ptr()


def test_members_and_critics_start_apart_and_a_member_starts_as_alone():
    sac = learner()
    state, alone = sac.initialise(SEEDS, CONTEXT.log), sac.initialise(SEEDS[1:2], CONTEXT.log)
    for part in "actor", "critic":
        weight = state[part]["weight.0"]
        assert not weight[0].equal(weight[1])
        assert all(alone[part][k][0].equal(v[1]) for k, v in state[part].items())
    assert not state["critic"]["weight.0"][0, 0].equal(state["critic"]["weight.0"][0, 1])


def test_edac_initialisation():
    state = learner(init="edac", hidden=(50, 60)).initialise(SEEDS, CONTEXT.log)
    for part, bound in ("actor", 1e-3), ("critic", 3e-3):
        assert (state[part]["bias.0"] == 0.1).all()
        assert (state[part]["bias.1"] == 0.1).all()
        for name in "weight.2", "bias.2":
            head = state[part][name]
            assert head.abs().max() <= bound
            assert head.unique().numel() > 0.9 * head.numel()
        assert state[part]["weight.2"].abs().max() > 0.9 * bound
        assert state[part]["weight.1"].abs().max() > 0.9 / math.sqrt(50)


def test_cosine_schedule_runs_from_the_whole_rate_to_none():
    sac = SAC(settings(actor_learning_rate=0.5), S, A, 100)
    state = state_of(sac)
    for count, share in (0, 1.0), (25, (1 + 0.5**0.5) / 2), (50, 0.5), (100, 0.0), (200, 0.0):
        state["actor_adam"].steps.fill_(count)
        decay = sac.actor_decay(state)
        wanted = torch.full((P,), share, dtype=decay.dtype)
        torch.testing.assert_close(decay, wanted, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("initial", [0.3, 1.0, 5.0])
def test_temperature_starts_where_it_is_told_and_is_capped(initial):
    for cap, wanted in (None, initial), (1.0, min(initial, 1.0)):
        sac = learner(initial_temperature=initial, max_temperature=cap)
        [(batch, noise)] = batches(1)
        used = sac.update(state_of(sac), batch, noise, CONTEXT)["temperature"]
        torch.testing.assert_close(used, torch.full((P,), wanted).double())


def test_a_temperature_above_its_cap_can_come_down():
    """The cap clips the value that is used, and not the gradient of what is learned."""
    sac = learner(initial_temperature=5.0, target_entropy=-50.0)  # far more entropy than asked for
    state = state_of(sac)
    for batch, noise in batches(2):
        sac.update(state, batch, noise, CONTEXT)
    assert (state["temperature"]["log_value"] < math.log(5.0) - 0.03).all()


def test_noise_is_standard_normal_for_two_actions_a_row():
    noise = learner().noise(torch.Generator().manual_seed(0), 50, 40)["actions"]
    assert noise.shape == (50, 2, 40, A)
    assert noise.mean().item() == pytest.approx(0, abs=0.04)
    assert noise.std().item() == pytest.approx(1, abs=0.03)


def test_learns_a_bandit():
    """One step, reward -(a - 0.4)^2 - (a' + 0.6)^2, logged by a uniform policy."""
    best = torch.tensor([0.4, -0.6])
    own = settings(hidden=(32,), target_entropy=-6.0, actor_learning_rate=3e-3)
    sac, context = SAC(own, 1, A, num_updates=600), context_of(1, A)
    state = sac.initialise((0, 1), context.log)
    generator = torch.Generator().manual_seed(0)
    observation, one = torch.ones(2, 64, 1), torch.ones(2, 64)
    for _ in range(600):
        action = 2 * torch.rand(2, 64, A, generator=generator) - 1
        reward = -(action - best).square().sum(-1)
        noise = {"actions": torch.randn(2, 2, 64, A, generator=generator)}
        batch = batch_of(Transitions(observation, action, reward, observation, one))
        metrics = sac.update(state, batch, noise, context)
    chosen = sac.act(sac.policy_parameters(state), observation[:, :1], None)[:, 0]
    torch.testing.assert_close(chosen, best.expand(2, A), atol=0.08, rtol=0)
    assert metrics["critic_loss"].max() < 0.02
