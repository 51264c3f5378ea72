"""The diversity term against differentiating twice with plain autograd, critic by critic."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from support import batch_of, context_of, converted, tree_map
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

from worldrl.config.learners import SACSettings
from worldrl.learners.diversity import diverse_step, diversity
from worldrl.learners.sac import SAC
from worldrl.training.compilation import compiled, compiler_available
from worldrl.types import Batch, Noise, Parameters, Transitions

P, M, S, A, B = 2, 4, 3, 2, 5
ETA = (0.7, 30.0)
BINS = 9
CONTEXT = context_of(S, A)
CPU = torch.device("cpu")

VARIANTS: dict[str, dict[str, Any]] = {
    "one layer": {"hidden": (6,)},
    "two layers": {"hidden": (6, 5)},
    "three layers": {"hidden": (6, 5, 7)},
    "edac initialisation": {"init": "edac"},
    "layer normalisation": {"layer_norm": True},
    "normalised after": {"layer_norm": True, "layer_norm_place": "after"},
    "huber": {"critic_loss": {"kind": "huber", "threshold": 0.5}},
    "classification": {
        "critic_loss": {"kind": "hl_gauss", "num_bins": BINS, "low": -2.0, "high": 3.0}
    },
}
every = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def learner(**changes: Any) -> SAC:
    base = {
        "hidden": (6, 5), "num_critics": M, "diversity": ETA, "actor_learning_rate": 1e-2,
        "critic_learning_rate": 3e-2, "target_rate": 0.1, "discount": 0.9,
    }  # fmt: skip
    return SAC(SACSettings.model_validate(base | changes), S, A, 100)


def state_of(sac: SAC, dtype: torch.dtype = torch.float64) -> Any:
    state = converted(sac.initialise(range(P), CONTEXT.log), dtype)
    for name, value in state["target"].items():  # targets unlike critics, as later in a run
        value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    return state


def batches(count: int, dtype: torch.dtype = torch.float64) -> list[tuple[Batch, Noise]]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    found = []
    for _ in range(count):
        ended = (torch.rand(P, B, generator=generator) < 1 / 3).to(dtype)
        rows = Transitions(normal(P, B, S), normal(P, B, A).tanh(), normal(P, B), normal(P, B, S),
                           ended)  # fmt: skip
        found.append((batch_of(rows), {"actions": normal(P, 2, B, A)}))
    return found


def network(parameters: Parameters, inputs: Tensor) -> Tensor:
    """``(B, in) -> (B, out)`` of one network."""
    last = sum(name.startswith("weight") for name in parameters) - 1
    for layer in range(last + 1):
        inputs = inputs @ parameters[f"weight.{layer}"] + parameters[f"bias.{layer}"]
        if f"scale.{layer}" in parameters:
            inputs = inputs - inputs.mean(-1, keepdim=True)
            inputs = inputs / (inputs.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            inputs = inputs * parameters[f"scale.{layer}"] + parameters[f"shift.{layer}"]
        if layer < last:
            inputs = inputs.clamp(min=0)
        if f"scale_after.{layer}" in parameters:
            inputs = inputs - inputs.mean(-1, keepdim=True)
            inputs = inputs / (inputs.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            inputs = inputs * parameters[f"scale_after.{layer}"]
            inputs = inputs + parameters[f"shift_after.{layer}"]
    return inputs


def value(critic: Parameters, observation: Tensor, action: Tensor) -> Tensor:
    output = network(critic, torch.cat([observation, action], -1))
    if output.shape[-1] == 1:
        return output[:, 0]
    edges = torch.linspace(-2, 3, BINS + 1, dtype=output.dtype)
    return output.softmax(-1) @ ((edges[1:] + edges[:-1]) / 2)


def td_loss(
    critic: Parameters, observation: Tensor, action: Tensor, target: Tensor, huber: bool
) -> Tensor:
    output = network(critic, torch.cat([observation, action], -1))
    if huber:  # half squares up to 0.5, over 0.5
        return F.huber_loss(output[:, 0], target, delta=0.5) / 0.5
    if output.shape[-1] == 1:
        return (output[:, 0] - target).square().mean()
    edges = torch.linspace(-2, 3, BINS + 1, dtype=output.dtype)
    sigma = 0.75 * (edges[1] - edges[0])
    share = Normal(target.clamp(-2, 3), sigma).cdf(edges[:, None]).T  # (B, BINS + 1)
    share = share.diff(dim=-1) / (share[:, -1:] - share[:, :1])
    return -(share * output.log_softmax(-1)).sum(-1).mean()


def cosines(critics: list[Parameters], observation: Tensor, action: Tensor) -> Tensor:
    """Equation 4's term of one member, by torch.autograd with create_graph."""
    slopes = []
    for critic in critics:
        at = action.clone().requires_grad_()
        total = value(critic, observation, at).sum()
        slopes.append(torch.autograd.grad(total, at, create_graph=True)[0])
    term = torch.zeros((), dtype=action.dtype)
    for row in range(len(action)):
        for i, j in itertools.permutations(range(len(critics)), 2):
            one, other = slopes[i][row], slopes[j][row]
            cosine = one @ other / ((one.norm() + 1e-10) * (other.norm() + 1e-10))
            term = term + cosine / (len(critics) - 1) / len(action)
    return term


