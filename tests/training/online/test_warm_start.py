"""Weights taken over from a run, and more critics than it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import log_of

from worldrl.config.learners import SACSettings, TD3BCSettings
from worldrl.errors import RunError
from worldrl.learners import LEARNERS
from worldrl.random import generator
from worldrl.training.online.warm_start import start_from, tiled
from worldrl.training.stages import flat

LOG = log_of(40, 4, 2)


def state_of(seeds: tuple[int, ...], kind: str = "sac", **changes: Any) -> Any:
    settings = {"sac": SACSettings, "td3bc": TD3BCSettings}[kind](hidden=(8, 6), **changes)
    return LEARNERS[kind](settings, 4, 2, 100).initialise(seeds, LOG)  # type: ignore[call-arg]


def test_critics_are_repeated_with_a_little_noise():
    """Against loops: critic 5 of 7 is number 2 of three, each weight times 1 + 0.01 z."""
    random = torch.Generator().manual_seed(0)
    for shape in (3, 4, 8), (3, 1, 8):
        critics = torch.randn(2, *shape, generator=random)
        found = tiled(critics, 7, (10, 11), "weight.0", 0.01)
        assert found.shape == (2, 7, *shape[1:])
        for member, seed in enumerate((10, 11)):
            draws = torch.randn(4, *shape[1:], generator=generator(seed, "finetune.tile.weight.0"))
            for critic in range(7):
                wanted = critics[member, critic % 3]
                if critic >= 3:
                    wanted = wanted * (1 + 0.01 * draws[critic - 3])
                torch.testing.assert_close(found[member, critic], wanted, rtol=0, atol=0)
    assert tiled(critics, 7, (10, 11), "weight.0", 0.0)[:, 3:6].equal(critics)
    assert tiled(critics, 2, (10, 11), "weight.0", 0.01).equal(critics[:, :2])


@pytest.mark.parametrize("critics", [2, 5])
def test_networks_targets_temperature_and_inputs_are_taken_over(critics):
    old = state_of((1, 2, 3), standardize=True, num_critics=2)
    for value in flat(old).values():
        value += torch.rand(value.shape, generator=torch.Generator().manual_seed(value.numel()))
    new = state_of((1, 2, 3), standardize=True, num_critics=critics, discount=0.5)
    before = {name: value.clone() for name, value in flat(new).items()}
    start_from(new, flat(old), (0, 1, 2), (1, 2, 3), 0.01)
    for name, value in flat(new).items():
        if name.startswith("settings/") or "_adam/" in name:
            assert value.equal(before[name]), name
            continue
        own = flat(old)[name]
        if name.startswith(("critic/", "target/")):
            value = value[:, :2]
        assert value.equal(own), name
    # A repeated critic stays with its target.
    for name, value in new["critic"].items():
        noise = value / old["critic"][name][:, torch.arange(critics) % 2]
        other = new["target"][name] / old["target"][name][:, torch.arange(critics) % 2]
        torch.testing.assert_close(noise, other)


def test_members_may_start_from_the_same_one():
    old, new = state_of((7,)), state_of((7, 8, 9), num_critics=3)
    start_from(new, flat(old), (0, 0, 0), (7, 8, 9), 0.01)
    for value in new["actor"].values():
        assert value[0].equal(value[1])
        assert value[0].equal(value[2])
    weight = new["critic"]["weight.0"]
    assert weight[0, :2].equal(weight[1, :2])
    assert not weight[0, 2].equal(weight[1, 2])


def test_learners_of_their_own_are_taken_over_whole():
    old, new = state_of((1,), "td3bc"), state_of((2,), "td3bc")
    start_from(new, flat(old), (0,), (2,), 0.01)
    for part in "actor", "critic", "target", "actor_target", "inputs":
        for name, value in new[part].items():
            assert value.equal(old[part][name])


def test_weights_that_do_not_fit_are_refused():
    old, new = flat(state_of((1,))), state_of((1,), "td3bc")
    with pytest.raises(RunError, match="missing"):
        start_from(new, old, (0,), (1,), 0.01)
    wider = SACSettings(hidden=(8, 7))
    with pytest.raises(RunError, match=r"'actor/weight.1' is of shape \(8, 6\)"):
        start_from(LEARNERS["sac"](wider, 4, 2, 100).initialise((1,), LOG), old, (0,), (1,), 0.01)  # type: ignore[call-arg]
