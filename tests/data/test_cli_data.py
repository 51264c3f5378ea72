import hashlib
import json

import h5py
import numpy as np
import pytest

from worldrl.cli.main import main
from worldrl.data import load

KEYS = {
    "transitions",
    "episodes",
    "terminated",
    "truncated",
    "observation_shape",
    "action_shape",
    "return_mean",
    "return_min",
    "return_max",
    "sha256",
}


@pytest.fixture
def worldrl(capsys):
    def run(*words, code=0):
        capsys.readouterr()
        assert main([str(word) for word in words]) == code
        return capsys.readouterr()

    return run


@pytest.fixture
def pendulum(worldrl, tmp_path):
    worldrl("data", "collect", "Pendulum-v1", "--steps", 300, "--out", tmp_path / "p.hdf5")
    return tmp_path / "p.hdf5"


def test_info_json(worldrl, pendulum):
    out = worldrl("data", "info", pendulum, "--json").out
    assert out.count("\n") == 1
    found = json.loads(out)
    assert found.keys() >= KEYS
    assert (found["transitions"], found["episodes"]) == (300, 2)
    assert (found["terminated"], found["truncated"]) == (0, 2)
    assert (found["observation_shape"], found["action_shape"]) == ([3], [1])
    assert found["return_min"] <= found["return_mean"] <= found["return_max"] < 0
    assert found["sha256"] == hashlib.sha256(pendulum.read_bytes()).hexdigest()
    assert found["env_id"] == "Pendulum-v1"
    assert (found["tq"], found["saco"]) == (None, None)


def test_info_for_people(worldrl, pendulum):
    printed = worldrl("data", "info", pendulum).out
    assert "transitions" in printed
    assert "300" in printed
    assert "Pendulum-v1" in printed


def test_info_measures(worldrl, pendulum):
    options = ("--reference", pendulum, "--simulator", "Pendulum-v1", "--json")
    found = json.loads(worldrl("data", "info", pendulum, *options).out)
    assert found["saco"] == 1
    assert found["simulator"]["agrees"] is True
    assert found["simulator"]["env_id"] == "Pendulum-v1"
    found = json.loads(worldrl("data", "info", pendulum, "--env-id", "Hopper-v5", "--json").out)
    expected = (found["return_mean"] + 20.272305) / (3234.3 + 20.272305)
    assert found["tq"] == pytest.approx(expected)


def test_simulator_on_recorded_files(worldrl, recorded):
    for file, agrees in (
        ("demos/cs285/halfcheetah-expert-cs285.hdf5", True),
        ("demos/drex/halfcheetah-suboptimal.hdf5", False),
    ):
        options = ("--simulator", "HalfCheetah-v5", "--json")
        found = json.loads(worldrl("data", "info", recorded(file), *options).out)
        assert found["simulator"]["agrees"] is agrees


def test_warnings_go_to_standard_error(worldrl, tmp_path):
    with h5py.File(tmp_path / "w.hdf5", "w") as file:
        file["observations"] = np.random.default_rng(0).normal(size=(9, 2))
        file["actions"] = np.zeros((9, 1))
        file["rewards"] = np.zeros(9)
        file["terminals"] = np.arange(9) == 8
    printed = worldrl("data", "info", tmp_path / "w.hdf5", "--json")
    assert "warning: all rewards are zero" in printed.err
    assert len(json.loads(printed.out)["warnings"]) == 3


