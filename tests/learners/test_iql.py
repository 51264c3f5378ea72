"""Implicit Q-learning against plain autograd, one member and one critic at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support import batch_of, context_of, converted
from torch import Tensor
from torch.distributions import Normal

from worldrl.config.learners import IQLSettings
from worldrl.learners.iql import IQL
from worldrl.training.compilation import compiled, compiler_available
from worldrl.types import Batch, Metrics, Noise, Parameters, Transitions

P, S, A, B = 3, 4, 2, 5
HIDDEN = (7, 6)
SEEDS = (10, 11, 12)
NUM_UPDATES = 8
CPU = torch.device("cpu")
CONTEXT = context_of(S, A)


def settings(**changes: Any) -> IQLSettings:
    base = {
        "hidden": HIDDEN, "actor_learning_rate": 1e-2, "critic_learning_rate": 3e-2,
        "value_learning_rate": 2e-2, "target_rate": 0.1, "discount": 0.9,
    }  # fmt: skip
    return IQLSettings.model_validate(base | changes)


def learner(**changes: Any) -> IQL:
    return IQL(settings(**changes), S, A, NUM_UPDATES)


def state_of(iql: IQL, dtype: torch.dtype = torch.float64) -> Any:
    """Targets and deviations unlike those of a start, as later in a run."""
    state = converted(iql.initialise(SEEDS, CONTEXT.log), dtype)
    source = torch.Generator().manual_seed(5)
    for value in state["target"].values():
        value += 0.1 * torch.randn(value.shape, generator=source)
    if "log_std" in state["actor"]:
        state["actor"]["log_std"] += 0.3 * torch.randn(P, 1, A, generator=source)
    return state


def batches(iql: IQL, count: int, dtype: torch.dtype = torch.float64) -> list[tuple[Batch, Noise]]:
    """Random transitions, a third of them terminal, and noise, for all members."""
    source = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64).to(dtype)

    found = []
    for _ in range(count):
        terminated = (torch.rand(P, B, generator=source) < 1 / 3).to(dtype)
        action = normal(P, B, A).tanh()
        rows = Transitions(normal(P, B, S), action, normal(P, B), normal(P, B, S), terminated)
        drawn = [iql.noise(source, 1, B) for _ in range(P)]
        noise = {name: torch.cat([one[name] for one in drawn]) for name in drawn[0]}
        found.append((batch_of(rows), noise))
    return found


class Reference:
    """One member, trained by torch.autograd and torch.optim.Adam; rows and critics in loops."""

    def __init__(self, iql: IQL, state: Any, member: int) -> None:
        self.settings, self.member = iql.settings, member
        count = state["critic"]["weight.0"].shape[1]

        def leaves(parameters: Parameters, *index: int) -> Parameters:
            return {k: v[index].clone().requires_grad_() for k, v in parameters.items()}

        self.actor = leaves(state["actor"], member)
        self.value = leaves(state["value"], member)
        self.critics = [leaves(state["critic"], member, m) for m in range(count)]
        self.targets = [leaves(state["target"], member, m) for m in range(count)]
        own = iql.settings
        self.actor_adam = torch.optim.Adam(self.actor.values(), own.actor_learning_rate)
        self.value_adam = torch.optim.Adam(self.value.values(), own.value_learning_rate)
        everything = [value for critic in self.critics for value in critic.values()]
        self.critic_adam = torch.optim.Adam(everything, own.critic_learning_rate)
        self.inputs = {name: value[member, 0] for name, value in state["inputs"].items()}
        self.updates = 0

    def seen(self, observation: Tensor) -> Tensor:
        if not self.settings.standardize:
            return observation
        mean, scale = self.inputs["observation_mean"], self.inputs["observation_scale"]
        return (observation - mean) / scale

    @staticmethod
    def network(
        parameters: Parameters, inputs: Tensor, stays: list[Tensor] | None = None
    ) -> Tensor:
        for layer in range(3):
            inputs = inputs @ parameters[f"weight.{layer}"] + parameters[f"bias.{layer}"][0]
            if f"scale.{layer}" in parameters:
                mean, deviation = inputs.mean(), (inputs.var(correction=0) + 1e-5).sqrt()
                inputs = (inputs - mean) / deviation
                inputs = inputs * parameters[f"scale.{layer}"][0] + parameters[f"shift.{layer}"][0]
            if layer < 2:
                inputs = inputs.clamp(min=0)
                if stays is not None:
                    inputs = torch.where(stays[layer], inputs / 0.7, 0.0)
        return inputs

    def action_value(self, observation: Tensor, action: Tensor) -> Tensor:
        """Over the target critics: the least, or their quantile."""
        joined = torch.cat([observation, action])
        values = torch.stack([self.network(one, joined).squeeze() for one in self.targets])
        own = self.settings.quantile
        return values.min() if own is None else values.quantile(own)

    def update(self, batch: Batch, noise: Noise) -> dict[str, float]:
        own, member = self.settings, self.member
        observation = self.seen(batch.observation[member])
        following = self.seen(batch.next_observation[member])
        action = batch.action[member]

        # What critics and actor will use is of the value network before its step.
        advantages, backups = [], []
        with torch.no_grad():
            for row in range(B):
                value = self.network(self.value, observation[row]).squeeze()
                advantages.append(self.action_value(observation[row], action[row]) - value)
                ahead = self.network(self.value, following[row]).squeeze()
                go_on = 1 - batch.terminated[member, row]
                backup = batch.reward[member, row] + own.discount * go_on * ahead
                low, high = own.target_low, own.target_high
                if low is not None and backup < low:
                    backup = torch.full_like(backup, low)
                if high is not None and backup > high:
                    backup = torch.full_like(backup, high)
                backups.append(backup)

        value_loss = torch.zeros(()).double()
        for row in range(B):
            target = self.action_value(observation[row], action[row]).detach()
            error = target - self.network(self.value, observation[row]).squeeze()
            side = own.expectile if error >= 0 else 1 - own.expectile
            value_loss = value_loss + side * error**2 / B
        self.value_adam.zero_grad()
        value_loss.backward()
        self.value_adam.step()

        critic_loss, total = torch.zeros(()).double(), 0.0
        for critic in self.critics:
            for row in range(B):
                joined = torch.cat([observation[row], action[row]])
                value = self.network(critic, joined).squeeze()
                error = (value - backups[row]).abs()
                if own.critic_loss.kind == "huber":
                    t = own.critic_loss.threshold
                    loss = error**2 / (2 * t) if error <= t else error - t / 2
                else:
                    loss = error**2
                critic_loss = critic_loss + loss / B
                total += value.item() / B / len(self.critics)
        self.critic_adam.zero_grad()
        critic_loss.backward()
        self.critic_adam.step()
        with torch.no_grad():
            for critic, aim in zip(self.critics, self.targets, strict=True):
                for name, value in aim.items():
                    value.mul_(1 - own.target_rate).add_(own.target_rate * critic[name])

        actor_loss, weights, clipped = torch.zeros(()).double(), 0.0, 0.0
        for row in range(B):
            weight = math.exp(own.inverse_temperature * advantages[row].item())
            clipped += (weight > own.max_weight) / B
            weight = min(weight, own.max_weight)
            weights += weight / B
            stays = [noise[f"stays.{i}"][member, row] for i in range(2)] if noise else None
            mean = self.network(self.actor, observation[row], stays).tanh()
            if own.policy == "deterministic":
                cost = ((mean - action[row]) ** 2).sum()
            else:
                std = self.actor["log_std"][0].clamp(-20, 2).exp()
                cost = -Normal(mean, std).log_prob(action[row]).sum()
            actor_loss = actor_loss + weight * cost / B
        self.actor_adam.zero_grad()
        actor_loss.backward()
        if own.actor_schedule == "cosine":
            share = 0.5 * (1 + math.cos(math.pi * min(self.updates / NUM_UPDATES, 1)))
            self.actor_adam.param_groups[0]["lr"] = own.actor_learning_rate * share
        self.actor_adam.step()
        self.updates += 1
        return {
            "critic_loss": critic_loss.item(),
            "value_loss": value_loss.item(),
            "actor_loss": actor_loss.item(),
            "value_mean": total,
            "backup_mean": torch.stack(backups).mean().item(),
            "advantage_mean": torch.stack(advantages).mean().item(),
            "weight_mean": weights,
            "weight_clipped": clipped,
        }


VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "deterministic": {"policy": "deterministic"},
    "expectile below the mean": {"expectile": 0.2},
    "all weights alike": {"inverse_temperature": 0.0},
    "weights clipped": {"inverse_temperature": 8.0, "max_weight": 1.5},
    "dropout": {"dropout": 0.3},
    "dropout, deterministic": {"dropout": 0.3, "policy": "deterministic"},
    "constant actor rate": {"actor_schedule": "constant"},
    "layer normalisation": {"layer_norm": True},
    "standardised": {"standardize": True},
    "quantile between two critics": {"num_critics": 4, "quantile": 0.25},
    "quantile at a critic": {"num_critics": 5, "quantile": 0.25},
    "huber": {"critic_loss": {"kind": "huber", "threshold": 0.4}},
    "targets within a range": {"target_low": -0.3, "target_high": 0.4},
    "targets from below": {"target_low": 0.2},
    "riql": {
        "standardize": True, "num_critics": 5, "quantile": 0.1, "policy": "deterministic",
        "critic_loss": {"kind": "huber", "threshold": 0.1}, "target_low": -1.0, "target_high": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_five_updates_equal_the_reference(changes: dict[str, Any]) -> None:
    iql = learner(**changes)
    state = state_of(iql)
    references = [Reference(iql, state, member) for member in range(P)]
    for batch, noise in batches(iql, 5):
        metrics = iql.update(state, batch, noise, CONTEXT)
        assert tuple(metrics) == iql.metric_names
        for member, reference in enumerate(references):
            wanted = reference.update(batch, noise)
            found = {name: value[member].item() for name, value in metrics.items()}
            assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    for member, reference in enumerate(references):
        _assert_equals(state, reference, member)


def _assert_equals(state: Any, reference: Reference, member: int) -> None:
    close = {"rtol": 1e-8, "atol": 1e-9}
    for part, wanted, adam in (
        ("actor", reference.actor, reference.actor_adam),
        ("value", reference.value, reference.value_adam),
    ):
        for name, value in wanted.items():
            torch.testing.assert_close(state[part][name][member], value.data, **close)
            # Adam's steps hide the size of a loss; its moments show it.
            first, second = (state[f"{part}_adam"][i][name][member] for i in (0, 1))
            torch.testing.assert_close(first, adam.state[value]["exp_avg"], **close)
            torch.testing.assert_close(second, adam.state[value]["exp_avg_sq"], **close)
    for number, critic in enumerate(reference.critics):
        for name, value in critic.items():
            torch.testing.assert_close(state["critic"][name][member, number], value.data, **close)
            moments = reference.critic_adam.state[value]
            first, second = (state["critic_adam"][i][name][member, number] for i in (0, 1))
            torch.testing.assert_close(first, moments["exp_avg"], **close)
            torch.testing.assert_close(second, moments["exp_avg_sq"], **close)
            aim = reference.targets[number][name].data
            torch.testing.assert_close(state["target"][name][member, number], aim, **close)


def test_every_variant_makes_a_difference() -> None:
    """Else the test above would pass for a setting that both sides ignore."""
    found = {}
    for name, changes in VARIANTS.items():
        iql = learner(**changes)
        state = state_of(iql)
        for batch, noise in batches(iql, 3):
            iql.update(state, batch, noise, CONTEXT)
        found[name] = torch.cat(
            [state[part]["weight.1"].flatten() for part in ("actor", "value", "critic")]
        )
    for name, value in found.items():
        same = [other for other, one in found.items() if one.equal(value)]
        assert same == [name]


#: Values for members 0, 1 and 2 of every number that may differ between them.
OWN = {
    "discount": (0.9, 0.5, 0.99),
    "expectile": (0.7, 0.9, 0.3),
    "inverse_temperature": (3.0, 10.0, 0.0),
    "max_weight": (100.0, 0.9, 1.1),
    "actor_learning_rate": (1e-2, 3e-2, 1e-3),
    "value_learning_rate": (1e-2, 2e-2, 3e-3),
    "critic_learning_rate": (3e-2, 1e-3, 1e-2),
    "target_rate": (0.1, 0.5, 0.01),
    "target_low": (-5.0, 0.1, -0.2),
    "target_high": (5.0, 0.3, 0.2),
}


def test_members_with_settings_of_their_own_are_what_they_are_alone() -> None:
    whole = learner(**OWN)
    state = state_of(whole)
    for batch, noise in batches(whole, 3):
        whole.update(state, batch, noise, CONTEXT)
    alone = []
    for member in range(P):
        iql = learner(**{name: values[member] for name, values in OWN.items()})
        same = state_of(iql)
        for batch, noise in batches(iql, 3):
            iql.update(same, batch, noise, CONTEXT)
        for part in "actor", "value", "critic", "target":
            for name, value in same[part].items():
                torch.testing.assert_close(state[part][name][member], value[member])
        alone.append(same)
    # Each number counts: with that of member 1 alone the others come out otherwise.
    for name, values in OWN.items():
        iql = learner(**({k: v[1] for k, v in OWN.items()} | {name: values[2]}))
        other = state_of(iql)
        for batch, noise in batches(iql, 3):
            iql.update(other, batch, noise, CONTEXT)
        unlike = [
            not other[part][key].equal(value)
            for part in ("actor", "value", "critic", "target")
            for key, value in alone[1][part].items()
        ]
        assert any(unlike), name


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("critics", [1, 2, 5])
def test_quantiles_over_critics(quantile: float, critics: int) -> None:
    values = torch.randn(P, critics, B, generator=torch.Generator().manual_seed(0)).double()
    found = learner(quantile=quantile, num_critics=critics).over_critics(values)
    torch.testing.assert_close(found, values.quantile(quantile, 1))


def test_the_deviation_is_clipped_and_samples_stay_within_bounds() -> None:
    iql = learner()
    state = state_of(iql, torch.float32)
    state["actor"]["log_std"][:] = torch.tensor([-100.0, 100.0])
    policy = iql.policy_parameters(state)
    observation = torch.randn(P, 50, S)
    mean = iql.act(policy, observation, None)
    sample = iql.act(policy, observation, torch.ones(P, 50, A))
    torch.testing.assert_close(sample[..., 0], mean[..., 0])  # exp(-20)
    wanted = (mean[..., 1] + math.exp(2.0)).clamp(max=1.0)
    torch.testing.assert_close(sample[..., 1], wanted)


def test_half_the_deviation_is_half_the_noise() -> None:
    iql = learner()
    state = state_of(iql)
    state["actor"]["log_std"][:] = math.log(0.05)
    for value in "weight.2", "bias.2":
        state["actor"][value].zero_()
    noise = torch.randn(P, 9, A).double()
    action = iql.act(iql.policy_parameters(state), torch.randn(P, 9, S).double(), noise)
    torch.testing.assert_close(action, 0.05 * noise)


def test_a_deterministic_policy_has_no_noise() -> None:
    iql = learner(policy="deterministic")
    state = state_of(iql, torch.float32)
    assert "log_std" not in state["actor"]
    policy, observation = iql.policy_parameters(state), torch.randn(P, 5, S)
    assert iql.act(policy, observation, torch.randn(P, 5, A)).equal(
        iql.act(policy, observation, None)
    )


def test_dropout_is_noise_and_acting_has_none() -> None:
    iql = learner(dropout=0.3)
    noise = iql.noise(torch.Generator().manual_seed(0), 40, 50)
    assert {name: value.shape for name, value in noise.items()} == {
        "stays.0": (40, 50, HIDDEN[0]),
        "stays.1": (40, 50, HIDDEN[1]),
    }
    for value in noise.values():
        assert value.dtype == torch.bool
        assert value.float().mean().item() == pytest.approx(0.7, abs=0.02)
    again = iql.noise(torch.Generator().manual_seed(0), 40, 50)
    assert all(again[name].equal(value) for name, value in noise.items())
    assert learner().noise(torch.Generator(), 9, B) == {}
    plain, state = learner(), state_of(iql)
    observation = torch.randn(P, 5, S).double()
    policy = iql.policy_parameters(state)
    assert iql.act(policy, observation, None).equal(plain.act(policy, observation, None))


def test_compiled_equals_eager_with_every_switch() -> None:
    """Within 1e-4 after 10 float32 updates: fusion reorders sums."""
    if not compiler_available(CPU):
        pytest.skip("no C++ compiler")
    iql = learner(**VARIANTS["riql"] | {"dropout": 0.3})

    def update(state: Any, batch: Batch, noise: Noise) -> Metrics:
        return iql.update(state, batch, noise, CONTEXT)

    fast = compiled(update, True, CPU)
    eager, graph = (state_of(iql, torch.float32) for _ in range(2))
    for batch, noise in batches(iql, 10, torch.float32):
        wanted, found = iql.update(eager, batch, noise, CONTEXT), fast(graph, batch, noise)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
    for part in "actor", "value", "critic", "target":
        for name, value in eager[part].items():
            torch.testing.assert_close(graph[part][name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1.0), (2.0, -2.0), ((0.0, 3.0), (1.0, 2.0)), ((0.0, 3.0), 2.0)]
)
def test_a_range_without_targets_is_refused(low: Any, high: Any) -> None:
    with pytest.raises(ValidationError, match="no target lies between"):
        settings(target_low=low, target_high=high)
    settings(target_low=low)
    settings(target_high=high)


def test_learns_a_bandit() -> None:
    """One step, reward -(a - 0.4)^2 - (a' + 0.6)^2, logged by a uniform policy."""
    best = torch.tensor([0.4, -0.6])
    own = settings(
        hidden=(32,), expectile=0.9, inverse_temperature=30.0, actor_learning_rate=3e-3,
        critic_learning_rate=3e-3, value_learning_rate=3e-3,
    )  # fmt: skip
    iql, context = IQL(own, 1, A, num_updates=800), context_of(1, A)
    state = iql.initialise((0, 1), context.log)
    source = torch.Generator().manual_seed(0)
    observation, one = torch.ones(2, 64, 1), torch.ones(2, 64)
    for _ in range(800):
        action = 2 * torch.rand(2, 64, A, generator=source) - 1
        reward = -(action - best).square().sum(-1)
        batch = batch_of(Transitions(observation, action, reward, observation, one))
        iql.update(state, batch, {}, context)
    chosen = iql.act(iql.policy_parameters(state), observation[:, :1], None)[:, 0]
    torch.testing.assert_close(chosen, best.expand(2, A), atol=0.1, rtol=0)
