"""Branched rollouts against a simulation of one row at a time, in a world that is easy to follow.

The toy world is elementwise, so a row's numbers do not depend on the rows around it, and equality
is exact.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor

from worldrl.imagination import rollout
from worldrl.imagination.buffer import SyntheticBuffer
from worldrl.imagination.health import RolloutHealth
from worldrl.imagination.penalties import PENALTIES
from worldrl.imagination.rollout import (
    Rollouts,
    chunk_rows,
    closed_up,
    dealt_out,
    imagine,
    logged_range,
    measured,
    observation_bounds,
    upper_quantile,
)
from worldrl.imagination.step import (
    Bounds,
    LoggedRange,
    Pessimism,
    Propose,
    Stop,
    from_drawn_elite,
    from_own_elite,
    imagined_step,
)
from worldrl.models.ensemble import Ensemble, Standardizer, init_ensemble
from worldrl.models.world import World
from worldrl.random import generator
from worldrl.rows import row_width, unpack
from worldrl.training.compilation import compiled, compiler_available
from worldrl.types import Parameters, Prediction, Sampled, Transitions

S, A, N = 3, 2, 5
SEEDS = (20, 21, 22)
CPU = torch.device("cpu")
LOGGED = LoggedRange(
    torch.tensor([-2.0, -1.0, -3.0]), torch.tensor([5.0, 6.0, 7.0]),
    torch.tensor([1.0, 2.0, 0.5, 9.0]), torch.tensor(-1.0), torch.tensor(320.0),
)  # fmt: skip
FREE = Bounds(torch.full((S,), -math.inf), torch.full((S,), math.inf))


class Toy(NamedTuple):
    """Member n moves observations by ``n``, pays ``100 n`` and has a deviation of its own."""

    elites: Tensor  # (P, E)
    deviation: Tensor  # (P, 1)
    lethal: Tensor  # (P, 1): predictions are NaN where the last observation is below
    numbers: Tensor  # (P, N) of the members

    def of_elites(self) -> Toy:
        kept = self.numbers.gather(1, self.elites)
        return self._replace(elites=torch.arange(kept.shape[1]).expand_as(kept), numbers=kept)

    def predict_each(self, observation: Tensor, action: Tensor) -> Prediction:
        """Of what all members predict for a row, what its own does."""
        rows = observation.shape[2]
        whole = self.predict(observation.flatten(1, 2), action.flatten(1, 2))
        own = torch.arange(len(self.numbers[0])).repeat_interleave(rows).view(1, 1, -1, 1)
        return Prediction(
            *(
                value.gather(1, own.expand(len(value), -1, -1, S + 1)).view(
                    len(value), -1, rows, S + 1
                )
                for value in whole
            )
        )

    def predict(self, observation: Tensor, action: Tensor) -> Prediction:
        member = self.numbers[:, :, None, None].float()
        drift = torch.stack([action[..., 0], action[..., 1], 0.5 * action[..., 0]], -1)
        moved = observation + drift
        reward = 0.25 * observation[..., 0] - action[..., 1]
        mean = torch.cat([moved[:, None] + member, reward[:, None, :, None] + 100 * member], -1)
        ruined = (observation[..., -1] < self.lethal)[:, None, :, None]
        mean = mean.masked_fill(ruined, math.nan)
        scale = torch.tensor([1.0, 0.5, 2.0, 3.0]) * self.deviation[:, None, None]
        return Prediction(mean, (scale * (1 + 0.3 * member)).expand(mean.shape))


class Setting(NamedTuple):
    """What a rollout depends on besides its numbers."""

    world: World
    policy: Parameters
    starts: Tensor
    pessimism: Pessimism
    bounds: Bounds
    logged: LoggedRange
    stop: Stop | None = None


def act(policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
    assert noise is not None
    return policy["gain"] * observation[..., :A] + noise


def ends(terminator: Parameters, observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    return following[..., 0] > terminator["limit"]


def penalty(sampled: Sampled) -> Tensor:
    """Of a row: depends on its prediction, and is unlike its reward."""
    mean, std = sampled.prediction
    return mean[:, 0, :, 0].abs() + std[:, 0, :, 0]


def measure(sampled: Sampled) -> Tensor:
    """What stops look at: unlike the penalty."""
    return sampled.prediction.mean[:, 0, :, 1].abs()


def sampled_of(prediction: Prediction) -> Sampled:
    """For a penalty that does not look at the sample."""
    mean = prediction.mean[:, 0]
    member = torch.zeros(mean.shape[:2], dtype=torch.int64)
    return Sampled(prediction, member, mean, LOGGED.spread)


def setting(**changes: Any) -> Setting:
    """Three members that end at different rates; changes are lists of one value a member."""
    members = len(SEEDS)
    values = {
        "elites": [[0, 2, 3], [4, 1, 0], [2, 3, 1]],
        "deviation": [0.1, 0.2, 0.3],
        "lethal": [-math.inf] * members,
        "gain": [0.1, -0.2, 0.05],
        "limit": [4.0, 8.0, 6.0],
        "weight": [1.0, 0.5, 2.0],
        "scale": [1.0, 4.0, 0.5],
        "stop_limit": [2.0, 1.0, 1.5],
        "floor": [-5.0, -6.0, -7.0],
    } | changes  # fmt: skip

    def column(name: str, *shape: int) -> Tensor:
        return torch.tensor(values[name]).view(members, *shape)

    toy = Toy(
        torch.tensor(values["elites"]),
        column("deviation", 1),
        column("lethal", 1),
        torch.arange(N).expand(members, -1),
    )
    return Setting(
        World(toy, {"limit": column("limit", 1)}),  # type: ignore[arg-type]
        {"gain": column("gain", 1, 1)},
        torch.randn(40, S, generator=torch.Generator().manual_seed(0)),
        Pessimism(*(column(name) for name in ("weight", "scale", "stop_limit", "floor"))),
        FREE,
        LOGGED,
    )


def of_member(given: Setting, member: int) -> Setting:
    own = slice(member, member + 1)
    toy: Any = given.world.ensemble
    return Setting(
        World(Toy(*(v[own] for v in toy)), {k: v[own] for k, v in given.world.terminator.items()}),  # type: ignore[arg-type]
        {name: value[own] for name, value in given.policy.items()},
        given.starts,
        Pessimism(*(value[own] for value in given.pessimism)),
        given.bounds,
        given.logged,
        given.stop,
    )


def proposal(grouped: bool) -> Propose:
    return from_own_elite if grouped else from_drawn_elite


def roll(
    given: Setting,
    batch_size: int = 23,
    horizon: int | tuple[int, ...] = 4,
    refresh: int = 0,
    seeds: tuple[int, ...] = SEEDS,
    buffer: SyntheticBuffer | None = None,
    grouped: bool = False,
    elite: Literal["per_step", "per_rollout"] = "per_step",
    steps_left: Tensor | None = None,
) -> tuple[list[Tensor], RolloutHealth]:
    """Each member's rows in the order written, and what the refresh tells."""
    horizons = horizon if isinstance(horizon, tuple) else (horizon,) * len(seeds)
    if buffer is None:
        width = row_width(S, A)
        buffer = SyntheticBuffer(len(seeds), 2, batch_size * max(horizons), width, CPU)
        buffer.rows.fill_(math.nan)
    step = imagined_step(act, penalty, ends, given.stop, proposal(grouped))
    keep_stopped = given.stop is None or given.stop.kind != "drop"
    rollouts = Rollouts(
        step, given.world, given.starts, seeds, batch_size, horizons, given.pessimism,
        given.bounds, given.logged, keep_stopped, steps_left, elite, grouped,
    )  # fmt: skip
    count, health = imagine(rollouts, buffer.slot(refresh), refresh, given.policy)
    buffer.set_count(refresh, count)
    counts = buffer.counts[:, refresh % buffer.retain].tolist()
    slot = buffer.slot(refresh)
    return [slot[member, :count].clone() for member, count in enumerate(counts)], health


