"""The encoder of COCOA against loops over members, critics and features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import batch_of, converted, log_of
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

from worldrl.config.fields import group_of
from worldrl.config.learners import CocoaEncoder, SACSettings
from worldrl.config.schema import TrainConfig
from worldrl.learners import LEARNERS
from worldrl.learners.inputs import MEAN, SCALE, moments, seen
from worldrl.learners.networks import encoded, init_networks, output
from worldrl.models.anchors import anchor_networks, anchors, init_seeker, seek
from worldrl.models.ensemble import Ensemble, Standardizer, init_ensemble
from worldrl.random import generator
from worldrl.types import Context, Parameters, Transitions

P, S, A, B, M, N, E = 2, 4, 2, 5, 3, 4, 2
SEEDS = (10, 11)
FEATURES, RANK = 6, 3
ENCODER = CocoaEncoder(anchor_horizon=2, hidden=(7, 3), num_features=FEATURES, rank=RANK)
LOG = log_of(40, S, A)
GROUP = group_of(TrainConfig.model_fields["learner"])
assert GROUP is not None


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def world() -> Ensemble:
    """Untrained, with elites and scales that differ between seeds."""
    parameters = init_ensemble([generator(seed, "world") for seed in SEEDS], S, A, (8,), N)
    standardizers = [
        Standardizer(normal(P, width, seed=width), 0.5 + normal(P, width, seed=-width).abs())
        for width in (S + A, S + 1)
    ]
    elites = torch.tensor([[3, 1], [0, 2]])
    return converted(Ensemble(parameters, *standardizers, elites), torch.float64)


def seeker() -> Parameters:
    inputs = Standardizer(normal(P, S, seed=1).float(), 0.5 + normal(P, S, seed=2).float().abs())
    fresh = init_seeker([generator(seed, "seeker") for seed in SEEDS], inputs, A, (6, 5))
    found: Parameters = converted(fresh, torch.float64)
    for name, value in found.items():  # layer normalisation that does something
        if name.startswith(("scale", "shift")):
            value += 0.3 * normal(*value.shape, seed=3)
    return found


# -- anchors -----------------------------------------------------------------------------------


def action_of(seeker: Parameters, member: int, observation: Tensor) -> Tensor:
    """``(S,) -> (A,)``."""
    own = {name: value[member] for name, value in seeker.items()}
    hidden = ((observation - own["input_mean"]) / own["input_scale"]).clamp(-10, 10)
    for layer in range(2):
        hidden = hidden @ own[f"weight.{layer}"] + own[f"bias.{layer}"][0]
        centred = hidden - hidden.mean()
        hidden = centred / (centred.square().mean() + 1e-5).sqrt()
        hidden = (hidden * own[f"scale.{layer}"][0] + own[f"shift.{layer}"][0]).relu()
    return (hidden @ own["weight.2"] + own["bias.2"][0]).tanh()


def anchor_of(member: int, observation: Tensor, horizon: int) -> Tensor:
    """``(S,) -> (S,)``, with the world's own predictions."""
    of, seeks = world(), seeker()
    for _ in range(horizon):
        action = action_of(seeks, member, observation)
        prediction = of.predict(observation.expand(P, 1, S), action.expand(P, 1, A))
        elites = [prediction.mean[member, elite, 0, :S] for elite in of.elites[member].tolist()]
        observation = torch.stack(elites).mean(0)
    return observation


@pytest.mark.parametrize("horizon", [1, 3])
def test_an_anchor_is_where_the_seeker_leads_in_the_mean_of_the_elites(horizon: int) -> None:
    observation = 2 * normal(P, B, S)
    found = anchors(anchor_networks(seeker(), world()), observation, horizon)
    for member in range(P):
        for row in range(B):
            wanted = anchor_of(member, observation[member, row], horizon)
            torch.testing.assert_close(found[member, row], wanted)
    assert not torch.allclose(found, observation, atol=1e-2)
    assert seek(seeker(), observation).abs().max() < 1


def test_the_networks_of_anchors_hold_the_elites_alone() -> None:
    whole, found = world(), anchor_networks(seeker(), world())
    for member in range(P):
        chosen = whole.parameters["weight.0"][member, whole.elites[member]]
        assert found["elites.weight.0"][member].equal(chosen)
    assert all(len(value) == P for value in found.values())


