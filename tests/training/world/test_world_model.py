"""A world model on disk, what it is checked for, and where its episodes end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldrl.config.termination import TerminationSettings
from worldrl.errors import ConfigError, ModelError
from worldrl.models import termination
from worldrl.models.ensemble import Ensemble, Standardizer, init_ensemble
from worldrl.models.world import World
from worldrl.random import generator
from worldrl.rows import pack
from worldrl.training.logged import Logged
from worldrl.training.stages import flat
from worldrl.training.world.world_model import (
    WorldModel,
    check_fits,
    ends_function,
    load_world,
    members,
    of_seeds,
    save_world,
    where_episodes_end,
    with_termination,
)
from worldrl.types import Transitions

S, A, P, N = 3, 2, 3, 4
CPU = torch.device("cpu")


def world(learned_ends: bool = False) -> World:
    generators = [generator(seed, "init") for seed in range(P)]
    parameters = init_ensemble(generators, S, A, (6, 5), N, layer_norm=True)
    parameters["max_log_variance"] += torch.rand(P, S + 1)
    ensemble = Ensemble(
        parameters,
        Standardizer(torch.randn(P, S + A), 0.5 + torch.rand(P, S + A)),
        Standardizer(torch.randn(P, S + 1), 0.5 + torch.rand(P, S + 1)),
        torch.stack([torch.randperm(N)[:2] for _ in range(P)]),
    )
    terminator = termination.initialise(generators, S, A, (4,)) if learned_ends else {}
    return World(ensemble, terminator)


def model(**facts: Any) -> WorldModel:
    base = {
        "observation_size": S, "action_size": A, "action_low": [-1.0, -2.0],
        "action_high": [1.0, 2.0], "termination": {"kind": "never"},
    }  # fmt: skip
    return WorldModel(world(), base | facts)


def logged(ends: int = 0, size: int = S) -> Logged:
    rows = 10
    terminated = torch.zeros(rows)
    terminated[:ends] = 1
    batch = Transitions(
        torch.randn(rows, size), torch.zeros(rows, A), torch.zeros(rows), torch.randn(rows, size),
        terminated,
    )  # fmt: skip
    return Logged(
        pack(batch), torch.ones(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.int64),
        size, A, np.array([-1, -2], np.float32), np.array([1, 2], np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("learned_ends", [False, True])
def test_saved_and_loaded_worlds_predict_the_same(tmp_path: Path, learned_ends):
    """Parameters, normalisers, elites and log-variance bounds come back as they were."""
    given = world(learned_ends)
    save_world(tmp_path / "model", WorldModel(given, {"seeds": [0, 1, 2]}))
    found = load_world(tmp_path / "model", CPU)
    assert found.facts == {"seeds": [0, 1, 2]}
    assert found.population == P
    one, other = flat(found.world), flat(given)
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in other)
    assert found.world.ensemble.elites.dtype == torch.int64
    observation, action = torch.randn(P, 7, S), torch.randn(P, 7, A)
    for a, b in zip(
        found.world.ensemble.predict(observation, action),
        given.ensemble.predict(observation, action), strict=True,
    ):  # fmt: skip
        assert a.equal(b)


def test_members_are_cut_out_whole():
    given = world(learned_ends=True)
    observation, action = torch.randn(P, 7, S), torch.randn(P, 7, A)
    whole = given.ensemble.predict(observation, action)
    for first, count in (0, 1), (1, 2), (2, 1):
        own = slice(first, first + count)
        part = members(given, range(first, first + count))
        found = part.ensemble.predict(observation[own], action[own])
        torch.testing.assert_close(found.mean, whole.mean[own])
        torch.testing.assert_close(found.std, whole.std[own])
        assert part.ensemble.elites.equal(given.ensemble.elites[own])
        rows = observation, action, observation
        ended = termination.ends(given.terminator, *rows)
        found_ends = termination.ends(part.terminator, *(value[own] for value in rows))
        assert found_ends.equal(ended[own])


def test_a_model_that_fits_is_accepted():
    check_fits(model(), logged(), "runs/a")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"observation_size": 4}, ["size 4", "sizes 3 and 2"]),
        ({"action_size": 1}, ["size 1", "sizes 3 and 2"]),
        ({"action_low": [-1.0, -1.0]}, ["action_low=[-1.0, -1.0]", "[-1.0, -2.0]"]),
        ({"action_high": [1.0, 3.0]}, ["action_high=[1.0, 3.0]", "[1.0, 2.0]"]),
    ],
)
def test_a_model_of_something_else_is_refused(facts, words):
    with pytest.raises(ModelError) as refusal:
        check_fits(model(**facts), logged(), "runs/a")
    message = str(refusal.value)
    assert all(word in message for word in ["runs/a", *words])
    assert "\n" not in message


def test_every_member_learns_in_the_world_of_its_seed():
    given = model(seeds=[7, 8, 9])
    for seeds in ([7, 8, 9], [8], [9, 7]):
        found = of_seeds(given, seeds, "runs/a")
        assert found.facts["seeds"] == seeds
        assert found.facts["shared_model"] is False
        for member, seed in enumerate(seeds):
            wanted = given.world.ensemble.parameters["weight.0"][seed - 7]
            assert found.world.ensemble.parameters["weight.0"][member].equal(wanted)
    with pytest.raises(ModelError, match=r"seeds \[7, 8, 9\], and none of seed\(s\) \[10\]"):
        of_seeds(given, [9, 10], "runs/a")


def test_members_may_share_the_only_world_there_is_and_are_marked():
    one = of_seeds(model(seeds=[7, 8, 9]), [8], "runs/a")
    alone, shared = of_seeds(one, [5], "runs/a"), of_seeds(one, [5, 6], "runs/a")
    assert alone.facts["shared_model"] is False
    assert shared.facts["shared_model"] is True
    assert of_seeds(shared, [5, 6], "runs/b").facts["shared_model"] is True  # borrowed once more
    weights = shared.world.ensemble.parameters["weight.0"]
    assert weights[0].equal(weights[1])
    assert weights[0].equal(one.world.ensemble.parameters["weight.0"][0])


@pytest.mark.parametrize(
    ("settings", "env_id", "ends", "size", "wanted"),
    [
        ({}, "Hopper-v5", 1, 11, {"kind": "formula", "task": "hopper"}),
        ({}, "Hopper-v5", 1, 12, {"kind": "learned"}),  # an observation of another make
        ({}, "HalfCheetah-v5", 0, 17, {"kind": "formula", "task": "halfcheetah"}),
        ({}, "MyRobot-v0", 1, S, {"kind": "learned"}),
        ({}, "MyRobot-v0", 0, S, {"kind": "never"}),
        ({}, None, 0, S, {"kind": "never"}),
        ({"kind": "never"}, "Hopper-v5", 1, 11, {"kind": "never"}),
        ({"kind": "learned"}, "Hopper-v5", 1, 11, {"kind": "learned"}),
        ({"task": "hopper"}, None, 0, 11, {"kind": "formula", "task": "hopper"}),
        ({"kind": "formula"}, "Hopper-v5", 0, 11, {"kind": "formula", "task": "hopper"}),
    ],
)
def test_how_episodes_end_is_decided(settings, env_id, ends, size, wanted):
    rows = logged(ends, size)
    found = where_episodes_end(
        TerminationSettings(**settings), env_id, rows, torch.arange(len(rows.rows))
    )
    assert found == wanted
    if found["kind"] != "learned":
        rule = ends_function(found, size)
        following = torch.full((1, 4, size), 50.0)
        done = rule({}, following, torch.zeros(1, 4, A), following)
        assert done.dtype == torch.bool
        assert done.all() == (found.get("task") == "hopper")


@pytest.mark.parametrize(
    ("settings", "env_id", "words"),
    [
        ({"kind": "formula"}, "MyRobot-v0", "no formula is known for environment 'MyRobot-v0'"),
        ({"kind": "formula"}, None, "no formula is known"),
        ({"kind": "learned"}, "Hopper-v5", "no logged episode ends"),
    ],
)
def test_what_cannot_be_decided_is_refused(settings, env_id, words):
    rows = logged(0)
    with pytest.raises(ConfigError, match=words):
        where_episodes_end(
            TerminationSettings(**settings), env_id, rows, torch.arange(len(rows.rows))
        )


@pytest.mark.parametrize("kind", ["auto", "learned"])
def test_ends_that_cannot_be_learned_from_are_refused(kind):
    rows = logged(2)
    goes_on = (rows.rows[:, -1] == 0).nonzero().squeeze(1)
    with pytest.raises(ConfigError, match="no rule can be learned"):
        where_episodes_end(TerminationSettings(kind=kind), None, rows, goes_on)


def test_a_given_model_ends_episodes_as_asked():
    rows, formula = logged(2), {"kind": "formula", "task": "halfcheetah"}

    def decided(had: dict[str, Any], **settings: str) -> dict[str, Any]:
        given = model(termination=had)
        asked = with_termination(given, TerminationSettings(**settings), None, rows)
        assert asked.world is given.world
        return asked.facts["termination"]

    assert decided(formula) == formula
    assert decided(formula, kind="never") == {"kind": "never"}
    assert decided({"kind": "never"}, task="halfcheetah") == formula
    learned = {"kind": "learned", "recall": [1.0]}
    assert decided(learned, kind="learned") == learned
    with pytest.raises(ConfigError, match="trained without one"):
        decided(formula, kind="learned")


def test_a_given_model_with_another_rule_than_the_environments_is_said(capsys):
    rows = logged(size=17)
    for had, said in ("halfcheetah", False), ("walker2d", True):
        given = model(termination={"kind": "formula", "task": had})
        found = with_termination(given, TerminationSettings(), "HalfCheetah-v5", rows)
        assert found is given
        warned = f"as the given model was told ({had}), not as those of HalfCheetah-v5"
        assert (warned in capsys.readouterr().err) == said


def test_learned_ends_are_those_of_the_head():
    given = world(learned_ends=True)
    rule = ends_function({"kind": "learned", "precision": [1.0]}, S)
    rows = [torch.randn(P, 9, size) for size in (S, A, S)]
    assert rule(given.terminator, *rows).equal(termination.ends(given.terminator, *rows))
