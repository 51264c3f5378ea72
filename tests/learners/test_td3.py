"""TD3+BC, PRDC and ReBRAC against plain autograd, one member, one critic and one row at a time."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from support import converted, log_of, of_member
from torch import Tensor
from torch.nn import functional as F

from worldrl.config.fields import group_of
from worldrl.config.schema import TrainConfig
from worldrl.learners import LEARNERS
from worldrl.learners.td3 import TD3
from worldrl.nearest import CPU_PRODUCTS, largest_product, nearest
from worldrl.types import Batch, Context, Noise, Parameters, Transitions

P, S, A, B, LOGGED = 3, 4, 2, 6, 4
NUM_UPDATES = 8
SEEDS = (10, 11, 12)
KINDS = ("td3bc", "prdc", "rebrac")
LOG = converted(log_of(40, S, A), torch.float64)
CONTEXT = Context(LOG)


def learner(kind: str, **changes: Any) -> TD3:
    base = {
        "hidden": (7, 5), "actor_learning_rate": 1e-2, "critic_learning_rate": 3e-2,
        "target_rate": 0.1, "discount": 0.9,
    }  # fmt: skip
    group = group_of(TrainConfig.model_fields["learner"])
    assert group is not None
    built = LEARNERS[kind](group.classes[kind].model_validate(base | changes), S, A, NUM_UPDATES)
    assert isinstance(built, TD3)
    return built


def state_of(td3: TD3, seeds: tuple[int, ...] = SEEDS) -> Any:
    """As later in a run: targets unlike what they follow, and values of some size."""
    state = converted(td3.initialise(seeds, LOG), torch.float64)
    generator = torch.Generator().manual_seed(5)
    for part in "actor", "actor_target", "critic", "target":
        for value in state[part].values():
            value += 0.2 * torch.randn(value.shape[1:], generator=generator, dtype=value.dtype)
    return state


def updates(td3: TD3, count: int) -> list[tuple[Batch, Noise]]:
    """Random batches; the first rows are the log's, last steps of episodes among them."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = []
    for _ in range(count):
        rows = torch.randint(40, (P, LOGGED), generator=generator)
        rows[:, 0], rows[:, 1] = 9, 19  # a timeout, an end
        rest = B - LOGGED
        imagined = (
            normal(P, rest, S), normal(P, rest, A).tanh(), normal(P, rest), normal(P, rest, S),
            (torch.rand(P, rest, generator=generator) < 0.5).double(),
        )  # fmt: skip
        joined = [
            torch.cat([logged[rows], other], 1)
            for logged, other in zip(LOG.transitions, imagined, strict=True)
        ]
        drawn = [td3.noise(generator, 1, B) for _ in range(P)]
        noise = {name: torch.cat([one[name] for one in drawn]).double() for name in drawn[0]}
        noise["target"] *= 3  # so that some are clipped
        found.append((Batch(*joined, rows), noise))
    return found


