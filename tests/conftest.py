"""What several tests share: where the ready data is, and tiny data of our own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from worldrl.data.dataset import Dataset

REPOSITORY = Path(__file__).resolve().parents[1]

# A busy machine is no defect: how long an example takes is not what these tests are about.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
torch.set_num_threads(1)  # tests run in parallel processes; tiny matrices gain nothing from threads


@pytest.fixture(autouse=True)
def numerical_settings() -> Iterator[None]:
    """A run in this process sets threads, determinism and denormals; the next test starts plain."""
    yield
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of ready datasets; tests that need it are skipped where there is none."""
    stated = os.environ.get("WORLDRL_TEST_DATA")
    if not stated:
        pytest.skip(
            "no test data: set WORLDRL_TEST_DATA to a folder as tools/make_datasets writes it"
        )
    if not Path(stated).is_dir():
        pytest.fail(f"WORLDRL_TEST_DATA names {stated}, which is no folder")
    return Path(stated)


@pytest.fixture
def recorded(test_data: Path) -> Callable[[str], Path]:
    """A file of that folder by its path in it; the test is skipped where it is not there."""

    def find(name: str) -> Path:
        if not (test_data / name).exists():
            pytest.skip(f"{test_data / name} is not there")
        return test_data / name

    return find


@pytest.fixture
def tiny_dataset() -> Dataset:
    """Twelve episodes of 10 to 21 steps of a linear system; 4 observations, 2 actions."""
    return linear_dataset(np.random.default_rng(0), episodes=12)


@pytest.fixture
def tiny_file(tmp_path: Path, tiny_dataset: Dataset) -> Path:
    """``tiny_dataset`` as an .npz file."""
    rows = tiny_dataset.transitions()
    last = np.diff(rows.episode, append=-1) != 0
    path = tmp_path / "tiny.npz"
    np.savez(
        path,
        observations=rows.observation,
        actions=rows.action,
        rewards=rows.reward,
        next_observations=rows.next_observation,
        terminals=rows.terminated,
        timeouts=last & ~rows.terminated,
    )
    return path


def linear_dataset(random: np.random.Generator, episodes: int) -> Dataset:
    """Episodes of ``s' = 0.9 s + B a + noise`` with reward ``-|s|``; every third terminates."""
    drive = random.normal(size=(2, 4)) * 0.3
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("s", "a", "r", "d", "c", "n")}
    for episode in range(episodes):
        length = 10 + episode
        state = random.normal(size=4)
        for step in range(length):
            action = random.uniform(-1, 1, size=2)
            following = 0.9 * state + action @ drive + 0.01 * random.normal(size=4)
            end = step == length - 1
            values = (state, action, -np.abs(state).sum(), end and episode % 3 == 0)
            for name, value in zip(
                "sardcn", (*values, end and episode % 3 != 0, following), strict=True
            ):
                rows[name].append(np.asarray(value))
            state = following
    stacked = {name: np.stack(values) for name, values in rows.items()}
    return Dataset.from_arrays(
        stacked["s"], stacked["a"], stacked["r"], stacked["d"], stacked["c"], stacked["n"],
        action_low=-1.0, action_high=1.0, source="tiny linear system",
    )  # fmt: skip
