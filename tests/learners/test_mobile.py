"""MOBILE's targets against loops over rows, elites and samples, and plain autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import batch_of, converted, log_of
from torch import Tensor
from torch.nn.functional import silu, softplus

from worldrl.config.learners import MOBILESettings
from worldrl.learners import mobile
from worldrl.learners.mobile import MOBILE
from worldrl.models.ensemble import Ensemble, Standardizer, init_ensemble
from worldrl.random import generator
from worldrl.types import Batch, Context, Noise, Parameters, Transitions

P, S, A, B, LOGGED, K, E = 2, 4, 2, 6, 2, 3, 3
SEEDS = (10, 11)
DISCOUNT = 0.9


def learner(**changes: Any) -> MOBILE:
    base = {
        "hidden": (7, 5), "discount": DISCOUNT, "inconsistency_weight": (1.5, 0.5),
        "num_samples": K, "temperature": "fixed", "initial_temperature": 0.2,
    }  # fmt: skip
    return MOBILE(MOBILESettings.model_validate(base | changes), S, A, 8)


def world(same: bool = False) -> Ensemble:
    """Five members, the elites in no order, in units of their own; or five times the same."""
    random = torch.Generator().manual_seed(5)
    parameters = init_ensemble([generator(seed, "init") for seed in SEEDS], S, A, (8, 6), 5)
    if same:
        parameters = {
            name: value[:, :1].expand_as(value).clone() if value.dim() > 2 else value
            for name, value in parameters.items()
        }
    scales = (
        Standardizer(
            torch.randn(P, size, generator=random), 0.5 + torch.rand(P, size, generator=random)
        )
        for size in (S + A, S + 1)
    )
    elites = torch.tensor([[4, 0, 2], [1, 3, 2]])
    found: Ensemble = converted(Ensemble(parameters, *scales, elites), torch.float64)
    return found


def start(mobile: MOBILE) -> Any:
    """Targets unlike critics, as later in a run."""
    state = converted(mobile.initialise(SEEDS, log_of(40, S, A)), torch.float64)
    random = torch.Generator().manual_seed(2)
    for value in state["target"].values():
        value += 0.3 * torch.randn(value.shape, generator=random, dtype=torch.float64)
    return state


def drawn(mobile: MOBILE) -> tuple[Batch, Noise]:
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    terminated = (torch.rand(P, B, generator=random) < 1 / 3).double()
    rows = Transitions(
        normal(P, B, S), normal(P, B, A).tanh(), normal(P, B), normal(P, B, S), terminated
    )
    noise = {
        name: torch.stack([normal(*value.shape[1:]) for _ in range(P)])
        for name, value in mobile.noise(random, 1, B).items()
    }
    return batch_of(rows, LOGGED), noise


def network(parameters: Parameters, inputs: Tensor, activation: Any) -> Tensor:
    last = sum(name.startswith("weight") for name in parameters) - 1
    for layer in range(last + 1):
        inputs = inputs @ parameters[f"weight.{layer}"] + parameters[f"bias.{layer}"][0]
        inputs = activation(inputs) if layer < last else inputs
    return inputs


def of(parameters: Parameters, *index: int) -> Parameters:
    return {name: value[index] for name, value in parameters.items() if "log_variance" not in name}


class Reference:
    """One member; every row, elite, sample and critic in a loop."""

    def __init__(self, state: Any, ensemble: Ensemble, member: int) -> None:
        self.state, self.ensemble, self.member = state, ensemble, member

    def seen(self, observation: Tensor) -> Tensor:
        inputs = self.state["inputs"]
        if not inputs:
            return observation
        mean, scale = (inputs[f"observation_{n}"][self.member, 0] for n in ("mean", "scale"))
        return (observation - mean) / scale

    def act(self, observation: Tensor, noise: Tensor) -> Tensor:
        output = network(of(self.state["actor"], self.member), self.seen(observation), torch.relu)
        return (output[:A] + output[A:].clamp(-5, 2).exp() * noise).tanh()

    def value(self, observation: Tensor, action: Tensor) -> float:
        joined = torch.cat([self.seen(observation), action])
        critics = [of(self.state["target"], self.member, m) for m in range(2)]
        return min(network(critic, joined, torch.relu).item() for critic in critics)

    def gaussian(self, elite: int, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Of the next observation."""
        p, e = self.member, self.ensemble
        joined = torch.cat([observation, action])
        joined = ((joined - e.inputs.mean[p]) / e.inputs.scale[p]).clamp(-10, 10)
        output = network(of(e.parameters, p, int(e.elites[p, elite])), joined, silu)
        mean, log_variance = output.chunk(2)
        top, low = (e.parameters[f"{end}_log_variance"][p] for end in ("max", "min"))
        log_variance = top - softplus(top - log_variance)
        log_variance = low + softplus(log_variance - low)
        scale = e.targets.scale[p]
        change = (mean * scale + e.targets.mean[p])[:S]
        return observation + change, ((0.5 * log_variance).exp() * scale)[:S]

    def inconsistency(self, batch: Batch, noise: Noise, row: int) -> float:
        observation, action = batch.observation[self.member, row], batch.action[self.member, row]
        expected = []
        for elite in range(E):
            mean, std = self.gaussian(elite, observation, action)
            total = 0.0
            imagined = B - LOGGED
            lender = LOGGED + (row - LOGGED - elite) % imagined  # the row whose draws it takes
            for sample in range(K):
                following = mean + std * noise["futures"][self.member, sample, lender]
                drawn = noise["future_actions"][self.member, sample, lender]
                total += self.value(following, self.act(following, drawn))
            expected.append(total / K)
        middle = sum(expected) / E
        return float((sum((value - middle) ** 2 for value in expected) / (E - 1)) ** 0.5)

    def backups(self, batch: Batch, noise: Noise, weight: float, least: float | None) -> Tensor:
        found = []
        for row in range(B):
            following = batch.next_observation[self.member, row]
            action = self.act(following, noise["actions"][self.member, 0, row])
            ahead = (1 - batch.terminated[self.member, row]) * self.value(following, action)
            backup = batch.reward[self.member, row] + DISCOUNT * ahead
            if row >= LOGGED:
                backup = backup - weight * self.inconsistency(batch, noise, row)
            found.append(backup if least is None else backup.clamp(min=least))
        return torch.stack(found)


