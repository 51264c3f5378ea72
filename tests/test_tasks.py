"""Task names are matched whole, by tables."""

from __future__ import annotations

import pytest

from worldrl.tasks import D4RL, GYMNASIUM, Task, gymnasium_id, parse


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("HalfCheetah-v5", Task("gymnasium", "halfcheetah", "", 5)),
        ("Walker2d-v2", Task("gymnasium", "walker2d", "", 2)),
        ("Pendulum-v1", Task("gymnasium", "pendulum", "", 1)),
        ("halfcheetah-medium-replay-v2", Task("d4rl", "halfcheetah", "medium-replay", 2)),
        ("ant-random-expert-v0", Task("d4rl", "ant", "random-expert", 0)),
        ("antmaze-umaze-v2", Task("d4rl", "antmaze-umaze", "", 2)),
        ("antmaze-medium-play-v2", Task("d4rl", "antmaze-medium", "play", 2)),
        ("maze2d-eval-umaze-dense-v1", Task("d4rl", "maze2d-eval-umaze", "dense", 1)),
        ("bullet-halfcheetah-medium-v0", Task("d4rl", "bullet-halfcheetah", "medium", 0)),
        ("neorl/Walker2d-v3", Task("neorl", "walker2d", "", 3)),
        ("neorl/Hopper-v3-high", Task("neorl", "hopper", "high", 3)),
    ],
)
def test_known_names(name: str, task: Task) -> None:
    assert parse(name) == task


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ant",
        "ant-v2",
        "halfcheetah-v2",
        "HalfCheetah",
        "HalfCheetah-v9",
        "halfcheetah-medium-v5",
        "halfcheetah-mediocre-v2",
        "MyHalfCheetah-v5",
        "HalfCheetah-v5 ",
        "HalfCheetah-v５",
        "InvertedPendulum-v3",
        "pen",
        "neorl/Ant-v3",
        "neorl/Hopper-v3-huge",
        "neorl/Hopper-v2",
        "mujoco/hopper/medium-v0",
    ],
)
def test_unknown_names(name: str) -> None:
    assert parse(name) is None


def test_no_name_is_known_by_a_part_of_it() -> None:
    for robot, family in D4RL.items():
        for variant in family.variants:
            name = f"{robot}-{variant}-v{family.versions[0]}" if variant else f"{robot}-v0"
            task = parse(name)
            assert task is not None
            assert (task.robot, task.variant) == (robot, variant)
            assert parse(f"x{name}") is None
            assert parse(f"{name}x") is None


def test_ids_go_there_and_back() -> None:
    for robot, versions in GYMNASIUM.values():
        for version in versions:
            assert parse(gymnasium_id(robot, version)) == Task("gymnasium", robot, "", version)