def test_import_and_export_round_trip(worldrl, pendulum, tmp_path):
    out = tmp_path / "new" / "q.npz"
    found = json.loads(worldrl("data", "export", pendulum, "--out", out, "--json").out)
    assert found["out"] == str(out)
    assert found["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    back = tmp_path / "r.hdf5"
    worldrl("data", "import", out, "--out", back, "--env-id", "Mine-v0")
    first, second = load(str(pendulum)), load(str(back))
    assert (first.observations == second.observations).all()
    assert (first.lengths == second.lengths).all()
    assert second.metadata.env_id == "Mine-v0"


def test_import_splits_by_the_given_limit(worldrl, tmp_path):
    np.savez(
        tmp_path / "a.npz",
        observations=np.random.default_rng(0).normal(size=(20, 2)),
        actions=np.zeros((20, 1)),
        rewards=np.ones(20),
        terminated=np.zeros(20),
    )
    options = ("--out", tmp_path / "b.npz", "--max-episode-steps", 5, "--json")
    found = json.loads(worldrl("data", "import", tmp_path / "a.npz", *options).out)
    assert (found["episodes"], found["transitions"]) == (4, 16)


def test_collect_with_an_actor(worldrl, tmp_path):
    np.savez(
        tmp_path / "actor.npz",
        W0=np.zeros((1, 3)),
        b0=np.array([0.5]),
        log_std=np.array([-3.0]),
        squash="clip",
    )
    common = ("data", "collect", "Pendulum-v1", "--steps", 200)
    policy = ("--policy", tmp_path / "actor.npz")
    worldrl(*common, *policy, "--out", tmp_path / "a.npz")
    assert (load(str(tmp_path / "a.npz")).actions == 0.5).all()
    worldrl(*common, *policy, "--noise", 0.1, "--out", tmp_path / "b.npz")
    noisy = load(str(tmp_path / "b.npz"))
    assert noisy.actions.std() == pytest.approx(0.2, rel=0.2)
    assert noisy.metadata.behaviour == "actor.npz with noise 0.1"
    worldrl(*common, *policy, "--stochastic", "--out", tmp_path / "c.npz")
    sampled = load(str(tmp_path / "c.npz"))
    assert sampled.actions.std() == pytest.approx(np.exp(-3), rel=0.2)


def test_collect_with_a_run(worldrl, tmp_path, monkeypatch):
    class Saved:
        observation_size, action_low = 3, np.array([-2.0])

        def act(self, observations):
            return np.full((len(observations), 1), 1.25, np.float32)

    asked = []
    monkeypatch.setattr("worldrl.policy.load_policy", lambda path: asked.append(path) or Saved())
    (tmp_path / "run").mkdir()
    options = ("--policy", tmp_path / "run", "--steps", 5, "--out", tmp_path / "a.npz")
    worldrl("data", "collect", "Pendulum-v1", *options)
    assert asked == [tmp_path / "run"]
    assert (load(str(tmp_path / "a.npz")).actions == 1.25).all()
    refused = worldrl("data", "collect", "Pendulum-v1", *options, code=2)
    assert "a.npz exists, and nothing recorded is replaced" in refused.err
    options = (*options[:-1], tmp_path / "b.npz")
    refused = worldrl("data", "collect", "HalfCheetah-v5", *options, code=2)
    assert "maps 3 numbers to 1 actions, but HalfCheetah-v5 has 17 and 6" in refused.err


def test_collect_is_reproducible(worldrl, pendulum, tmp_path):
    again = tmp_path / "again.hdf5"
    worldrl("data", "collect", "Pendulum-v1", "--steps", 300, "--out", again)
    assert again.read_bytes() == pendulum.read_bytes()
    other = tmp_path / "other.hdf5"
    worldrl("data", "collect", "Pendulum-v1", "--steps", 300, "--out", other, "--seed", 1)
    assert other.read_bytes() != pendulum.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "{tmp}"], "is a directory"),
        (["info", "{tmp}/none.hdf5"], "does not exist"),
        (["info", "{tmp}/p.hdf5", "--simulator", "NoSuch-v0"], "NoSuch-v0"),
        (["info", "{tmp}/p.hdf5", "--simulator", "Hopper-v5"], "shape"),
        (["export", "{tmp}/p.hdf5", "--out", "{tmp}/a.csv"], "names no dataset format"),
        (["collect", "Pendulum-v1", "--steps", "5", "--out", "{tmp}/a.csv"], "names no dataset"),
        (["collect", "Pendulm-v1", "--steps", "5", "--out", "{tmp}/a.npz"], "Pendul"),
        (
            ["collect", "Pendulum-v1", "--steps", "5", "--out", "{tmp}/a.npz", "--policy", "what"],
            "neither 'random'",
        ),
        (
            ["collect", "Pendulum-v1", "--steps", "5", "--out", "{tmp}/a.npz", "--stochastic"],
            "samples actor files",
        ),
        (
            ["collect", "CartPole-v1", "--steps", "5", "--out", "{tmp}/a.npz", "--noise", "1"],
            "continuous",
        ),
    ],
)
def test_mistakes_are_one_paragraph_and_code_2(worldrl, pendulum, tmp_path, words, message):
    printed = worldrl("data", *(word.format(tmp=tmp_path) for word in words), code=2)
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