@pytest.mark.parametrize("rows_at_once", [2048, 7])
@pytest.mark.parametrize(
    "changes", [{}, {"target_min": 0.0}, {"standardize": True, "target_min": (-0.5, 0.1)}]
)
def test_targets_and_the_critics_gradient_equal_the_reference(
    changes: dict[str, Any], rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mobile, "CPU_ROWS", rows_at_once)
    own, ensemble = learner(**changes), world()
    state = start(own)
    batch, noise = drawn(own)
    least = changes.get("target_min")
    least = least if isinstance(least, tuple) else (least,) * P
    references = [Reference(state, ensemble, member) for member in range(P)]
    backups = [
        reference.backups(batch, noise, weight, least[member])
        for member, (reference, weight) in enumerate(zip(references, (1.5, 0.5), strict=True))
    ]
    wanted = [
        [reference.inconsistency(batch, noise, row) for row in range(LOGGED, B)]
        for reference in references
    ]
    gradients = []
    for member in range(P):
        critics = {n: v[member].clone().requires_grad_() for n, v in state["critic"].items()}
        loss = torch.zeros(()).double()
        for number in range(2):
            for row in range(B):
                seen = references[member].seen(batch.observation[member, row])
                joined = torch.cat([seen, batch.action[member, row]])
                value = network({n: v[number] for n, v in critics.items()}, joined, torch.relu)
                loss = loss + (value.squeeze() - backups[member][row]) ** 2 / B
        loss.backward()
        gradients.append({n: v.grad for n, v in critics.items()})

    metrics = own.update(state, batch, noise, Context(log_of(40, S, A), ensemble))
    for member in range(P):
        mean = sum(wanted[member]) / len(wanted[member])
        found = {name: value[member].item() for name, value in metrics.items()}
        assert found["inconsistency"] == pytest.approx(mean, rel=1e-9)
        assert found["inconsistency_cost"] == pytest.approx((1.5, 0.5)[member] * mean, rel=1e-9)
        assert found["backup_mean"] == pytest.approx(backups[member].mean().item(), rel=1e-9)
        for name, gradient in gradients[member].items():
            first = state["critic_adam"].first[name][member]
            torch.testing.assert_close(first, 0.1 * gradient, rtol=1e-8, atol=1e-10)


def test_with_weight_0_it_is_sac() -> None:
    own = learner(inconsistency_weight=0.0)
    state, same = start(own), start(own)
    batch, noise = drawn(own)
    own.update(state, batch, noise, Context(log_of(40, S, A), world()))
    own.sac.update(same, batch, noise, Context(log_of(40, S, A)))
    for name, value in same["critic"].items():
        torch.testing.assert_close(state["critic"][name], value, rtol=1e-12, atol=1e-12)


def test_every_draw_of_a_row_is_another() -> None:
    """E times K of them, so that the same elite E times still disagrees with itself, by as much as
    K samples leave open: with a hundred times the samples, about a tenth of that."""
    found = []
    for samples in 20, 2000:
        own = learner(num_samples=samples)
        state, (batch, noise) = start(own), drawn(own)
        metrics = own.update(state, batch, noise, Context(log_of(40, S, A), world(same=True)))
        found.append(metrics["inconsistency"])
    assert (found[0] > 0).all()
    assert ((found[1] / found[0] > 0.03) & (found[1] / found[0] < 0.3)).all()