@pytest.mark.parametrize("standardize", [False, True])
def test_networks_see_the_difference_and_the_anchor(standardize: bool) -> None:
    settings = SACSettings(encoder=ENCODER, standardize=standardize)
    inputs = converted(moments(LOG, P, standardize), torch.float64)
    observation = normal(P, B, S)
    anchor = anchors(anchor_networks(seeker(), world()), observation, 2)
    found = seen(settings, inputs | anchor_networks(seeker(), world()), observation)
    if standardize:
        data = LOG.transitions.observation.double()
        scale = data.std(0, correction=0) + 1e-3
        observation, anchor = ((value - data.mean(0)) / scale for value in (observation, anchor))
        assert {MEAN, SCALE} <= set(inputs)
    wanted = torch.cat([observation - anchor, anchor], -1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


# -- features ----------------------------------------------------------------------------------


def network_of(width: int, lead: tuple[int, ...]) -> Parameters:
    fresh = init_networks(
        SEEDS, "test", [width, 8, 3], torch.device("cpu"), "default", 0.0, lead, None, ENCODER
    )
    found: Parameters = converted(fresh, torch.float64)
    return found


def layers(own: Parameters, prefix: str, value: Tensor, count: int) -> Tensor:
    for layer in range(count):
        value = value @ own[f"{prefix}weight.{layer}"] + own[f"{prefix}bias.{layer}"][0]
        value = value.relu() if layer < count - 1 else value
    return value


def reference(own: Parameters, delta: Tensor, anchor: Tensor, action: Tensor) -> Tensor:
    """One network on one row: ``(S,), (S,), (A,) or (0,) -> (3,)``."""
    f = layers(own, "delta.", torch.cat([delta, action]), 3)
    g = layers(own, "anchor.", torch.cat([anchor, action]), 3)
    features = [
        sum(f[t * RANK + d] * g[t * RANK + d] for d in range(RANK)) for t in range(FEATURES)
    ]
    return layers(own, "", torch.stack([torch.as_tensor(one) for one in features]), 2)


@pytest.mark.parametrize("lead", [(), (M,)], ids=["actor", "critics"])
def test_features_are_sums_of_products_and_so_are_their_gradients(lead: tuple[int, ...]) -> None:
    actions = A if lead else 0
    network = network_of(S + actions, lead)
    inputs = normal(P, *([1] if lead else []), B, 2 * S + actions)
    weights = normal(P, *lead, B, 3, seed=5)

    def whole(network: Parameters, inputs: Tensor) -> Tensor:
        return (output(network, inputs) * weights).sum()

    def loops(network: Parameters, inputs: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for member in range(P):
            for critic in range(M) if lead else [None]:
                where = member if critic is None else (member, critic)
                own = {name: value[where] for name, value in network.items()}
                for row in range(B):
                    one = inputs[member].reshape(B, -1)[row]
                    found = reference(own, one[:S], one[S : 2 * S], one[2 * S :])
                    total = total + (found * weights[where][row]).sum()
        return total

    torch.testing.assert_close(whole(network, inputs), loops(network, inputs))
    found, wanted = (grad(one, (0, 1))(network, inputs) for one in (whole, loops))
    torch.testing.assert_close(found[1], wanted[1])
    for name, value in wanted[0].items():
        torch.testing.assert_close(found[0][name], value)
        assert value.abs().max() > 0, name


def test_a_network_without_an_encoder_takes_its_inputs() -> None:
    network = init_networks(SEEDS, "test", [S, 8, 3], torch.device("cpu"), "default", 0.0)
    inputs = normal(P, B, S).float()
    assert encoded(network, inputs) is inputs
    assert set(network) == {"weight.0", "bias.0", "weight.1", "bias.1"}


# -- in a learner ------------------------------------------------------------------------------


def batch(learner: Any) -> Any:
    rows = Transitions(
        normal(P, B, S),
        normal(P, B, A).tanh(),
        normal(P, B),
        normal(P, B, S, seed=7),
        torch.zeros(P, B, dtype=torch.float64),
    )
    drawn = [learner.noise(torch.Generator().manual_seed(3), 1, B) for _ in SEEDS]
    noise = {name: torch.cat([one[name] for one in drawn]).double() for name in drawn[0]}
    return batch_of(rows), noise


def test_critics_learn_through_the_encoder_and_targets_follow_with_it() -> None:
    """SAC's first critic step against Adam on gradients of the reference."""
    settings = SACSettings(
        hidden=(8,), num_critics=M, encoder=ENCODER, critic_learning_rate=0.01, target_rate=0.25
    )
    learner = LEARNERS["sac"](settings, S, A, 10)
    state: Any = converted(learner.initialise(SEEDS, LOG), torch.float64)
    state["inputs"] |= anchor_networks(seeker(), world())
    given, noise = batch(learner)
    before = {name: value.clone() for name, value in state["critic"].items()}
    backup, _ = learner.backup(state, given, noise)  # type: ignore[attr-defined]
    anchor = torch.stack(
        [torch.stack([anchor_of(p, row, 2) for row in given.observation[p]]) for p in range(P)]
    )

    def loss(critic: Parameters) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for member in range(P):
            for number in range(M):
                own = {name: value[member, number] for name, value in critic.items()}
                for row in range(B):
                    here = anchor[member, row]
                    away = given.observation[member, row] - here
                    value = reference(own, away, here, given.action[member, row])
                    total = total + F.mse_loss(value[0], backup[member, row]) / B
        return total

    learner.update(state, given, noise, Context(converted(LOG, torch.float64)))
    for name, value in grad(loss)(before).items():
        stepped = before[name] - 0.01 * value / (value.abs() + 1e-8)  # Adam's first step
        torch.testing.assert_close(state["critic"][name], stepped, rtol=1e-6, atol=1e-6)
        followed = before[name].lerp(stepped, 0.25)
        torch.testing.assert_close(state["target"][name], followed, rtol=1e-6, atol=1e-6)


def test_anchors_are_made_once_for_each_observation_of_an_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def counted(networks: Parameters, observation: Tensor, horizon: int) -> Tensor:
        calls.append(observation.shape[1])
        return anchors(networks, observation, horizon)

    monkeypatch.setattr("worldrl.learners.inputs.anchors", counted)
    for kind in sorted(set(LEARNERS) - {"mobile"}):  # which asks about sampled observations
        settings = {"hidden": (8,), "encoder": ENCODER}
        learner = LEARNERS[kind](GROUP.classes[kind].model_validate(settings), S, A, 10)
        state: Any = converted(learner.initialise(SEEDS, LOG), torch.float64)
        state["inputs"] |= anchor_networks(seeker(), world())
        given, noise = batch(learner)
        calls.clear()
        log = converted(LOG, torch.float64)
        learner.update(state, given, noise, Context(log, world()), learner.phases - 1)
        assert calls == ([B] if kind == "bc" else [B, B]), kind