def leaves(parameters: Parameters, *index: int) -> Parameters:
    return {name: value[index].clone().requires_grad_() for name, value in parameters.items()}


@every
def test_the_gradient_is_that_of_differentiating_twice(changes: dict[str, Any]) -> None:
    sac = learner(**changes)
    huber = sac.settings.critic_loss.kind == "huber"
    state = state_of(sac)
    [(batch, _)] = batches(1)
    target = torch.randn(P, 1, B, generator=torch.Generator().manual_seed(2)).double()
    step = diverse_step(
        sac.critics, state["critic"], state["support"], batch.observation, batch.action, target,
        torch.tensor(ETA).double(),
    )  # fmt: skip
    assert set(step.gradients) == set(state["critic"])
    for member in range(P):
        critics = [leaves(state["critic"], member, m) for m in range(M)]
        given = batch.observation[member], batch.action[member]
        term = cosines(critics, *given)
        losses = [td_loss(critic, *given, target[member, 0], huber) for critic in critics]
        (sum(losses) + ETA[member] * term).backward()  # type: ignore[union-attr]
        assert step.diversity[member].item() == pytest.approx(term.item(), rel=1e-6)
        for number, critic in enumerate(critics):
            loss = step.losses[member, number].mean().item()
            assert loss == pytest.approx(losses[number].item(), rel=1e-6)
            torch.testing.assert_close(step.values[member, number], value(critic, *given).detach())
            for name, leaf in critic.items():
                # The last bias moves no slope, and a lone one's gradient is the loss's alone.
                assert leaf.grad is not None
                found = step.gradients[name][member, number]
                torch.testing.assert_close(found, leaf.grad, rtol=1e-6, atol=1e-7)


def test_without_a_weight_it_is_the_gradient_of_the_loss_alone() -> None:
    sac, plain = learner(diversity=(0.0, 0.0)), learner(diversity=0.0)
    assert "critic_diversity" not in plain.metric_names
    diverse, without = state_of(sac), state_of(plain)
    for batch, noise in batches(3):
        sac.update(diverse, batch, noise, CONTEXT)
        plain.update(without, batch, noise, CONTEXT)
    for name, moment in without["critic_adam"].first.items():
        torch.testing.assert_close(diverse["critic_adam"].first[name], moment)


@every
def test_updates_equal_the_reference(changes: dict[str, Any]) -> None:
    """Critics and their moments over three updates; test_sac has the rest of an update."""
    sac = learner(**changes)
    huber = sac.settings.critic_loss.kind == "huber"
    state = state_of(sac)
    members = [[leaves(state["critic"], p, m) for m in range(M)] for p in range(P)]
    adams = [
        torch.optim.Adam([v for critic in critics for v in critic.values()], 3e-2)
        for critics in members
    ]
    for batch, noise in batches(3):
        before = tree_map(Tensor.clone, state)
        metrics = sac.update(state, batch, noise, CONTEXT)
        assert tuple(sorted(metrics)) == tuple(sorted(sac.metric_names))
        for p, (critics, adam) in enumerate(zip(members, adams, strict=True)):
            with torch.no_grad():
                following = batch.next_observation[p]
                output = network({k: v[p] for k, v in before["actor"].items()}, following)
                deviation = output[:, A:].clamp(-5, 2).exp()
                drawn = noise["actions"][p, 0]
                action = (output[:, :A] + deviation * drawn).tanh()
                density = Normal(output[:, :A], deviation).log_prob(
                    output[:, :A] + deviation * drawn
                )
                density = (density - (1 - action**2 + 1e-6).log()).sum(-1)
                targets = [{k: v[p, m] for k, v in before["target"].items()} for m in range(M)]
                values = torch.stack([value(target, following, action) for target in targets])
                temperature = min(math.exp(before["temperature"]["log_value"][p].item()), 1.0)
                soft = values.amin(0) - temperature * density
                backup = batch.reward[p] + 0.9 * (1 - batch.terminated[p]) * soft
            given = batch.observation[p], batch.action[p]
            term = cosines(critics, *given)
            loss = sum(td_loss(critic, *given, backup, huber) for critic in critics)
            assert metrics["critic_loss"][p].item() == pytest.approx(loss.item(), rel=1e-6)  # type: ignore[union-attr]
            assert metrics["critic_diversity"][p].item() == pytest.approx(term.item(), rel=1e-6)
            spread = (values.mean(0) - values.amin(0)).mean().item()
            assert metrics["value_spread"][p].item() == pytest.approx(spread, rel=1e-6)
            adam.zero_grad()
            (loss + ETA[p] * term).backward()  # type: ignore[union-attr]
            adam.step()
    close = {"rtol": 1e-6, "atol": 1e-8}
    for p, (critics, adam) in enumerate(zip(members, adams, strict=True)):
        for m, critic in enumerate(critics):
            for name, leaf in critic.items():
                torch.testing.assert_close(state["critic"][name][p, m], leaf.data, **close)
                moments = adam.state[leaf]
                first, second = (state["critic_adam"][i][name][p, m] for i in (0, 1))
                torch.testing.assert_close(first, moments["exp_avg"], **close)
                torch.testing.assert_close(second, moments["exp_avg_sq"], **close)