class Reference:
    """One member, trained by torch.autograd and torch.optim.Adam; rows and critics in loops."""

    def __init__(self, td3: TD3, state: Any, member: int) -> None:
        self.settings, self.member = td3.settings, member
        count = state["critic"]["weight.0"].shape[1]

        def leaves(parameters: Parameters, *index: int) -> Parameters:
            return {k: v[index].clone().requires_grad_() for k, v in parameters.items()}

        self.actor = leaves(state["actor"], member)
        self.actor_target = leaves(state["actor_target"], member)
        self.critics = [leaves(state["critic"], member, m) for m in range(count)]
        self.targets = [leaves(state["target"], member, m) for m in range(count)]
        own = td3.settings
        self.actor_adam = torch.optim.Adam(self.actor.values(), own.actor_learning_rate)
        everything = [value for critic in self.critics for value in critic.values()]
        self.critic_adam = torch.optim.Adam(everything, own.critic_learning_rate)
        self.updates = 0
        states = LOG.transitions.observation
        self.mean, self.scale = states.mean(0), states.std(0, correction=0) + 1e-3

    def seen(self, observation: Tensor) -> Tensor:
        if not self.settings.standardize:
            return observation
        return (observation - self.mean) / self.scale

    def network(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        layers = sum(name.startswith("weight") for name in parameters)
        for layer in range(layers):
            inputs = inputs @ parameters[f"weight.{layer}"] + parameters[f"bias.{layer}"][0]
            if layer == layers - 1:
                break
            if f"scale.{layer}" in parameters:
                inputs = self.normalised(parameters, inputs, "", layer)
            inputs = inputs.relu()
            if f"scale_after.{layer}" in parameters:
                inputs = self.normalised(parameters, inputs, "_after", layer)
        return inputs

    @staticmethod
    def normalised(parameters: Parameters, inputs: Tensor, place: str, layer: int) -> Tensor:
        scale, shift = (parameters[f"{name}{place}.{layer}"][0] for name in ("scale", "shift"))
        return F.layer_norm(inputs, (len(inputs),), scale, shift)

    def act(self, actor: Parameters, observation: Tensor) -> Tensor:
        return self.network(actor, self.seen(observation)).tanh()

    def value(self, critics: list[Parameters], observation: Tensor, action: Tensor) -> Tensor:
        joined = torch.cat([self.seen(observation), action])
        return torch.stack([self.network(critic, joined).squeeze() for critic in critics]).min()

    def backup(self, batch: Batch, noise: Noise, row: int) -> Tensor:
        own, member = self.settings, self.member
        following = batch.next_observation[member, row]
        smoothing = own.target_noise * noise["target"][member, row]
        limit = own.target_noise_clip
        action = self.act(self.actor_target, following) + smoothing.clamp(-limit, limit)
        action = action.clamp(-1, 1)
        value = self.value(self.targets, following, action)
        if own.kind == "rebrac" and row < LOGGED:
            number = int(batch.logged[member, row])
            if number % 10 != 9:  # else it is the last of its episode
                taken = LOG.transitions.action[number + 1]
                value = value - own.critic_bc_weight * ((action - taken) ** 2).sum()
        go_on = 1 - batch.terminated[member, row]
        return batch.reward[member, row] + own.discount * go_on * value

    def wanted(self, batch: Batch, noise: Noise, row: int, action: Tensor) -> Tensor:
        """The action that PRDC's actor is drawn to."""
        own, logged = self.settings, LOG.transitions
        rows = list(range(40))
        if own.candidates is not None:
            step = -(-40 // own.candidates)
            rows = rows[int(noise["uniform"][self.member, 0] * step) :: step]
        if row < LOGGED:
            rows.append(int(batch.logged[self.member, row]))
        here = self.seen(batch.observation[self.member, row])
        distances = [
            own.observation_weight**2 * ((self.seen(logged.observation[n]) - here) ** 2).sum()
            + ((logged.action[n] - action) ** 2).sum()
            for n in rows
        ]
        return logged.action[rows[int(torch.stack(distances).argmin())]]

    def actor_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, float]:
        own, member = self.settings, self.member
        distances, values, errors = [], [], []
        for row in range(B):
            observation, taken = batch.observation[member, row], batch.action[member, row]
            action = self.act(self.actor, observation)
            heard = self.critics if own.kind == "rebrac" else self.critics[:1]
            values.append(self.value(heard, observation, action))
            errors.append(((action - taken) ** 2).mean().item())
            if own.kind == "rebrac":
                distances.append(own.actor_bc_weight * ((action - taken) ** 2).sum())
            elif own.kind == "prdc":
                taken = self.wanted(batch, noise, row, action.detach())
                distances.append(((action - taken) ** 2).mean())
            else:
                distances.append(((action - taken) ** 2).mean())
        size = sum(abs(value.item()) for value in values) / B
        weight = (1.0 if own.kind == "rebrac" else own.alpha) / size
        loss = torch.stack(distances).mean() - weight * torch.stack(values).mean()
        return loss, sum(errors) / B

    def update(self, batch: Batch, noise: Noise) -> dict[str, float]:
        own, member = self.settings, self.member
        with torch.no_grad():
            backups = torch.stack([self.backup(batch, noise, row) for row in range(B)])
        loss, values = torch.zeros(()).double(), []
        for critic in self.critics:
            for row in range(B):
                value = self.value(
                    [critic], batch.observation[member, row], batch.action[member, row]
                )
                loss = loss + (value - backups[row]) ** 2 / B
                values.append(value.item())
        self.critic_adam.zero_grad()
        loss.backward()
        self.critic_adam.step()
        metrics = {
            "critic_loss": loss.item(),
            "value_mean": sum(values) / len(values),
            "backup_mean": backups.mean().item(),
        }
        self.updates += 1
        if self.updates % 2:
            return metrics
        actor_loss, error = self.actor_loss(batch, noise)
        self.actor_adam.zero_grad()
        actor_loss.backward()
        if own.actor_schedule == "cosine":
            share = 0.5 * (1 + math.cos(math.pi * (self.updates - 2) / NUM_UPDATES))
            self.actor_adam.param_groups[0]["lr"] = own.actor_learning_rate * share
        self.actor_adam.step()
        with torch.no_grad():
            for online, target in self.networks():
                for name, value in target.items():
                    value.mul_(1 - own.target_rate).add_(own.target_rate * online[name])
        return metrics | {"actor_loss": actor_loss.item(), "action_error": error}

    def networks(self) -> list[tuple[Parameters, Parameters]]:
        pairs = zip(self.critics, self.targets, strict=True)
        return [(self.actor, self.actor_target), *pairs]


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "td3bc": ("td3bc", {}),
    "td3bc, other weights": ("td3bc", {"alpha": 0.7, "target_noise": 0.5, "standardize": False}),
    "td3bc, falling rate": ("td3bc", {"actor_schedule": "cosine"}),
    "td3bc, three critics": ("td3bc", {"num_critics": 3}),
    "prdc": ("prdc", {}),
    "prdc, other weights": ("prdc", {"alpha": 4.0, "observation_weight": 0.1}),
    "prdc, few candidates": ("prdc", {"candidates": 9, "observation_weight": 0.5}),
    "rebrac": ("rebrac", {}),
    "rebrac, heavy": ("rebrac", {"actor_bc_weight": 0.5, "critic_bc_weight": 0.3}),
    "rebrac, norm before": ("rebrac", {"layer_norm_place": "before", "standardize": True}),
    "rebrac, no clipping": ("rebrac", {"target_noise_clip": 9.0, "critic_bc_weight": 0.2}),
}


