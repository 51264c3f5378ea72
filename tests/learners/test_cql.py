"""Conservative Q-learning against plain autograd, one member, critic, row and action at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support import batch_of, context_of, converted
from torch import Tensor
from torch.distributions import Normal

from worldrl.config.learners import CQLSettings
from worldrl.config.loader import load_config
from worldrl.errors import ConfigError
from worldrl.learners.cql import CQL
from worldrl.types import Batch, Noise, Parameters, Transitions

P, S, A, B, N = 2, 3, 2, 4, 3
CONTEXT = context_of(S, A)

VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    # Logged rows among the four, and settings.
    "defaults": (B, {}),
    "weights of their own": (B, {"conservative_weight": (0.0, 3.0)}),
    "three critics": (B, {"num_critics": 3}),
    "entropy in the target": (B, {"entropy_in_target": True}),
    "best of the next actions": (B, {"max_target_backup": True}),
    "best of them, with entropy": (B, {"max_target_backup": True, "entropy_in_target": True}),
    "a bound on the gap of a row": (B, {"min_gap": (3.6, 3.6)}),
    "learned multiplier": (B, {"gap_target": (0.5, 20.0)}),
    "standardised": (B, {"standardize": True}),
    "combo": (1, {}),
    "combo, imagined rows only": (3, {"conservative_rows": "imagined"}),
}


def learner(**changes: Any) -> CQL:
    base = {
        "hidden": (6, 5), "actor_learning_rate": 1e-2, "critic_learning_rate": 3e-2,
        "temperature_learning_rate": 2e-2, "target_rate": 0.1, "discount": 0.9,
        "conservative_weight": 2.0, "num_sampled_actions": N, "actor_schedule": "constant",
    }  # fmt: skip
    return CQL(CQLSettings.model_validate(base | changes), S, A, 100)


def state_of(cql: CQL) -> Any:
    state = converted(cql.initialise(range(P), CONTEXT.log), torch.float64)
    for name, value in state["target"].items():  # targets unlike critics, as later in a run
        value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    return state


def batches(cql: CQL, count: int, logged: int) -> list[tuple[Batch, Noise]]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = []
    for _ in range(count):
        ended = (torch.rand(P, B, generator=generator) < 1 / 3).double()
        rows = Transitions(normal(P, B, S), normal(P, B, A).tanh(), normal(P, B), normal(P, B, S),
                           ended)  # fmt: skip
        drawn = [cql.noise(generator, 1, B) for _ in range(P)]
        noise = {name: torch.cat([one[name] for one in drawn]).double() for name in drawn[0]}
        found.append((batch_of(rows, logged), noise))
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

    def __init__(self, cql: CQL, state: Any, member: int) -> None:
        self.settings, self.member, critics = cql.settings, member, cql.settings.num_critics

        def leaves(parameters: Parameters, *index: int) -> Parameters:
            return {k: v[index].clone().requires_grad_() for k, v in parameters.items()}

        self.actor = leaves(state["actor"], member)
        self.critics = [leaves(state["critic"], member, m) for m in range(critics)]
        self.targets = [leaves(state["target"], member, m) for m in range(critics)]
        self.log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
        self.log_multiplier = torch.ones((), dtype=torch.float64, requires_grad=True)
        weights = [value for critic in self.critics for value in critic.values()]
        self.actor_adam = torch.optim.Adam(self.actor.values(), 1e-2)
        self.critic_adam = torch.optim.Adam(weights, 3e-2)
        self.multiplier_adam = torch.optim.Adam([self.log_multiplier], 3e-2)
        self.temperature_adam = torch.optim.Adam([self.log_temperature], 2e-2)

    def own(self, name: str) -> Any:
        value = getattr(self.settings, name)
        return value[self.member] if isinstance(value, tuple) else value

    def seen(self, observation: Tensor) -> Tensor:
        if not self.settings.standardize:
            return observation
        logged = CONTEXT.log.transitions.observation
        deviation = logged.std(0, correction=0) + 1e-3
        return (observation - logged.mean(0)) / deviation

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

    def backup(self, batch: Batch, noise: Noise, row: int, temperature: float) -> Tensor:
        p, following = self.member, batch.next_observation[self.member, row]
        found = []
        for drawn in noise["targets"][p, row]:
            action, density = self.act(following, drawn)
            found.append((self.least(self.targets, following, action), density))
        assert len(found) == (N if self.settings.max_target_backup else 1)
        value, density = max(found, key=lambda pair: pair[0].item())
        if self.settings.entropy_in_target:
            value = value - temperature * density
        return batch.reward[p, row] + 0.9 * (1 - batch.terminated[p, row]) * value

    def soft_maximum(self, critic: Parameters, batch: Batch, noise: Noise, row: int) -> Tensor:
        p, observation = self.member, batch.observation[self.member, row]
        terms = []
        for k in range(N):
            uniform = noise["uniform"][p, row, k]
            terms.append(self.value(critic, observation, uniform) - A * math.log(0.5))
            for which, at in enumerate((observation, batch.next_observation[p, row])):
                with torch.no_grad():
                    action, density = self.act(at, noise["policy"][p, which, row, k])
                terms.append(self.value(critic, observation, action) - density)
        assert len(terms) == 3 * N
        return torch.stack(terms).exp().sum().log()

    def update(self, batch: Batch, noise: Noise) -> dict[str, float]:
        p, logged = self.member, batch.logged.shape[1]
        temperature = min(self.log_temperature.exp().item(), 1.0)
        with torch.no_grad():
            backups = [self.backup(batch, noise, row, temperature) for row in range(B)]
        lowered = range(B)
        if self.settings.conservative_rows == "imagined":
            lowered = range(logged, B)
        td, gaps, total_value = torch.zeros(()).double(), [], 0.0
        for critic in self.critics:
            values = [self.value(critic, batch.observation[p, r], batch.action[p, r])
                      for r in range(B)]  # fmt: skip
            total_value += sum(value.item() for value in values) / B / len(self.critics)
            for row in range(B):
                td = td + (values[row] - backups[row]) ** 2 / B
            soft = [self.soft_maximum(critic, batch, noise, row) for row in lowered]
            if self.settings.min_gap is not None:
                pairs = [one - value for one, value in zip(soft, values, strict=True)]
                gaps.append(torch.stack(pairs).clamp(min=self.own("min_gap")).mean())
            else:
                gaps.append(torch.stack(soft).mean() - torch.stack(values[:logged]).mean())
        weight = self.own("conservative_weight")
        if self.settings.gap_target is not None:
            weight = weight * self.log_multiplier.exp().item()
        self.critic_adam.zero_grad()
        (td + weight * torch.stack(gaps).sum()).backward()
        self.critic_adam.step()
        gap = torch.stack(gaps).mean().item()
        if self.settings.gap_target is not None:
            self.multiplier_adam.zero_grad()
            factor = self.log_multiplier.exp() * self.own("conservative_weight")
            (-factor * (gap - self.own("gap_target"))).backward()
            self.multiplier_adam.step()

        loss, densities = torch.zeros(()).double(), []
        for row in range(B):
            observation = batch.observation[p, row]
            action, density = self.act(observation, noise["actor"][p, row])
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
        return {
            "critic_loss": td.item(),
            "actor_loss": loss.item(),
            "value_mean": total_value,
            "backup_mean": torch.stack(backups).mean().item(),
            "temperature": temperature,
            "entropy": -sum(densities) / B,
            "conservative_gap": gap,
            "conservative_weight": weight,
        }


@pytest.mark.parametrize(("logged", "changes"), VARIANTS.values(), ids=VARIANTS)
def test_updates_equal_the_reference(logged: int, changes: dict[str, Any]) -> None:
    cql = learner(**changes)
    state = state_of(cql)
    references = [Reference(cql, state, member) for member in range(P)]
    tolerance = 1e-5 if changes.get("standardize") else 1e-8  # the moments are float32
    for batch, noise in batches(cql, 3, logged):
        metrics = cql.update(state, batch, noise, CONTEXT)
        assert set(metrics) == set(cql.metric_names)
        for member, reference in enumerate(references):
            wanted = reference.update(batch, noise)
            found = {name: value[member].item() for name, value in metrics.items()}
            assert found == pytest.approx(wanted, rel=tolerance, abs=tolerance)
    close = {"rtol": 10 * tolerance, "atol": 10 * tolerance}
    for p, reference in enumerate(references):
        for name, leaf in reference.actor.items():
            torch.testing.assert_close(state["actor"][name][p], leaf.data, **close)
            first = state["actor_adam"].first[name][p]
            wanted = reference.actor_adam.state[leaf]["exp_avg"]
            torch.testing.assert_close(first, wanted, **close)
        for m, critic in enumerate(reference.critics):
            for name, leaf in critic.items():
                torch.testing.assert_close(state["critic"][name][p, m], leaf.data, **close)
                moments = reference.critic_adam.state[leaf]
                # Adam's steps hide the size of a loss; its moments show it.
                first, second = (state["critic_adam"][i][name][p, m] for i in (0, 1))
                torch.testing.assert_close(first, moments["exp_avg"], **close)
                torch.testing.assert_close(second, moments["exp_avg_sq"], **close)
                target = reference.targets[m][name].data
                torch.testing.assert_close(state["target"][name][p, m], target, **close)
        found = state["temperature"]["log_value"][p]
        torch.testing.assert_close(found, reference.log_temperature.data, **close)
        if cql.lagrange:
            found = state["multiplier"]["log_value"][p]
            torch.testing.assert_close(found, reference.log_multiplier.data, **close)
            first = state["multiplier_adam"].first["log_value"][p]
            wanted = reference.multiplier_adam.state[reference.log_multiplier]["exp_avg"]
            torch.testing.assert_close(first, wanted, **close)


def test_the_bound_on_the_gap_binds_in_some_rows_and_not_in_others() -> None:
    """Else the variant above would pass for a bound that is never reached, or always."""
    gaps = {}
    for bound in None, (3.6, 3.6), (1e3, 1e3):
        cql = learner(min_gap=bound)
        [(batch, noise)] = batches(cql, 1, B)
        gaps[bound] = cql.update(state_of(cql), batch, noise, CONTEXT)["conservative_gap"]
    assert (gaps[3.6, 3.6] > gaps[None]).all()
    assert (gaps[3.6, 3.6] > 3.6).all()
    assert (gaps[1e3, 1e3] == 1e3).all()


def test_noise_is_normal_or_uniform_in_the_box() -> None:
    for best, targets in (False, 1), (True, N):
        noise = learner(max_target_backup=best).noise(torch.Generator().manual_seed(0), 30, 50)
        assert noise["targets"].shape == (30, 50, targets, A)
        assert noise["actor"].shape == (30, 50, A)
        assert noise["policy"].shape == (30, 2, 50, N, A)
        assert noise["uniform"].shape == (30, 50, N, A)
        for name in "targets", "actor", "policy":
            assert noise[name].std().item() == pytest.approx(1, abs=0.05)
        assert -1 <= noise["uniform"].min() < -0.99
        assert 0.99 < noise["uniform"].max() <= 1
        assert noise["uniform"].mean().item() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["learner.conservative_rows=imagined"], "recipe combo"),
        (["recipe=combo", "learner.min_gap=1.0"], "imagination=none"),
        (["recipe=combo", "imagination.real_ratio=0.0"], "0.5"),
        (["recipe=combo", "learner.min_gap=1.0", "learner.conservative_rows=imagined"], "row"),
    ],
)
def test_settings_without_the_rows_they_need_are_refused(changes: list[str], said: str) -> None:
    recipe = "cql"
    if changes[0].startswith("recipe="):
        recipe, changes = changes[0].partition("=")[2], changes[1:]
    with pytest.raises(ConfigError, match=said):
        load_config("train", recipe, ["dataset=x", *changes])


def test_values_off_the_data_are_lower_than_without_the_term() -> None:
    """Logged actions lie in one corner; their rewards do not depend on them."""
    values = {}
    for weight in 0.0, 1.0:
        cql = learner(
            hidden=(32,), conservative_weight=weight, discount=0.0, critic_learning_rate=3e-3
        )
        state = state_of(cql)
        generator = torch.Generator().manual_seed(0)
        observation = torch.ones(P, 32, S, dtype=torch.float64)
        for _ in range(200):
            action = 0.5 + 0.5 * torch.rand(P, 32, A, generator=generator, dtype=torch.float64)
            one = torch.ones(P, 32, dtype=torch.float64)
            batch = batch_of(Transitions(observation, action, one, observation, one), 32)
            drawn = cql.noise(generator, P, 32)
            noise = {name: value.double() for name, value in drawn.items()}
            cql.update(state, batch, noise, CONTEXT)
        probe = torch.full((P, 1, A), 0.75).double(), torch.full((P, 1, A), -0.75).double()
        values[weight] = [
            cql.critics.values(state["critic"], {}, observation[:, :1], at).mean() for at in probe
        ]
    near, far = values[0.0][0] - values[0.0][1], values[1.0][0] - values[1.0][1]
    assert far > near + 0.5