@pytest.mark.parametrize("changes", [{}, {"layer_norm": True}], ids=["by hand", "twice"])
def test_compiled_equals_eager(changes: dict[str, Any]) -> None:
    if not compiler_available(CPU):
        pytest.skip("no C++ compiler")
    sac = learner(hidden=(6,), **changes)

    def update(state: Any, batch: Batch, noise: Noise) -> Any:
        return sac.update(state, batch, noise, CONTEXT)

    fast = compiled(update, True, CPU)
    eager, graph = state_of(sac, torch.float32), state_of(sac, torch.float32)
    for batch, noise in batches(10, torch.float32):
        wanted, found = sac.update(eager, batch, noise, CONTEXT), fast(graph, batch, noise)
        for name, metric in wanted.items():
            torch.testing.assert_close(found[name], metric, rtol=1e-3, atol=1e-4)
    for name, weights in eager["critic"].items():
        torch.testing.assert_close(graph["critic"][name], weights, rtol=1e-3, atol=1e-4)


def test_bf16_gradients_are_near_and_in_the_weights_precision() -> None:
    sac = learner(hidden=(32, 32))
    state = state_of(sac, torch.float32)
    [(batch, _)] = batches(1, torch.float32)
    # Of little weight: a slope near 0 turns a rounding into another direction.
    target, weight = torch.randn(P, 1, B), torch.full((P,), 0.01)
    given = (state["support"], batch.observation, batch.action, target, weight)
    exact = diverse_step(sac.critics, state["critic"], *given)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = diverse_step(sac.critics, state["critic"], *given)
    for name, gradient in exact.gradients.items():
        assert rounded.gradients[name].dtype == torch.float32
        difference = (rounded.gradients[name] - gradient).norm()
        assert difference < 0.1 * gradient.norm(), name


def test_the_term_of_parallel_orthogonal_and_opposite_slopes() -> None:
    one, other = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 5.0])
    for pair, wanted in ((one, 3 * one), 2.0), ((one, other), 0.0), ((one, -one), -2.0):
        slopes = torch.stack(pair)[None, :, None].expand(1, 2, 7, 2)
        assert diversity(slopes).item() == pytest.approx(wanted)


def test_descending_it_turns_the_slopes_apart() -> None:
    """From critics that are nearly equal, by the diversity term alone."""
    sac = learner(hidden=(16,), diversity=100.0, critic_learning_rate=1e-3)
    state = state_of(sac)
    for weights in state["critic"].values():
        weights[:, 1:] = weights[:, :1] + 1e-3 * torch.randn(weights[:, 1:].shape)
    [(batch, noise)] = batches(1)
    first = sac.update(state, batch, noise, CONTEXT)["critic_diversity"]
    for _ in range(200):
        last = sac.update(state, batch, noise, CONTEXT)["critic_diversity"]
    assert (first > 0.9 * M).all()
    assert (last < 0.0).all()


def test_one_critic_cannot_differ() -> None:
    with pytest.raises(ValueError, match="num_critics=10"):
        SACSettings.model_validate({"num_critics": 1, "diversity": 1.0})
