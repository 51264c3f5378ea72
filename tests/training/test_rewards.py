"""Rewards as learners and models see them, and what a given model must have seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from worldrl import api
from worldrl.config.schema import DatasetSettings
from worldrl.data.dataset import Dataset, load
from worldrl.errors import DataError, ModelError
from worldrl.training.logged import logged
from worldrl.training.rewards import (
    AS_LOGGED,
    RewardTransform,
    recorded_transform,
    reward_transform,
)

CPU = torch.device("cpu")
MODEL = {"model.hidden": [8], "model.max_epochs": 1, "threads": 1, "termination.kind": "never"}
QUICK = {"num_updates": 20, "learner.hidden": [8], "learner.batch_size": 8, "log_every": 10}
IMAGINED = {"imagination.batch_size": 10, "imagination.penalty.kind": "none"}


def dataset(rewards: list[float], ends: list[int]) -> Dataset:
    """Episodes that end after these rows: the first is cut, the others terminate."""
    n = len(rewards)
    flags = np.zeros((2, n), bool)
    flags[1, ends[0]] = True
    flags[0, ends[1:]] = True
    observation, last = np.random.default_rng(0).normal(size=(2, n, 3)).astype(np.float32)
    following = np.where(flags.any(0)[:, None], last, np.roll(observation, -1, 0))
    return Dataset.from_arrays(
        observation, np.zeros((n, 2), np.float32), np.array(rewards, np.float32), *flags,
        next_observations=following,
    )  # fmt: skip


def settings(**changes: object) -> DatasetSettings:
    return DatasetSettings.model_validate({"source": "x", **changes})


def test_by_default_no_bit_changes() -> None:
    rewards = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert np.array_equal(AS_LOGGED(rewards), rewards)
    assert reward_transform(settings(), dataset([1.0, 2.0], [0, 1])) == AS_LOGGED


def test_returns_are_of_episodes_as_they_ended() -> None:
    """A cut of two rows counts: were it joined to what follows, the range would be another."""
    data = dataset([1.0, 2.0, -4.0, 10.0, 3.0], [1, 3, 4])  # returns 3, 6, 3
    found = reward_transform(settings(reward_normalization="return_range"), data)
    assert found == (pytest.approx(1000 / 3), 0.0)
    both = settings(reward_normalization="return_range", reward_scale=0.5, reward_shift=-1.0)
    rows = logged(data, CPU, reward_transform(both, data)).transitions.reward
    wanted = [reward * 1000 / 3 * 0.5 - 1 for reward in (1.0, 2.0, -4.0, 10.0, 3.0)]
    assert rows.tolist() == pytest.approx(wanted)
    assert data.rewards.tolist() == [1, 2, -4, 10, 3]  # the data stays


@pytest.mark.parametrize(
    ("rewards", "ends", "words"),
    [
        ([0.1, 0.2, 0.3], [1, 2], "all 2 episodes return 0.3"),
        ([0.0, 0.0, 0.0], [1, 2], "all 2 episodes return 0"),
        ([1.0, 2.0, 3.0], [2], "there is one episode"),
    ],
)
def test_returns_without_a_range_are_refused(
    rewards: list[float], ends: list[int], words: str
) -> None:
    with pytest.raises(DataError, match=f"return_range.*{words}.*reward_normalization=none"):
        reward_transform(settings(reward_normalization="return_range"), dataset(rewards, ends))


def test_a_model_without_a_record_saw_rewards_as_they_were_logged() -> None:
    assert recorded_transform({}) == AS_LOGGED
    assert recorded_transform({"rewards": {"scale": 2.0, "shift": 1.0}}) == (2.0, 1.0)
    assert RewardTransform(1 / 3, 0.0).equals(RewardTransform(0.33333333333, 1e-12))
    assert not RewardTransform(1.0, 0.0).equals(RewardTransform(1.0, 1e-3))


def test_a_given_model_must_have_seen_the_same_rewards(tiny_file: Path, tmp_path: Path) -> None:
    normal = {"dataset": tiny_file, "dataset.reward_normalization": "return_range"}
    config = api.load_config("pretrain", "ensemble", {**normal, **MODEL})
    world = api.pretrain(config, tmp_path / "world", quiet=True).run
    facts = json.loads((world / "model" / "model.json").read_text())["plain"]
    returns = load(str(tiny_file)).returns()
    scale = 1000 / (returns.max() - returns.min())
    assert facts["rewards"] == {"scale": pytest.approx(scale), "shift": 0.0}

    given = {"model": world, "threads": 1, **QUICK, **IMAGINED}
    same = api.load_config("train", "mbpo", {**normal, **given})
    api.train(same, tmp_path / "same", quiet=True)
    copied = json.loads((tmp_path / "same" / "model" / "model.json").read_text())["plain"]
    assert copied["rewards"] == facts["rewards"]

    raw = api.load_config("train", "mbpo", {"dataset": tiny_file, **given})
    with pytest.raises(ModelError, match="this run learns from rewards as logged") as refusal:
        api.train(raw, tmp_path / "other", quiet=True)
    # What it says to set is accepted.
    advice = [word for word in str(refusal.value).replace(",", "").split() if "dataset." in word]
    said = [word for word in advice if "=" in word]
    assert len(said) == 3
    overrides = [f"{name}={value}" for name, value in {"dataset": tiny_file, **given}.items()]
    plain = [text.replace("'", "").replace(" ", "") for text in overrides]
    told = api.load_config("train", "mbpo", [*plain, *said])
    api.train(told, tmp_path / "told", quiet=True)


def test_scores_and_measures_of_the_data_are_of_the_logged_rewards(
    tiny_file: Path, tmp_path: Path
) -> None:
    given = {"dataset": tiny_file, "dataset.reward_scale": 100.0, **QUICK}
    api.train(api.load_config("train", "bc", given), tmp_path / "run", quiet=True)
    measures = json.loads((tmp_path / "run" / "dataset.json").read_text())["measures"]
    assert measures["return_mean"] == pytest.approx(load(str(tiny_file)).returns().mean())