@pytest.mark.parametrize(("kind", "changes"), VARIANTS.values(), ids=VARIANTS)
def test_six_updates_equal_the_reference(kind: str, changes: dict[str, Any]) -> None:
    td3 = learner(kind, **changes)
    state = state_of(td3)
    references = [Reference(td3, state, member) for member in range(P)]
    for number, (batch, noise) in enumerate(updates(td3, 6)):
        metrics = td3.update(state, batch, noise, CONTEXT, number % 2)
        for reference in references:
            wanted = reference.update(batch, noise)
            found = {name: value[reference.member].item() for name, value in metrics.items()}
            assert found == pytest.approx(wanted, rel=1e-8, abs=1e-9)
    for reference in references:
        _assert_equals(state, reference)


def _assert_equals(state: Any, reference: Reference) -> None:
    member = reference.member

    def same(found: Tensor, wanted: Tensor) -> None:
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-8, atol=1e-9)

    for name, value in reference.actor.items():
        same(state["actor"][name][member], value)
        same(state["actor_target"][name][member], reference.actor_target[name])
        # Adam's steps hide the size of a loss; its moments show it.
        moments = reference.actor_adam.state[value]
        same(state["actor_adam"].first[name][member], moments["exp_avg"])
        same(state["actor_adam"].second[name][member], moments["exp_avg_sq"])
    for number, critic in enumerate(reference.critics):
        for name, value in critic.items():
            same(state["critic"][name][member, number], value)
            same(state["target"][name][member, number], reference.targets[number][name])
            moments = reference.critic_adam.state[value]
            same(state["critic_adam"].first[name][member, number], moments["exp_avg"])
            same(state["critic_adam"].second[name][member, number], moments["exp_avg_sq"])


