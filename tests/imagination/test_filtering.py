"""The filter against one row at a time, in a world that is easy to follow."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from worldrl.config.filters import DynamicsRewardFilter
from worldrl.errors import ConfigError
from worldrl.imagination import rollout
from worldrl.imagination.filtering import chosen, most_plausible, networks_asked, world_to_filter
from worldrl.imagination.health import RolloutHealth
from worldrl.imagination.penalties import PENALTIES
from worldrl.imagination.rollout import Rollouts, imagine, observation_bounds
from worldrl.imagination.step import Draws, LoggedRange, Pessimism, imagined_step
from worldrl.models.dynamics_reward import DynamicsReward, dynamics_reward
from worldrl.models.ensemble import Ensemble, Standardizer, init_ensemble
from worldrl.models.world import World
from worldrl.random import generator
from worldrl.rows import row_width, unpack
from worldrl.training.compilation import compiled, compiler_available
from worldrl.types import Parameters, Transitions

S, A, N, E, K = 3, 2, 4, 3, 4
SEEDS = (20, 21, 22)
CPU = torch.device("cpu")
STARTS = torch.randn(40, S, generator=torch.Generator().manual_seed(0))
LOGGED = LoggedRange(
    STARTS.amin(0), STARTS.amax(0), torch.ones(S + 1), torch.tensor(-9.0), torch.tensor(9.0)
)


def act(policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
    assert noise is not None
    return (policy["gain"] * observation[..., :A] + noise).tanh()


def ends(terminator: Parameters, observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    return following[..., 0] > terminator["limit"]


def world_of(seeds: tuple[int, ...], limit: float = 1.5) -> World:
    """Untrained members with a spread, and a reward that prefers small changes, each snapshot on a
    scale of its own."""
    count = len(seeds)
    parameters = init_ensemble([generator(seed, "init") for seed in seeds], S, A, (8,), N)
    parameters["max_log_variance"] -= 2
    elites = torch.stack([torch.randperm(N, generator=generator(seed, "e"))[:E] for seed in seeds])
    width = 2 * S + A
    first = torch.zeros(count, K, width, 2 * S)
    for dimension in range(S):  # relu(x) + relu(-x) is the size of a change
        first[..., S + A + dimension, 2 * dimension] = 1.0
        first[..., S + A + dimension, 2 * dimension + 1] = -1.0
    scale = torch.arange(1, K + 1).view(1, K, 1, 1).expand(count, -1, 2 * S, 1).float()
    discriminator = {
        "weight.0": first, "bias.0": torch.zeros(count, K, 1, 2 * S),
        "weight.1": -scale.clone(), "bias.1": torch.full((count, K, 1, 1), 2.0),
    }  # fmt: skip
    inputs = Standardizer(torch.zeros(count, width), torch.ones(count, width))
    said = torch.ones(count, K)
    return World(
        Ensemble(
            parameters,
            Standardizer(torch.zeros(count, S + A), torch.ones(count, S + A)),
            Standardizer(torch.zeros(count, S + 1), torch.ones(count, S + 1)),
            elites,
        ),
        {"limit": torch.full((count, 1), limit)},
        DynamicsReward(discriminator, inputs, 2 * said, -3 * said),
    )


def pessimism(count: int) -> Pessimism:
    one = torch.ones(count)
    return Pessimism(0.5 * one, 2 * one, math.inf * one, 0 * one)


def settings(**changes: Any) -> DynamicsRewardFilter:
    return DynamicsRewardFilter.model_validate(changes)


def roll(
    filtering: DynamicsRewardFilter,
    seeds: tuple[int, ...] = SEEDS,
    horizon: int = 4,
    penalty: str = "ensemble_std",
    limit: float = 1.5,
    compile_step: bool = False,
) -> tuple[list[Tensor], RolloutHealth]:
    world = world_to_filter(filtering, world_of(seeds, limit), penalty != "none")
    step = imagined_step(
        act, PENALTIES[penalty], ends, None, most_plausible(filtering),
        filtering.on_filter == "terminal",
    )  # fmt: skip
    candidates = filtering.samples_per_elite * E
    rollouts = Rollouts(
        compiled(step, compile_step, CPU), world, STARTS, seeds, 23, [horizon] * len(seeds),
        pessimism(len(seeds)), observation_bounds(STARTS, 0.5), LOGGED,
        keep_stopped=filtering.on_filter != "drop", candidates=candidates,
        networks=networks_asked(world, candidates),
    )  # fmt: skip
    slot = torch.full((len(seeds), 23 * horizon, row_width(S, A)), math.nan)
    count, health = imagine(rollouts, slot, 0, {"gain": torch.full((len(seeds), 1, 1), 0.3)})
    return [own[:n] for own, n in zip(slot, count.tolist(), strict=True)], health


def simulate(
    filtering: DynamicsRewardFilter, member: int, horizon: int, penalty: str
) -> tuple[list[list[float]], int, list[float]]:
    """Rows, stops and dynamics rewards of one member, a row at a time."""
    seed = SEEDS[member]
    world, limits = world_of((seed,)), pessimism(1)
    bounds = observation_bounds(STARTS, 0.5)
    count = filtering.samples_per_elite * E
    elites = world.ensemble.elites[0].tolist()
    assert world.reward is not None

    def stream(name: str) -> torch.Generator:
        return generator(seed, f"rollout.{name}", 0)

    live = list(STARTS[torch.randint(len(STARTS), (23,), generator=stream("start"))])
    rows, stops, rewards = [], 0, []
    for depth in range(horizon):
        for_action = torch.randn(23, A, generator=stream(f"action.{depth}"))
        for_model = torch.randn(23, count, S + 1, generator=stream(f"model.{depth}"))
        uniform = torch.rand(23, generator=stream(f"choice.{depth}"))
        survivors = []
        for place, observation in enumerate(live):
            row = observation.view(1, 1, S)
            action = act({"gain": torch.tensor(0.3)}, row, for_action[place].view(1, 1, A))
            prediction = world.ensemble.predict(row, action)
            made, plausible = [], []
            for number in range(count):
                elite = elites[number // filtering.samples_per_elite]
                mean, std = (value[0, elite, 0] for value in prediction)
                sample = mean + std * for_model[place, number]
                box = sample[:S].clamp(bounds.low, bounds.high).view(1, 1, 1, S)
                made.append(sample)
                plausible.append(float(dynamics_reward(world.reward, row, action, box)))
            if filtering.selector == "argmax":
                taken = max(range(count), key=plausible.__getitem__)
            else:
                weights = [math.exp(value / filtering.temperature) for value in plausible]
                taken, left = 0, float(uniform[place]) * sum(weights)
                while left >= weights[taken]:
                    left -= weights[taken]
                    taken += 1
            sample = made[taken]
            following = sample[:S].clamp(bounds.low, bounds.high)
            terminated = bool(following[0] > 1.5)
            stopped = not terminated and plausible[taken] < filtering.limit
            stops += stopped
            rewards.append(plausible[taken])
            if stopped and filtering.on_filter == "drop":
                continue
            if penalty == "none":
                cost = 0.0
            else:
                mean, std = prediction
                spread = std.square().mean(1) + mean.var(1, correction=0)
                cost = float(spread.sum(-1).sqrt() / limits.scale[0] * limits.weight[0])
            done = terminated or (stopped and filtering.on_filter == "terminal")
            rows.append([
                *observation.tolist(), *action[0, 0].tolist(), float(sample[S]) - cost,
                *following.tolist(), float(done),
            ])  # fmt: skip
            if not terminated and not stopped:
                survivors.append(following)
        live = survivors
    return rows, stops, rewards


@pytest.mark.parametrize("penalty", ["ensemble_std", "none"])
@pytest.mark.parametrize("selector", ["softmax", "argmax"])
@pytest.mark.parametrize("on_filter", ["terminal", "truncate", "drop"])
def test_members_are_what_one_row_at_a_time_gives(monkeypatch, on_filter, selector, penalty):
    monkeypatch.setattr(rollout, "CPU_CHUNK", 13)
    filtering = settings(on_filter=on_filter, selector=selector, limit=0.9)
    found, health = roll(filtering, penalty=penalty)
    for member, own in enumerate(found):
        rows, stops, rewards = simulate(filtering, member, 4, penalty)
        wanted = torch.tensor(sorted(rows))
        torch.testing.assert_close(ordered(own), wanted, rtol=1e-4, atol=1e-4)
        assert 0 < stops < len(rewards)
        assert health.stopped_share[member].item() == pytest.approx(stops / len(rewards))
        assert health.dynamics_reward_mean is not None
        mean = sum(rewards) / len(rewards)
        assert health.dynamics_reward_mean[member].item() == pytest.approx(mean, rel=1e-4)


def test_what_becomes_of_the_step_at_which_a_rollout_stops():
    """One step without a rule for ends: the filter alone decides."""
    free, _ = roll(settings(limit=0.0), horizon=1, limit=math.inf)
    for on_filter in ("terminal", "truncate", "drop"):
        filtering = settings(on_filter=on_filter, limit=0.9)
        rows, health = roll(filtering, horizon=1, limit=math.inf)
        for member, whole in enumerate(free):
            row = transitions(whole)
            assert row.terminated.sum() == 0
            reward = rewards_of((SEEDS[member],), row)
            low = reward < 0.9
            assert 0 < low.sum() < 23
            share = low.float().mean().item()
            assert health.stopped_share[member].item() == pytest.approx(share)
            found, wanted = ordered(rows[member]), ordered(whole[~low])
            if on_filter != "drop":
                marked = whole.clone()
                marked[:, -1] = low.float() if on_filter == "terminal" else 0.0
                wanted = ordered(marked)
            assert found.equal(wanted)


def rewards_of(seeds: tuple[int, ...], row: Transitions) -> Tensor:
    reward = world_of(seeds).reward
    assert reward is not None
    following = row.next_observation[None, :, None]
    return dynamics_reward(reward, row.observation[None], row.action[None], following)[0, :, 0]


def transitions(rows: Tensor) -> Transitions:
    return unpack(rows, S, A)


def ordered(rows: Tensor) -> Tensor:
    return torch.tensor(sorted(rows.tolist()))


def test_a_stopped_step_is_the_last_of_its_rollout():
    filtering = settings(on_filter="truncate", limit=0.9)
    rows, _ = roll(filtering, limit=math.inf)
    for member, own in enumerate(rows):
        row = transitions(own)
        low = rewards_of((SEEDS[member],), row) < 0.9
        begun = {tuple(one) for one in row.observation.tolist()}
        gone_on = {tuple(one) for one in row.next_observation[low].tolist()} & begun
        assert low.any()
        assert not gone_on


@pytest.mark.parametrize("selector", ["softmax", "argmax"])
def test_what_is_chosen_is_more_plausible_than_what_is_drawn(selector):
    drawn = settings(samples_per_elite=1, limit=0.0, temperature=1e6)
    many = settings(samples_per_elite=4, limit=0.0, selector=selector)
    means = [roll(one, horizon=1)[1].dynamics_reward_mean for one in (drawn, many)]
    assert means[0] is not None
    assert means[1] is not None
    assert (means[1] > means[0] + 0.05).all()


def test_members_of_a_population_equal_their_lone_runs():
    filtering = settings(limit=0.9)
    together, _ = roll(filtering)
    assert len({len(own) for own in together}) > 1
    for member, seed in enumerate(SEEDS):
        alone, _ = roll(filtering, seeds=(seed,))
        torch.testing.assert_close(alone[0], together[member], rtol=1e-5, atol=1e-5)


def test_compiled_equals_eager():
    if not compiler_available(CPU):
        pytest.skip("no C++ compiler")
    filtering = settings(limit=0.9, on_filter="drop")
    eager, fast = (roll(filtering, compile_step=one) for one in (False, True))
    for left, right in zip(eager[0], fast[0], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_candidates_that_are_not_finite_are_never_taken_where_others_are():
    """Every second candidate is ruined; of the last row all are."""
    world, count = world_of((20,)), 2 * E
    observation, action = STARTS[None, :6], torch.zeros(1, 6, A)
    noise = torch.randn(1, 6, count, S + 1, generator=torch.Generator().manual_seed(1))
    noise[:, :, ::2, 0] = math.inf
    noise[:, :, ::4, 1] = math.nan
    noise[:, 5] = math.nan
    bounds = observation_bounds(STARTS, 0.5)
    for selector in "softmax", "argmax":
        for uniform in 0.0, 0.5, 1 - 2**-24:
            draws = Draws(action, torch.zeros(1, 6).long(), noise, torch.full((1, 6), uniform))
            found = most_plausible(settings(selector=selector))(
                world, observation, action, draws, bounds
            )
            assert found.value[0, :5].isfinite().all()
            assert not found.value[0, 5].isfinite().all()
            assert found.stopped is not None
            assert found.stopped[0, 5]


def test_softmax_draws_by_the_exponentials_and_argmax_takes_the_best():
    reward = torch.tensor([0.5, 0.7, -math.inf, 0.6])
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    many = reward.expand(10_000, -1)
    share = torch.bincount(chosen(many, uniform, "softmax", 0.1), minlength=4) / 10_000
    torch.testing.assert_close(share, torch.softmax(reward / 0.1, 0), rtol=0, atol=2e-4)
    assert (chosen(many, uniform, "argmax", 0.1) == 1).all()
    edge = torch.tensor([0.0, 1.0])
    first = torch.tensor([-math.inf, 0.3, 0.4, -math.inf]).expand(2, -1)
    assert chosen(first, edge, "softmax", 0.1).tolist()[0] == 1


def test_the_world_to_filter_in_holds_what_is_asked():
    world = world_of(SEEDS)
    whole = world_to_filter(settings(), world, judged=True)
    assert whole.ensemble.num_members == N
    assert whole.reward is world.reward
    few = world_to_filter(settings(networks=2), world, judged=False)
    assert few.ensemble.num_members == E
    assert few.reward is not None
    assert few.reward.num_snapshots == 2
    assert networks_asked(few, 6) == E + 6 * 2
    with pytest.raises(ConfigError, match=r"networks is 9.*holds 4 snapshots.*Lower it"):
        world_to_filter(settings(networks=9), world, judged=True)
