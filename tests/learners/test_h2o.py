"""H2O against plain autograd, one member, critic and row at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import batch_of, context_of, converted
from torch import Tensor
from torch.distributions import Normal

from worldrl.config.learners import H2OSettings
from worldrl.config.loader import load_config
from worldrl.errors import ConfigError
from worldrl.learners.h2o import H2O
from worldrl.types import Batch, Noise, Parameters, Transitions

P, S, A, B, LOGGED, N = 2, 3, 2, 5, 2, 3
CONTEXT = context_of(S, A)

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "weights of their own": {"conservative_weight": (0.0, 3.0), "gap_noise": (0.0, 2.0)},
    "three critics": {"num_critics": 3},
    "entropy in the target": {"entropy_in_target": True},
    "standardised": {"standardize": True},
    "clear inputs": {"discriminator_noise": 0.0, "gap_noise": 0.0},
}


def learner(**changes: Any) -> H2O:
    base = {
        "hidden": (6, 5), "actor_learning_rate": 1e-2, "critic_learning_rate": 3e-2,
        "temperature_learning_rate": 2e-2, "target_rate": 0.1, "discount": 0.9,
        "conservative_weight": 2.0, "actor_schedule": "constant", "gap_samples": N,
        "discriminator_hidden": (7,), "discriminator_learning_rate": 4e-2,
    }  # fmt: skip
    return H2O(H2OSettings.model_validate(base | changes), S, A, 100)


def state_of(h2o: H2O) -> Any:
    state = converted(h2o.initialise(range(P), CONTEXT.log), torch.float64)
    for name, value in state["target"].items():  # targets unlike critics, as later in a run
        value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    return state


def batches(h2o: H2O, count: int) -> list[tuple[Batch, Noise]]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = []
    for _ in range(count):
        ended = (torch.rand(P, B, generator=generator) < 1 / 3).double()
        rows = Transitions(3 * normal(P, B, S), normal(P, B, A).tanh(), normal(P, B),
                           3 * normal(P, B, S), ended)  # fmt: skip
        drawn = [h2o.noise(generator, 1, B) for _ in range(P)]
        noise = {name: torch.cat([one[name] for one in drawn]).double() for name in drawn[0]}
        found.append((batch_of(rows, LOGGED), noise))
    return found


def network(parameters: Parameters, inputs: Tensor) -> Tensor:
    last = sum(name.startswith("weight") for name in parameters) - 1
    for layer in range(last + 1):
        inputs = inputs @ parameters[f"weight.{layer}"] + parameters[f"bias.{layer}"][0]
        if layer < last:
            inputs = inputs.clamp(min=0)
    return inputs


class Reference:
    """One member by torch.autograd and torch.optim.Adam."""

    def __init__(self, h2o: H2O, state: Any, member: int) -> None:
        self.settings, self.member, critics = h2o.settings, member, h2o.settings.num_critics

        def leaves(parameters: Parameters, *index: int) -> Parameters:
            return {k: v[index].clone().requires_grad_() for k, v in parameters.items()}

        self.actor = leaves(state["actor"], member)
        self.critics = [leaves(state["critic"], member, m) for m in range(critics)]
        self.targets = [leaves(state["target"], member, m) for m in range(critics)]
        self.pair, self.triple = leaves(state["pair"], member), leaves(state["triple"], member)
        self.log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
        weights = [value for critic in self.critics for value in critic.values()]
        both = [*self.pair.values(), *self.triple.values()]
        self.actor_adam = torch.optim.Adam(self.actor.values(), 1e-2)
        self.critic_adam = torch.optim.Adam(weights, 3e-2)
        self.discriminator_adam = torch.optim.Adam(both, 4e-2)
        self.temperature_adam = torch.optim.Adam([self.log_temperature], 2e-2)

    def own(self, name: str) -> Any:
        value = getattr(self.settings, name)
        return value[self.member] if isinstance(value, tuple) else value

    def scaled(self, observation: Tensor) -> Tensor:
        logged = CONTEXT.log.transitions.observation
        return (observation - logged.mean(0)) / (logged.std(0, correction=0) + 1e-3)

    def seen(self, observation: Tensor) -> Tensor:
        return self.scaled(observation) if self.settings.standardize else observation

    def act(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        output = network(self.actor, self.seen(observation))
        mean, deviation = output[:A], output[A:].clamp(-5, 2).exp()
        action = (mean + deviation * noise).tanh()
        density = Normal(mean, deviation).log_prob(mean + deviation * noise)
        return action, (density - (1 - action**2 + 1e-6).log()).sum()

    def value(self, critic: Parameters, observation: Tensor, action: Tensor) -> Tensor:
        return network(critic, torch.cat([self.seen(observation), action])).squeeze()

    def least(self, critics: list[Parameters], observation: Tensor, action: Tensor) -> Tensor:
        return torch.stack([self.value(one, observation, action) for one in critics]).min()

    def probabilities(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """That a triple is real, by (s, a) and by (s, a, s')."""
        by_pair = 4 * network(self.pair, inputs[: S + A]).squeeze().tanh()
        by_triple = by_pair + 4 * network(self.triple, inputs).squeeze().tanh()
        return by_pair.sigmoid(), by_triple.sigmoid()

    def ratio(self, inputs: Tensor) -> Tensor:
        """p_real(s'|s, a) / p_simulated(s'|s, a) as the paper has it, from two probabilities."""
        pair, triple = self.probabilities(inputs)
        return triple / (1 - triple) * (1 - pair) / pair

    def update(self, batch: Batch, noise: Noise) -> dict[str, float]:
        p = self.member
        triples = [
            torch.cat([self.scaled(batch.observation[p, row]), batch.action[p, row],
                       self.scaled(batch.next_observation[p, row])])
            for row in range(B)
        ]  # fmt: skip
        told_apart = torch.zeros(()).double()
        alive = [row for row in range(B) if batch.terminated[p, row] == 0]
        for row in alive:
            triple = triples[row]
            blurred = triple + self.own("discriminator_noise") * noise["inputs"][p, row]
            for real in self.probabilities(blurred):
                right = real if row < LOGGED else 1 - real
                same = [other for other in alive if (other < LOGGED) == (row < LOGGED)]
                told_apart = told_apart - right.log() / len(same)
        self.discriminator_adam.zero_grad()
        told_apart.backward()
        self.discriminator_adam.step()

        ratios, gaps = [], []
        with torch.no_grad():
            for row in range(LOGGED, B):
                ratios.append(self.ratio(triples[row]).clamp(1e-5, 1))
                logs = []
                for drawn in noise["around"][p, row]:
                    around = triples[row].clone()
                    around[S + A :] += self.own("gap_noise") * drawn
                    logs.append(-self.ratio(around).log())
                gaps.append(torch.stack(logs).mean().clamp(1e-37, 10))
        gap = torch.stack(gaps)
        shares = gap / gap.sum()

        temperature = min(self.log_temperature.exp().item(), 1.0)
        with torch.no_grad():
            backups = []
            for row in range(B):
                following = batch.next_observation[p, row]
                action, density = self.act(following, noise["actions"][p, 0, row])
                value = self.least(self.targets, following, action)
                if self.settings.entropy_in_target:
                    value = value - temperature * density
                goes_on = 1 - batch.terminated[p, row]
                backups.append(batch.reward[p, row] + 0.9 * goes_on * value)
        td, conservative, total_value = torch.zeros(()).double(), [], 0.0
        for critic in self.critics:
            values = [self.value(critic, batch.observation[p, r], batch.action[p, r])
                      for r in range(B)]  # fmt: skip
            total_value += sum(value.item() for value in values) / B / len(self.critics)
            for row in range(B):
                error = (values[row] - backups[row]) ** 2
                weight = 1 / LOGGED if row < LOGGED else ratios[row - LOGGED] / sum(ratios)
                td = td + weight * error
            simulated = torch.stack(values[LOGGED:])
            soft = (shares * simulated.exp()).sum().log()
            conservative.append(soft - torch.stack(values[:LOGGED]).mean())
        self.critic_adam.zero_grad()
        weight = self.own("conservative_weight")
        (td + weight * torch.stack(conservative).sum()).backward()
        self.critic_adam.step()

        loss, densities = torch.zeros(()).double(), []
        for row in range(B):
            observation = batch.observation[p, row]
            action, density = self.act(observation, noise["actions"][p, 1, row])
            value = self.least(self.critics, observation, action)
            loss = loss + (temperature * density - value) / B
            densities.append(density.item())
        self.actor_adam.zero_grad()
        loss.backward()
        self.actor_adam.step()
        self.temperature_adam.zero_grad()
        (-self.log_temperature * (sum(densities) / B - A)).backward()
        self.temperature_adam.step()
        with torch.no_grad():
            for critic, target in zip(self.critics, self.targets, strict=True):
                for name, value in target.items():
                    value.lerp_(critic[name], 0.1)
        found = {
            "critic_loss": td.item(),
            "actor_loss": loss.item(),
            "value_mean": total_value,
            "backup_mean": torch.stack(backups).mean().item(),
            "temperature": temperature,
            "entropy": -sum(densities) / B,
            "conservative_gap": torch.stack(conservative).mean().item(),
            "dynamics_gap": gap.mean().item(),
            "dynamics_ratio": torch.stack(ratios).mean().item(),
            "discriminator_loss": told_apart.item(),
        }
        self.last_gaps, self.last_ratios = gap.tolist(), [one.item() for one in ratios]
        return found


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_updates_equal_the_reference(changes: dict[str, Any]) -> None:
    h2o = learner(**changes)
    state = state_of(h2o)
    references = [Reference(h2o, state, member) for member in range(P)]
    close = {"rtol": 1e-5, "atol": 1e-5}  # the moments are float32
    gaps: list[float] = []
    ratios: list[float] = []
    for batch, noise in batches(h2o, 4):
        metrics = h2o.update(state, batch, noise, CONTEXT)
        assert set(metrics) == set(h2o.metric_names)
        for member, reference in enumerate(references):
            wanted = reference.update(batch, noise)
            found = {name: value[member].item() for name, value in metrics.items()}
            found.pop("value_spread", None)
            assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5)
            gaps, ratios = gaps + reference.last_gaps, ratios + reference.last_ratios
    # Both clips bind in some rows, and not in others.
    assert min(gaps) == 1e-37
    assert max(gaps) > 0.01
    assert max(ratios) == 1
    assert min(ratios) < 0.99
    for p, reference in enumerate(references):
        adams = {
            "actor": (reference.actor, reference.actor_adam),
            "pair": (reference.pair, reference.discriminator_adam),
            "triple": (reference.triple, reference.discriminator_adam),
        }
        for part, (leaves, adam) in adams.items():
            for name, leaf in leaves.items():
                torch.testing.assert_close(state[part][name][p], leaf.data, **close)
                # Adam's steps hide the size of a loss; its moments show it.
                first = state[f"{part}_adam"].first[name][p]
                torch.testing.assert_close(first, adam.state[leaf]["exp_avg"], **close)
        for m, critic in enumerate(reference.critics):
            for name, leaf in critic.items():
                torch.testing.assert_close(state["critic"][name][p, m], leaf.data, **close)
                first = state["critic_adam"].first[name][p, m]
                wanted = reference.critic_adam.state[leaf]["exp_avg"]
                torch.testing.assert_close(first, wanted, **close)
                target = reference.targets[m][name].data
                torch.testing.assert_close(state["target"][name][p, m], target, **close)


