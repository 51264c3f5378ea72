"""Reference scores of D4RL and their extension to gymnasium."""

from __future__ import annotations

import csv
from importlib.resources import files

import pytest

from worldrl.envs import reference_scores
from worldrl.tasks import parse


def test_d4rl_names_have_their_scores() -> None:
    assert reference_scores("halfcheetah-medium-replay-v2") == (-280.178953, 12135.0)
    assert reference_scores("hopper-random-v0") == (-20.272305, 3234.3)
    assert reference_scores("antmaze-umaze-v2") == (0.0, 1.0)
    assert reference_scores("pen-human-v1") == (96.262799, 3076.8331017826877)


@pytest.mark.parametrize(
    ("robot", "scores"),
    [
        ("HalfCheetah", (-280.178953, 12135.0)),
        ("Hopper", (-20.272305, 3234.3)),
        ("Walker2d", (1.629008, 4592.3)),
        ("Ant", (-325.6, 3879.7)),
    ],
)
def test_gymnasium_versions_take_the_robots_scores(robot: str, scores: tuple[float, float]) -> None:
    for version in (2, 3, 4, 5):
        assert reference_scores(f"{robot}-v{version}") == scores


@pytest.mark.parametrize(
    "name",
    ["Pendulum-v1", "Humanoid-v5", "CartPole-v1", "halfcheetah", "ant-v2", "Ant-v9", "x", "", None],
)
def test_others_have_none(name: str | None) -> None:
    assert reference_scores(name) is None


def test_the_extension_is_sound_and_the_table_is_whole() -> None:
    """All D4RL datasets of an extended robot share one pair, and every name parses."""
    text = (files("worldrl.envs") / "d4rl_reference_scores.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 147
    for row in rows:
        task = parse(row["env"])
        assert task is not None
        assert task.suite == "d4rl"
        if task.robot in ("halfcheetah", "hopper", "walker2d", "ant"):
            pair = (float(row["min_score"]), float(row["max_score"]))
            assert pair == reference_scores(f"{task.robot}-medium-v2")