# -- what each phase does -------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_phase_moves_the_critics_alone(kind: str) -> None:
    td3 = learner(kind)
    state = state_of(td3)
    before = copy.deepcopy(state)
    [(batch, noise)] = updates(td3, 1)
    td3.update(state, batch, noise, CONTEXT, 0)
    for part in "actor", "actor_target", "target":
        for name, value in before[part].items():
            assert state[part][name].equal(value)
    assert not state["critic"]["weight.0"].equal(before["critic"]["weight.0"])
    assert not state["actor_adam"].steps.any()


@pytest.mark.parametrize("kind", KINDS)
def test_targets_start_as_copies(kind: str) -> None:
    state = learner(kind).initialise(SEEDS, LOG)
    for online, target in ("actor", "actor_target"), ("critic", "target"):
        for name, value in state[online].items():
            assert state[target][name].equal(value)
            assert state[target][name].data_ptr() != value.data_ptr()


def test_the_layer_normalisation_of_rebrac_is_the_critics_and_stands_after() -> None:
    state = learner("rebrac").initialise(SEEDS, LOG)
    norms = {name for name in state["critic"] if name.startswith(("scale", "shift"))}
    assert norms == {"scale_after.0", "shift_after.0", "scale_after.1", "shift_after.1"}
    assert not [name for name in state["actor"] if name.startswith(("scale", "shift"))]
    assert (state["actor"]["bias.0"] == 0.1).all()
    assert state["actor"]["weight.2"].abs().max() <= 1e-3
    assert state["critic"]["weight.2"].abs().max() <= 3e-3


def test_a_place_without_a_layer_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="there is none to place"):
        learner("td3bc", layer_norm_place="after")
    learner("td3bc", layer_norm=True, layer_norm_place="after")
    learner("rebrac", layer_norm=False)


# -- the policy ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_exploration_is_noise_around_the_policy(kind: str) -> None:
    td3 = learner(kind, exploration=0.3)
    policy = td3.policy_parameters(state_of(td3))
    observation, noise = torch.randn(P, B, S).double(), torch.randn(P, B, A).double()
    action = td3.act(policy, observation, None)
    explored = td3.act(policy, observation, noise)
    assert explored.equal((action + 0.3 * noise).clamp(-1, 1))
    assert td3.act(policy, observation, 100 * noise).abs().max() == 1


# -- settings ------------------------------------------------------------------------------

