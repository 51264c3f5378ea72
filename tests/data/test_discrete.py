"""Datasets of discrete actions are read, told about and converted; what learns refuses them."""

from __future__ import annotations

import json
from pathlib import Path

import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from minari.data_collector import EpisodeBuffer

from worldrl.cli.main import main


@pytest.fixture(params=["CartPole-v1 collected", "own arrays", "Minari"])
def discrete(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A source of 40 transitions with actions 0 and 1."""
    path = tmp_path / "discrete.npz"
    if request.param == "CartPole-v1 collected":
        assert main(["data", "collect", "CartPole-v1", "--steps", "40", "--out", str(path)]) == 0
        return str(path)
    random = np.random.default_rng(0)
    states = random.normal(size=(41, 4)).astype(np.float32)
    actions, last = random.integers(0, 2, 40), np.arange(40) == 39
    if request.param == "own arrays":
        np.savez(
            path,
            observations=states[:-1],
            next_observations=states[1:],
            actions=actions,
            rewards=np.ones(40),
            terminals=last,
            timeouts=np.zeros(40, bool),
        )
        return str(path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    episode = EpisodeBuffer(
        id=0,
        observations=states,
        actions=actions,
        rewards=[1.0] * 40,
        terminations=last.tolist(),
        truncations=[False] * 40,
    )
    minari.create_dataset_from_buffers(
        "tiny/discrete-v0",
        [episode],
        observation_space=Box(-9, 9, (4,), np.float32),
        action_space=Discrete(2),
        algorithm_name="nobody",
    )
    return "minari:tiny/discrete-v0"


@pytest.mark.filterwarnings("ignore")
def test_what_works_with_discrete_actions_and_what_does_not(
    discrete: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["data", "info", discrete, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["transitions"], found["action_shape"]) == (40, [])
    for command in "import", "export":
        out = str(tmp_path / f"{command}.hdf5")
        assert main(["data", command, discrete, "--out", out]) == 0
    run = tmp_path / "run"
    for command in ["train", "bc"], ["train", "mopo"], ["pretrain", "ensemble"]:
        capsys.readouterr()
        assert main([*command, f"dataset={discrete}", "--out", str(run)]) == 2
        said = capsys.readouterr().err
        assert "actions are discrete, and every learner and the dynamics ensemble are of" in said
        assert "`worldrl data info`, `import`, `export` and `collect` work" in said
        assert not run.exists()