def told(health: RolloutHealth) -> dict[str, Tensor]:
    """What is known."""
    return {name: value for name, value in health._asdict().items() if value is not None}


class Simulated(NamedTuple):
    rows: list[tuple[float, ...]]
    lengths: list[int]  # of every trajectory
    rewards: list[float]  # before the penalty
    penalties: list[float]
    disagreements: list[float]
    dropped: int
    clipped: int
    outside: int
    stopped: int


def simulate(
    given: Setting, member: int, batch_size: int = 23, horizon: int = 4, refresh: int = 0
) -> Simulated:
    """What the rollouts of one member should be, a row at a time."""
    world, policy, starts, pessimism, bounds, logged, stop = of_member(given, member)
    seed = SEEDS[member]

    def stream(name: str) -> torch.Generator:
        return generator(seed, f"rollout.{name}", refresh)

    toy = world.ensemble
    picked = torch.randint(len(starts), (batch_size,), generator=stream("start"))
    live = [(starts[number], trajectory) for trajectory, number in enumerate(picked.tolist())]
    found = Simulated([], [0] * batch_size, [], [], [], 0, 0, 0, 0)
    dropped = clipped = outside = stops = 0
    for depth in range(horizon):
        for_action = torch.randn(batch_size, A, generator=stream(f"action.{depth}"))
        for_model = torch.randn(batch_size, S + 1, generator=stream(f"model.{depth}"))
        choice = torch.randint(
            toy.elites.shape[1], (batch_size,), generator=stream(f"elite.{depth}")
        )
        survivors = []
        for position, (observation, trajectory) in enumerate(live):
            row = observation.view(1, 1, S)
            action = act(policy, row, for_action[position].view(1, 1, A))
            prediction = toy.predict(row, action)
            elite = int(toy.elites[0, choice[position]])
            sample = (
                prediction.mean[0, elite, 0] + prediction.std[0, elite, 0] * for_model[position]
            )
            following = torch.minimum(torch.maximum(sample[:S], bounds.low), bounds.high)
            uncertainty = penalty(sampled_of(prediction))[0, 0] / pessimism.scale[0]
            reward = sample[S] - pessimism.weight[0] * uncertainty
            terminated = bool(following[0] > world.terminator["limit"][0, 0])
            if not sample.isfinite().all():
                dropped += 1
                continue
            stopped = (
                stop is not None
                and not terminated
                and bool(measure(sampled_of(prediction))[0, 0] > pessimism.limit[0])
            )
            stops += stopped
            if stopped and stop is not None and stop.kind == "drop":
                continue
            if stopped and stop is not None and stop.kind in ("terminal", "absorb"):
                terminated = True
                reward = pessimism.floor[0] if stop.kind == "absorb" else reward
            clipped += not following.equal(sample[:S])
            within = (sample[:S] >= logged.low).all() and (sample[:S] <= logged.high).all()
            paid = logged.reward_low <= sample[S] <= logged.reward_high
            outside += not (within and paid)
            deviation = prediction.mean[0, :, 0, :S].std(0, correction=0) / logged.spread[:S]
            found.disagreements.append(float(deviation.square().mean().sqrt()))
            values = [*observation, *action[0, 0], reward, *following, float(terminated)]
            found.rows.append(tuple(float(value) for value in values))
            found.rewards.append(float(sample[S]))
            found.penalties.append(float(uncertainty))
            found.lengths[trajectory] += 1
            if not terminated and not stopped:
                survivors.append((following, trajectory))
        live = survivors
    return found._replace(dropped=dropped, clipped=clipped, outside=outside, stopped=stops)