OWN: dict[str, dict[str, tuple[float, ...]]] = {
    "td3bc": {"alpha": (1.0, 2.5, 0.3)},
    "prdc": {"alpha": (1.0, 2.5, 0.3), "observation_weight": (0.2, 1.0, 3.0)},
    "rebrac": {"actor_bc_weight": (0.5, 0.0, 0.1), "critic_bc_weight": (0.0, 0.2, 0.5)},
}
SHARED = {
    "discount": (0.9, 0.5, 0.99),
    "actor_learning_rate": (1e-2, 3e-2, 1e-3),
    "critic_learning_rate": (3e-2, 1e-3, 1e-2),
    "target_rate": (0.1, 0.5, 0.01),
    "target_noise": (0.2, 0.0, 0.7),
    "target_noise_clip": (0.5, 1.0, 0.1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_members_with_settings_of_their_own_are_what_they_are_alone(kind: str) -> None:
    """In float64, to 1e-9; and every one of them makes a difference."""
    own = SHARED | OWN[kind]
    whole = learner(kind, **own)
    state, steps = state_of(whole), updates(whole, 4)

    def run(td3: TD3, state: Any, member: int | None) -> Any:
        for number, update in enumerate(steps):
            if member is not None:
                update = of_member(update[0], member), of_member(update[1], member)
            td3.update(state, *update, CONTEXT, number % 2)
        return state

    run(whole, state, None)
    for member, seed in enumerate(SEEDS):
        values = {name: given[member] for name, given in own.items()}
        alone = learner(kind, **values)
        single = run(alone, state_of(alone, (seed,)), member)
        for part in "actor", "critic", "target", "actor_target":
            for name, value in single[part].items():
                torch.testing.assert_close(state[part][name][member], value[0], rtol=0, atol=1e-9)
    for name, given in own.items():
        changed = learner(kind, **(own | {name: given[::-1]}))
        other = run(changed, state_of(changed), None)
        assert not other["critic"]["bias.1"].equal(state["critic"]["bias.1"]), name


# -- the search ----------------------------------------------------------------------------


def test_the_nearest_point_is_the_nearest() -> None:
    """In several pieces, the last one short."""
    generator = torch.Generator().manual_seed(0)
    here = torch.randn(2, 300, 5, generator=generator, dtype=torch.float64)
    rows = 2 * (CPU_PRODUCTS // 600) + 17
    points = torch.randn(2, rows, 5, generator=generator, dtype=torch.float64) + 3
    found = nearest(here, points)
    wanted = torch.cdist(here, points, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)
    assert found.equal(wanted)
    assert found.max() > CPU_PRODUCTS // 600  # beyond the first piece
    again = nearest(points[:, -1:], points)
    assert again.tolist() == [[rows - 1]] * 2


def test_the_search_is_an_operation_that_can_be_traced() -> None:
    left, right = torch.randn(2, 3, 4), torch.randn(2, 9, 4)
    torch.library.opcheck(largest_product, (left, right))


def test_the_search_ignores_half_precision() -> None:
    points = torch.tensor([[[1000.0], [1001.0], [1002.0]]])
    with torch.autocast("cpu", torch.bfloat16):
        assert nearest(torch.tensor([[[1001.1]]]), points).item() == 1


# -- learning ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_learns_a_bandit(kind: str) -> None:
    """Reward 1 - |a - (0.4, -0.6)|^2, logged by a uniform policy, whose mean action earns 0.48."""
    generator = torch.Generator().manual_seed(0)
    best = torch.tensor([0.4, -0.6])
    action = 2 * torch.rand(500, A, generator=generator) - 1
    observation, one = torch.ones(500, S), torch.ones(500)
    reward = 1 - (action - best).square().sum(-1)
    log = log_of(500, S, A)
    log = log._replace(transitions=Transitions(observation, action, reward, observation, one))
    rates = {"actor_learning_rate": 2e-3, "critic_learning_rate": 1e-2}
    td3 = learner(kind, hidden=(32,), standardize=False, layer_norm=False, **rates)
    state = td3.initialise((0, 1), log)
    for number in range(600):
        chosen = torch.randint(500, (2, 64), generator=generator)
        drawn = [td3.noise(generator, 1, 64) for _ in range(2)]
        noise = {name: torch.cat([draw[name] for draw in drawn]) for name in drawn[0]}
        batch = Batch(*(value[chosen] for value in log.transitions), chosen)
        td3.update(state, batch, noise, Context(log), number % 2)
    found = td3.act(td3.policy_parameters(state), torch.ones(2, 1, S), None)[:, 0]
    assert (1 - (found - best).square().sum(-1) > 0.85).all(), found