def test_discriminators_find_where_a_simulator_is_off_and_values_are_lowered_there() -> None:
    """It is exact where the first coordinate is negative; elsewhere s' is shifted by a deviation.
    Rewards and actions say nothing."""
    h2o = learner(
        hidden=(32,), discriminator_hidden=(64,), discriminator_learning_rate=3e-3,
        conservative_weight=1.0, discount=0.0, critic_learning_rate=3e-3, gap_noise=0.1,
    )  # fmt: skip
    state = state_of(h2o)
    generator = torch.Generator().manual_seed(0)
    rows, real = 128, 64

    def normal(*shape: int) -> Tensor:
        return torch.randn(P, *shape, generator=generator, dtype=torch.float64)

    metrics = {}
    for _ in range(400):
        observation = 2 * normal(rows, S) + 1
        following = observation + 0.2 * normal(rows, S)
        off = (observation[..., 0] > 1).double() * (torch.arange(rows) >= real)
        following = following + 2 * off[..., None]
        batch = batch_of(
            Transitions(observation, normal(rows, A).tanh(), torch.ones(P, rows).double(),
                        following, torch.zeros(P, rows).double()), real,
        )  # fmt: skip
        drawn = h2o.noise(generator, P, rows)
        noise = {name: value.double() for name, value in drawn.items()}
        metrics = h2o.update(state, batch, noise, CONTEXT)
    probe = 2 * normal(400, S) + 1
    action = normal(400, A).tanh()
    values = h2o.critics.values(state["critic"], {}, probe, action).mean(1)
    wrong = probe[..., 0] > 1
    for p in range(P):
        assert values[p][wrong[p]].mean() < values[p][~wrong[p]].mean() - 0.05
    assert (metrics["dynamics_ratio"] < 0.8).all()
    assert (metrics["dynamics_ratio"] > 0.2).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["imagination=none"], "Set imagination=simulator"),
        (["imagination.real_ratio=0.0"], "Set it to 0.5"),
        (["imagination.elite=per_rollout"], "belongs to another kind of imagination"),
        (["learner.kind=mobile"], "simulator, which is one"),
        (["learner.kind=bc"], "the cloned policy's own"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("train", "h2o", ["dataset=x", *changes])