def as_set(rows: Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for row in rows.tolist())


def transitions(rows: Tensor) -> Transitions:
    return unpack(rows, S, A)


def split_reward(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The members that the next observation and the reward came from, without noise."""
    batch = transitions(rows)
    drift = torch.stack([batch.action[:, 0], batch.action[:, 1], 0.5 * batch.action[:, 0]], 1)
    moved = batch.next_observation - batch.observation - drift
    paid = batch.reward - 0.25 * batch.observation[:, 0] + batch.action[:, 1]
    return moved, paid / 100


# -- everything at once --------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 8, 21, 2048])
@pytest.mark.parametrize("horizon", [1, 4])
@pytest.mark.parametrize("refresh", [0, 3])
@pytest.mark.parametrize("stop", ["none", "truncate", "drop", "terminal", "absorb"])
def test_members_are_what_one_row_at_a_time_gives(monkeypatch, chunk, horizon, refresh, stop):
    monkeypatch.setattr(rollout, "CPU_CHUNK", chunk)
    given = setting(lethal=[-math.inf, -1.5, -2.0])
    if stop != "none":
        given = given._replace(stop=Stop(stop, measure))
    given = given._replace(bounds=Bounds(torch.full((S,), -2.0), torch.tensor([9.0, 6.0, 7.0])))
    rows, health = roll(given, horizon=horizon, refresh=refresh)
    for member in range(len(SEEDS)):
        wanted = simulate(given, member, horizon=horizon, refresh=refresh)
        assert as_set(rows[member]) == sorted(wanted.rows)
        count = len(wanted.rows)
        own = {name: value[member].item() for name, value in told(health).items()}
        ended = sum(row[-1] for row in wanted.rows)
        assert own == pytest.approx(
            {
                "rows": count,
                "penalty_mean": sum(wanted.penalties) / count,
                "penalty_max": max(wanted.penalties),
                "reward_min": min(wanted.rewards),
                "reward_max": max(wanted.rewards),
                "reward_mean": sum(wanted.rewards) / count,
                "disagreement_mean": sum(wanted.disagreements) / count,
                "outside_share": wanted.outside / count,
                "stopped_share": wanted.stopped / (count + wanted.stopped * (stop == "drop")),
                "clipped_share": wanted.clipped / count,
                "terminated_share": ended / count,
                "nonfinite": wanted.dropped,
            },
            rel=1e-5,
        )
    if horizon == 4:  # the case is as hard as it should be
        simulated = [simulate(given, member, refresh=refresh) for member in range(3)]
        assert len({len(own.rows) for own in simulated}) > 1
        assert len(set().union(*(own.lengths for own in simulated))) > (1 if stop == "drop" else 2)
        assert simulated[1].dropped > 0
        if stop in ("none", "truncate"):
            assert all(own.clipped > 0 and own.outside > 0 for own in simulated)
        assert all((own.stopped > 0) == (stop != "none") for own in simulated)


def test_members_of_a_population_equal_their_lone_runs():
    given = setting()
    together, health = roll(given)
    for member, seed in enumerate(SEEDS):
        alone, own = roll(of_member(given, member), seeds=(seed,))
        assert alone[0].equal(together[member])
        for name, value in told(own).items():
            assert value[0].item() == pytest.approx(getattr(health, name)[member].item(), rel=1e-5)


def test_another_member_changes_nothing():
    """Neither its policy nor how long its rows live."""
    before, _ = roll(setting())
    after, _ = roll(setting(gain=[0.1, -0.2, 3.0], limit=[4.0, 8.0, -99.0], scale=[1, 4.0, 9.0]))
    assert before[0].equal(after[0])
    assert before[1].equal(after[1])
    assert len(before[2]) != len(after[2])


# -- the draws -----------------------------------------------------------------------------


def test_a_row_takes_observation_and_reward_from_one_elite_drawn_anew_each_step():
    given = setting(deviation=[0.0] * 3, weight=[0.0] * 3, limit=[math.inf] * 3)
    rows, _ = roll(given, batch_size=600, horizon=3)
    for member in range(3):
        moved, paid = split_reward(rows[member])
        torch.testing.assert_close(moved, paid[:, None].expand(-1, S), atol=2e-4, rtol=0)
        elite = paid.round().long()
        elites = given.world.ensemble.elites[member].tolist()
        share = torch.bincount(elite, minlength=N) / len(elite)
        for number in range(N):
            assert share[number].item() == pytest.approx((number in elites) / 3, abs=0.05)
        steps = elite.view(3, 600)  # nobody ends, so rows keep their places
        agree = (steps[0] == steps[1]).float().mean().item()
        assert agree == pytest.approx(1 / 3, abs=0.08)


def test_starts_are_uniform_over_the_logged_states():
    given = setting()
    rows, _ = roll(given, batch_size=4000, horizon=1)
    observation = transitions(rows[0]).observation
    counts = (observation[:, None] == given.starts).all(-1).sum(0)
    assert counts.sum() == 4000
    assert (counts - 100).abs().max() < 50


def test_members_refreshes_and_steps_have_their_own_noise():
    given = setting(**{name: [0.1] * 3 for name in ("deviation", "gain", "weight", "scale")})
    given = given._replace(
        world=setting(limit=[math.inf] * 3, elites=[[0]] * 3, deviation=[1.0] * 3).world
    )
    first, _ = roll(given, horizon=2, refresh=0)
    again, _ = roll(given, horizon=2, refresh=0)
    second, _ = roll(given, horizon=2, refresh=1)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    noise = []
    for rows in (*first, *second):
        batch = transitions(rows)
        noise.append(batch.action - 0.1 * batch.observation[:, :A])
    steps = torch.cat(noise)
    assert len(steps) == 2 * 3 * 2 * 23
    assert len(steps.flatten().unique()) > 0.99 * steps.numel()


# -- one elite a row -----------------------------------------------------------------------

PER = ["per_step", "per_rollout"]


def sure(**changes: Any) -> Setting:
    """Nothing is drawn but the elite; rows end where the first observation passes a limit."""
    return setting(**{"deviation": [0.0] * 3, "weight": [0.0] * 3} | changes)


def trajectories(rows: Tensor) -> list[Tensor]:
    """Rows linked by their observations, those of a trajectory in order."""
    batch = transitions(rows)
    following = {tuple(row): number for number, row in enumerate(batch.observation.tolist())}
    heads = set(range(len(rows)))
    after: dict[int, int] = {}
    for number, row in enumerate(batch.next_observation.tolist()):
        if (found := following.get(tuple(row))) is not None:
            after[number] = found
            heads.discard(found)
    chains = []
    for head in sorted(heads):
        chain = [head]
        while chain[-1] in after:
            chain.append(after[chain[-1]])
        chains.append(rows[chain])
    return chains


@pytest.mark.parametrize("chunk", [4, 13, 2048])
@pytest.mark.parametrize("per", PER)
def test_grouped_rows_are_the_models_steps_from_one_elite_each(monkeypatch, chunk, per):
    """No row is lost or made twice, ends are ends, and both columns are of one elite."""
    monkeypatch.setattr(rollout, "CPU_CHUNK", chunk)
    given = sure(limit=[4.0, 8.0, 6.0])
    rows, health = roll(given, horizon=4, grouped=True, elite=per)
    assert health.disagreement_mean is None
    for member in range(3):
        batch = transitions(rows[member])
        moved, paid = split_reward(rows[member])
        torch.testing.assert_close(moved, paid[:, None].expand(-1, S), atol=2e-4, rtol=0)
        assert set(paid.round().long().tolist()) <= set(
            given.world.ensemble.elites[member].tolist()
        )
        ended = batch.next_observation[:, 0] > given.world.terminator["limit"][member]
        assert ended.equal(batch.terminated == 1)
        assert health.rows[member] == len(rows[member])
        picked = torch.randint(40, (23,), generator=generator(SEEDS[member], "rollout.start", 0))
        first = as_set(batch.observation[:23])
        assert first == as_set(given.starts[picked])  # the first step is written first
        alive = int((~ended).sum()) - int((~ended[23:]).sum())  # of the first step
        later = batch.observation[23 : 23 + alive]
        assert as_set(later) == as_set(batch.next_observation[:23][~ended[:23]])
    lengths = {len(own) for own in rows}
    assert len(lengths) > 1  # members end at different rates


@pytest.mark.parametrize("grouped", [True, False])
def test_a_row_may_keep_its_elite_for_its_whole_rollout(grouped):
    given = sure(limit=[30.0, 20.0, 25.0], gain=[0.1, 0.1, 0.1])
    for per in PER:
        rows, _ = roll(given, horizon=6, batch_size=40, grouped=grouped, elite=per)
        for member in range(3):
            chains = [chain for chain in trajectories(rows[member]) if len(chain) > 1]
            assert len(chains) > 5
            kept = [len(split_reward(chain)[1].round().unique()) == 1 for chain in chains]
            assert all(kept) if per == "per_rollout" else not all(kept)
            elites = torch.cat([split_reward(chain)[1].round() for chain in chains]).unique()
            assert len(elites) == 3  # and all of them are in use


@pytest.mark.parametrize("per", PER)
def test_members_of_a_grouped_population_equal_their_lone_runs(per):
    given = setting(lethal=[-math.inf, -1.5, -2.0])
    together, health = roll(given, grouped=True, elite=per, horizon=5)
    again, _ = roll(given, grouped=True, elite=per, horizon=5)
    assert len({len(own) for own in together}) > 1
    for member, seed in enumerate(SEEDS):
        assert again[member].equal(together[member])
        alone, own = roll(
            of_member(given, member), seeds=(seed,), grouped=True, elite=per, horizon=5
        )
        assert alone[0].equal(together[member])
        assert own.nonfinite[0] == health.nonfinite[member]


def test_elites_are_dealt_out_evenly_and_every_row_gets_each_as_often():
    counts = torch.zeros(7, 3)
    live = torch.tensor([[True, False, True, True, True, False, True]])  # 5 rows, 3 elites
    for seed in range(3000):
        order = dealt_out(live, 3, [generator(seed, "deal")])
        assert order.shape == (1, 6)
        assert sorted(order[0].tolist()) == [-1, 0, 2, 3, 4, 6]
        shares = (order.view(-1, 3) >= 0).sum(0)
        assert shares.max() - shares.min() <= 1
        for place, row in enumerate(order[0].tolist()):
            if row >= 0:
                counts[row, place % 3] += 1
    assert (counts[live[0]] / 3000 - 1 / 3).abs().max() < 0.035


def test_rows_that_keep_their_elite_close_up_within_it():
    live = torch.tensor(
        [
            [True, False, False, True, True, False],  # elite 0 has rows 0 and 4, elite 1 row 3
            [False, False, False, True, False, True],
        ]
    )
    assert closed_up(live, 2).tolist() == [[0, 3, 4, -1], [-1, 3, -1, 5]]


def test_grouped_rollouts_of_a_learned_ensemble_take_its_elites_predictions():
    given = learned(SEEDS)
    given = given._replace(pessimism=given.pessimism._replace(weight=torch.zeros(3)))
    ensemble = given.world.ensemble
    rows, _ = roll(given, batch_size=30, horizon=1, grouped=True, elite="per_rollout")
    parts = ensemble.of_elites()
    for member, own in enumerate(rows):
        batch = transitions(own)
        pairs = batch.observation.expand(3, -1, -1), batch.action.expand(3, -1, -1)
        whole, alone = ensemble.predict(*pairs), parts.predict(*pairs)
        for value, cut in zip(whole, alone, strict=True):
            wanted = value[member, ensemble.elites[member]]
            torch.testing.assert_close(cut[member], wanted, rtol=1e-5, atol=1e-5)
        noise = torch.randn(30, S + 1, generator=generator(SEEDS[member], "rollout.model.0", 0))
        for place in range(30):  # rows stand in the order of their places, nobody was dropped
            chosen = ensemble.elites[member, place % 3]
            sample = (
                whole.mean[member, chosen, place] + whole.std[member, chosen, place] * noise[place]
            )
            torch.testing.assert_close(batch.reward[place], sample[S], rtol=1e-4, atol=1e-4)


def test_an_episode_that_would_be_too_long_is_cut_and_not_terminated():
    given = setting(limit=[math.inf] * 3)
    left = torch.arange(40) % 5 + 1
    for grouped in (False, True):
        rows, _ = roll(given, horizon=3, grouped=grouped, steps_left=left)
        for member, own in enumerate(rows):
            picked = torch.randint(
                40, (23,), generator=generator(SEEDS[member], "rollout.start", 0)
            )
            assert len(own) == left[picked].clamp(max=3).sum()
            assert not transitions(own).terminated.any()


def test_a_measure_that_is_no_number_stops_a_rollout():
    def unsure(sampled: Sampled) -> Tensor:
        return torch.full_like(sampled.value[..., 0], math.nan)

    rows, health = roll(setting(limit=[math.inf] * 3)._replace(stop=Stop("truncate", unsure)))
    assert [len(own) for own in rows] == [23] * 3
    assert health.stopped_share.tolist() == [1.0] * 3


def test_fewer_calls_are_made_as_rows_of_long_rollouts_end(monkeypatch):
    calls: list[int] = []
    monkeypatch.setattr(rollout, "LONG_HORIZON", 4)
    whole = Toy.predict

    def predict(self: Toy, observation: Tensor, action: Tensor) -> Prediction:
        calls.append(observation.shape[1])
        return whole(self, observation, action)

    monkeypatch.setattr(Toy, "predict", predict)
    left = torch.where(torch.arange(40) < 30, 1, 6)  # three quarters end at once
    roll(setting(limit=[math.inf] * 3), batch_size=256, horizon=6, steps_left=left)
    assert set(calls) == {32}
    assert 8 + 5 * 1 <= len(calls) <= 8 + 5 * 4


# -- how rollouts end ----------------------------------------------------------------------


def test_terminal_rows_are_stored_once_and_leave():
    given = setting(weight=[0.0] * 3)
    rows, health = roll(given, horizon=6)
    for member in range(3):
        wanted = simulate(given, member, horizon=6)
        batch = transitions(rows[member])
        ended = batch.terminated == 1
        assert ended.sum() == sum(row[-1] for row in wanted.rows) > 0
        assert set(batch.terminated.tolist()) == {0.0, 1.0}
        limit = given.world.terminator["limit"][member]
        assert ended.equal(batch.next_observation[:, 0] > limit)
        # whatever came out of an end is nobody's observation
        ends_at = {tuple(row) for row in batch.next_observation[ended].tolist()}
        assert not ends_at & {tuple(row) for row in batch.observation.tolist()}
        assert health.terminated_share[member].item() == pytest.approx(ended.float().mean().item())


def test_ends_are_those_of_the_stored_observation():
    """Clipped to below the limit, no row is beyond it."""
    box = Bounds(torch.full((S,), -9.0), torch.full((S,), 3.9))
    rows, health = roll(setting(limit=[4.0] * 3)._replace(bounds=box))
    assert (health.clipped_share > 0).all()
    assert not any(transitions(own).terminated.any() for own in rows)


def test_the_horizon_does_not_terminate():
    given = setting(limit=[math.inf] * 3)
    for horizon in (1, 3):
        rows, health = roll(given, horizon=horizon)
        assert all(len(own) == 23 * horizon for own in rows)
        assert not any(transitions(own).terminated.any() for own in rows)
        assert not health.terminated_share.any()


def test_members_may_have_horizons_of_their_own():
    """Each member's rows are those that it has where all have its horizon."""
    given = setting()
    together, health = roll(given, horizon=(4, 1, 3))
    for member, horizon in enumerate((4, 1, 3)):
        alone, own = roll(given, horizon=horizon)
        assert together[member].equal(alone[member])
        for left, right in zip(told(health).values(), told(own).values(), strict=True):
            torch.testing.assert_close(left[member], right[member], equal_nan=True)


def test_a_stop_for_uncertainty_is_terminal_only_where_it_is_absorbing():
    """Against the same rollouts without a stop, cut where the measure first exceeds its limit."""
    given = setting(limit=[math.inf] * 3)
    free, _ = roll(given, horizon=1)
    for kind in ("truncate", "drop", "terminal", "absorb"):
        rows, health = roll(given._replace(stop=Stop(kind, measure)), horizon=1)  # type: ignore[arg-type]
        for member in range(3):
            # Survivors come first; the next observation's noise tells rows apart.
            found, whole = (r[member][r[member][:, S + A + 1].argsort()] for r in (rows, free))
            row = transitions(whole)
            drift = row.action[:, 1]
            beyond = (row.observation[:, 1] + drift).abs() > given.pessimism.limit[member]
            assert 0 < beyond.sum() < 23
            share = beyond.sum().item() / 23
            assert health.stopped_share[member].item() == pytest.approx(share)
            if kind == "drop":
                assert found.equal(whole[~beyond])
            elif kind == "truncate":
                assert found.equal(whole)
            else:
                own = transitions(found)
                assert own.terminated.equal(beyond.float())
                paid = given.pessimism.floor[member] if kind == "absorb" else row.reward[beyond]
                assert (own.reward[beyond] == paid).all()
                assert own.reward[~beyond].equal(row.reward[~beyond])


def test_what_the_data_holds():
    observation = torch.tensor([[1.0, 5.0], [3.0, 5.0], [-1.0, 5.0]])
    found = logged_range(observation, torch.tensor([0.5, -2.0, 9.0]))
    assert found.low.tolist() == [-1.0, 5.0]
    assert found.high.tolist() == [3.0, 5.0]
    reward = torch.tensor([0.5, -2.0, 9.0]).std(correction=0).item()
    assert found.spread.tolist() == pytest.approx([(8 / 3) ** 0.5, 1.0, reward])
    assert (found.reward_low, found.reward_high) == (-2.0, 9.0)


def test_all_rows_may_end_early():
    given = setting(limit=[-math.inf] * 3)
    rows, health = roll(given)
    assert [len(own) for own in rows] == [23] * 3
    assert all((transitions(own).terminated == 1).all() for own in rows)
    assert health.terminated_share.tolist() == [1.0] * 3


def test_one_member_may_end_while_others_go_on():
    rows, _ = roll(setting(limit=[-math.inf, math.inf, math.inf]))
    assert [len(own) for own in rows] == [23, 92, 92]


def test_rows_of_a_trajectory_follow_each_other():
    rows, _ = roll(setting(limit=[math.inf] * 3), horizon=3)
    for own in rows:
        batch = transitions(own.view(3, 23, -1))
        assert batch.observation[1:].equal(batch.next_observation[:-1])


# -- what is stored ------------------------------------------------------------------------


def test_no_padding_and_no_old_row_is_counted(monkeypatch):
    """Padding is all zeros; in this world such a row would be paid a million."""
    monkeypatch.setattr(rollout, "CPU_CHUNK", 15)
    monkeypatch.setattr(
        Toy, "predict",
        lambda self, observation, action, whole=Toy.predict: (
            lambda found: Prediction(
                found.mean + 1e6 * (observation == 0).all(-1)[:, None, :, None], found.std
            )
        )(whole(self, observation, action)),
    )  # fmt: skip
    buffer = SyntheticBuffer(3, 2, 23 * 4, row_width(S, A), CPU)
    roll(setting(limit=[math.inf] * 3), buffer=buffer)  # a full slot, then a shorter refresh
    rows, health = roll(setting(limit=[2.0, 3.0, 1.0]), refresh=2, buffer=buffer)
    assert all(23 <= len(own) < 92 for own in rows)
    assert all(transitions(own).reward.max() < 1000 for own in rows)
    assert health.reward_max.max() < 1000
    assert health.rows.tolist() == [len(own) for own in rows]


def test_only_the_slot_of_the_refresh_is_written():
    buffer = SyntheticBuffer(3, 2, 92, row_width(S, A), CPU)
    buffer.rows.fill_(-7.0)
    roll(setting(), refresh=3, buffer=buffer)
    assert (buffer.slot(2) == -7).all()
    assert buffer.counts[:, 0].tolist() == [0, 0, 0]
    for member, count in enumerate(buffer.counts[:, 1].tolist()):
        assert count > 0
        assert (buffer.slot(3)[member, count:] == -7).all()


def test_penalty_is_taken_off_once_weighted_and_scaled():
    plain, _ = roll(setting(weight=[0.0] * 3))
    given = setting(weight=[2.0, 0.5, 3.0], scale=[4.0, 1.0, 0.1])
    lowered, health = roll(given)
    for member, (weight, scale) in enumerate([(2.0, 4.0), (0.5, 1.0), (3.0, 0.1)]):
        one, other = transitions(plain[member]), transitions(lowered[member])
        assert one.observation.equal(other.observation)
        prediction = given.world.ensemble.predict(
            one.observation.expand(3, -1, -1), one.action.expand(3, -1, -1)
        )
        uncertainty = penalty(sampled_of(prediction))[member] / scale
        torch.testing.assert_close(
            one.reward - other.reward, weight * uncertainty, rtol=1e-4, atol=1e-4
        )
        assert health.penalty_mean[member].item() == pytest.approx(
            uncertainty.mean().item(), rel=1e-5
        )
        assert health.reward_mean[member].item() == pytest.approx(
            one.reward.mean().item(), rel=1e-5
        )


def test_observations_are_clipped_counted_and_gone_on_from():
    bounds = Bounds(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([1.0, 2.0, 3.0]))
    free = setting(limit=[math.inf] * 3)
    rows, health = roll(free._replace(bounds=bounds), horizon=3)
    for member, own in enumerate(rows):
        following = transitions(own).next_observation
        at_edge = (following == bounds.low) | (following == bounds.high)
        assert ((following >= bounds.low) & (following <= bounds.high)).all()
        share = at_edge.any(1).float().mean().item()
        assert 0 < share == pytest.approx(health.clipped_share[member].item())
        batch = transitions(own.view(3, 23, -1))
        assert batch.observation[1:].equal(batch.next_observation[:-1])
    assert not roll(free)[1].clipped_share.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", ["observation", "reward"])
def test_predictions_that_are_not_finite_are_dropped_and_counted(monkeypatch, bad, column):
    """Infinity too, though the box would clip it to its edge."""
    whole = Toy.predict

    def predict(self: Toy, observation: Tensor, action: Tensor) -> Prediction:
        mean, std = whole(self, observation, action)
        ruined = (observation[..., 1] > 0.5)[:, None].expand(-1, N, -1)
        mean[..., 1 if column == "observation" else -1][ruined] = bad
        return Prediction(mean, std)

    monkeypatch.setattr(Toy, "predict", predict)
    box = Bounds(torch.full((S,), -50.0), torch.full((S,), 50.0))
    given = setting(limit=[math.inf] * 3)._replace(bounds=box)
    rows, health = roll(given, horizon=2)
    for member, own in enumerate(rows):
        assert own.isfinite().all()
        batch = transitions(own)
        assert (batch.observation[:, 1] <= 0.5).all()
        picked = torch.randint(40, (23,), generator=generator(SEEDS[member], "rollout.start", 0))
        at_once = int((given.starts[picked, 1] > 0.5).sum())
        later = int((batch.next_observation[: 23 - at_once, 1] > 0.5).sum())
        assert health.nonfinite[member] == at_once + later > 0
        assert len(own) == 2 * 23 - 2 * at_once - later
        assert not health.clipped_share[member]


def test_a_member_without_any_finite_row_writes_nothing():
    rows, health = roll(setting(lethal=[math.inf, -math.inf, math.inf]))
    assert [len(own) for own in rows][::2] == [0, 0]
    assert health.nonfinite.tolist() == [23, 0, 23]
    assert health.rows[0] == 0
    assert health.penalty_mean[0] == 0


# -- the learned ensemble ------------------------------------------------------------------


def learned(seeds: tuple[int, ...]) -> Setting:
    parameters = init_ensemble([generator(seed, "init") for seed in seeds], S, A, (16, 16), N)
    for name, value in parameters.items():
        if name.startswith("weight"):
            value *= 2
    parameters["max_log_variance"] -= 3
    inputs = Standardizer(torch.zeros(len(seeds), S + A), torch.ones(len(seeds), S + A))
    targets = Standardizer(torch.zeros(len(seeds), S + 1), torch.ones(len(seeds), S + 1))
    elites = torch.stack([torch.randperm(N, generator=generator(seed, "e"))[:3] for seed in seeds])
    whole = setting(limit=[0.7] * 3, gain=[0.3] * 3)
    members = len(seeds)
    return Setting(
        World(
            Ensemble(parameters, inputs, targets, elites), {"limit": torch.full((members, 1), 0.7)}
        ),
        {"gain": whole.policy["gain"][:members]},
        whole.starts,
        Pessimism(
            torch.full((members,), 0.5),
            torch.ones(members),
            torch.ones(members),
            torch.zeros(members),
        ),
        observation_bounds(whole.starts, 0.5),
        LOGGED,
    )


def test_a_member_of_a_learned_population_equals_its_lone_run():
    together, _ = roll(learned(SEEDS))
    assert len({len(own) for own in together}) > 1
    for member, seed in enumerate(SEEDS):
        alone, _ = roll(learned((seed,)), seeds=(seed,))
        torch.testing.assert_close(alone[0], together[member], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grouped", [False, True])
def test_compiled_equals_eager(grouped):
    """Within 1e-5: fusion reorders sums."""
    if not compiler_available(CPU):
        pytest.skip("no C++ compiler")
    given, width = learned(SEEDS), row_width(S, A)
    eager = imagined_step(act, PENALTIES["ensemble_std"], ends, None, proposal(grouped))
    fast = compiled(eager, True, torch.device("cpu"))
    found = []
    for step in eager, fast:
        buffer = SyntheticBuffer(3, 1, 23 * 3, width, CPU)
        rollouts = Rollouts(
            step, given.world, given.starts, SEEDS, 23, (3, 3, 3),
            given.pessimism, given.bounds, given.logged, grouped=grouped,
        )  # fmt: skip
        count, _ = imagine(rollouts, buffer.slot(0), 0, given.policy)
        buffer.set_count(0, count)
        found.append(buffer)
    assert found[0].counts.equal(found[1].counts)
    torch.testing.assert_close(found[0].rows, found[1].rows, rtol=1e-5, atol=1e-5)


# -- helpers -------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [1, 3, 5000])
@pytest.mark.parametrize("rows", [1, 7, 2047, 2048, 2049, 50_000])
def test_chunks_are_even_and_within_the_limit(rows, members):
    chunk = chunk_rows(rows, members, CPU)
    limit = max(rollout.CPU_CHUNK // members, 1)
    assert 1 <= chunk <= limit
    calls = math.ceil(rows / chunk)
    assert calls == math.ceil(rows / limit)
    assert calls * chunk - rows < calls  # less than a row of padding a call
    assert chunk_rows(rows, members, CPU, rollout.NETWORKS) == chunk
    assert chunk_rows(rows, members, CPU, 128) * 128 <= max(rollout.CPU_CHUNK * 16 // members, 128)


def test_quantile_is_the_smallest_value_that_95_percent_do_not_exceed(monkeypatch):
    monkeypatch.setattr(rollout, "CPU_CHUNK", 13)
    given = learned(SEEDS)
    observation = torch.randn(57, S, generator=torch.Generator().manual_seed(1))
    action = torch.randn(57, A, generator=torch.Generator().manual_seed(2))
    measure = PENALTIES["max_aleatoric"]
    values = measured(given.world.ensemble, measure, observation, action, LOGGED.spread, SEEDS)
    for quantile in 0.95, 0.5, 1.0, 0.001:
        found = upper_quantile(values, quantile)
        assert found.shape == (3,)
        whole = given.world.ensemble.predict(
            observation.expand(3, -1, -1), action.expand(3, -1, -1)
        )
        for member in range(3):
            own = measure(sampled_of(whole))[member].sort().values
            wanted = own[max(math.ceil(quantile * 57), 1) - 1]
            torch.testing.assert_close(found[member], wanted)


def test_quantile_of_no_penalty_is_no_division_by_zero():
    scale = upper_quantile(torch.zeros(3, 9))
    assert (scale > 0).all()
    assert (torch.zeros(3) / scale == 0).all()


def test_box_is_the_range_of_the_data_widened_on_both_sides():
    observation = torch.tensor([[0.0, 10.0, 5.0], [4.0, 30.0, 5.0], [1.0, 20.0, 5.0]])
    bounds = observation_bounds(observation, 0.5)
    assert bounds.low.tolist() == [-2.0, 0.0, 5.0]
    assert bounds.high.tolist() == [6.0, 40.0, 5.0]
    free = observation_bounds(observation, None)
    assert free.low.tolist() == [-math.inf] * 3
    assert free.high.tolist() == [math.inf] * 3
