import json
import shutil

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from minari.data_collector import EpisodeBuffer

from worldrl.data import load
from worldrl.errors import DataError


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def create(name, observation_space, action_space, lengths=(4, 3), **options):
    """Two episodes: one that terminates, one that is cut."""
    random = np.random.default_rng(0)

    def observe(length):
        if isinstance(observation_space, Dict):
            return {
                key: random.normal(size=(length + 1, *space.shape)).astype(np.float32)
                for key, space in observation_space.spaces.items()
            }
        values = random.normal(size=(length + 1, *observation_space.shape)) * 50 + 100
        return values.astype(observation_space.dtype)

    def act(length):
        if isinstance(action_space, Discrete):
            return random.integers(0, action_space.n, length)
        return random.uniform(-1, 1, (length, *action_space.shape)).astype(np.float32)

    buffers = [
        EpisodeBuffer(
            id=number,
            observations=observe(length),
            actions=act(length),
            rewards=list(range(length)),
            terminations=[number == 0 and k == length - 1 for k in range(length)],
            truncations=[number > 0 and k == length - 1 for k in range(length)],
        )
        for number, length in enumerate(lengths)
    ]
    minari.create_dataset_from_buffers(
        name,
        buffers,
        observation_space=observation_space,
        action_space=action_space,
        algorithm_name="nobody",
        **options,
    )
    return buffers


@pytest.mark.filterwarnings("ignore")
def test_reads_episodes(folder, monkeypatch):
    space = Box(-np.inf, np.inf, (3,), np.float32)
    buffers = create("tiny/walk-v0", space, Box(-1, 1, (2,), np.float32))
    monkeypatch.setattr(gymnasium, "make", lambda *_, **__: pytest.fail("built an environment"))
    dataset = load("minari:tiny/walk-v0")
    assert dataset.lengths.tolist() == [4, 3]
    assert dataset.terminated.tolist() == [True, False]
    assert dataset.final_known.all()
    for episode, buffer in enumerate(buffers):
        assert (dataset.episode(episode).observations == buffer.observations).all()
        assert (dataset.episode(episode).actions == buffer.actions).all()
    assert dataset.metadata.action_low.tolist() == [-1, -1]
    assert dataset.metadata.behaviour == "nobody"
    assert dataset.metadata.source == "minari:tiny/walk-v0"
    assert len(dataset.metadata.sha256) == 64


@pytest.mark.filterwarnings("ignore")
def test_a_stored_environment_is_named_and_never_built(folder):
    create(
        "tiny/pendulum-v0",
        Box(-np.inf, np.inf, (3,), np.float32),
        Box(-1, 1, (1,), np.float32),
        env="Pendulum-v1",
    )
    metadata = folder / "tiny/pendulum-v0/data/metadata.json"
    stored = json.loads(metadata.read_text())
    spec = json.loads(stored["env_spec"])
    spec["entry_point"] = "a_module_that_must_not_be_imported:Environment"
    metadata.write_text(json.dumps({**stored, "env_spec": json.dumps(spec)}))
    assert load("minari:tiny/pendulum-v0").metadata.env_id == "Pendulum-v1"


@pytest.mark.filterwarnings("ignore")
def test_dictionaries_are_joined_and_actions_may_be_discrete(folder):
    space = Dict({"b": Box(-1, 1, (2, 2), np.float32), "a": Box(-1, 1, (1,), np.float32)})
    buffers = create("tiny/parts-v0", space, Discrete(3))
    dataset = load("minari:tiny/parts-v0")
    assert dataset.observation_shape == (5,)
    assert dataset.discrete
    first = dataset.episode(0)
    assert (first.observations[:, 0] == buffers[0].observations["a"][:, 0]).all()
    assert (first.observations[:, 1:] == buffers[0].observations["b"].reshape(5, 4)).all()


@pytest.mark.filterwarnings("ignore")
def test_images_stay_bytes(folder):
    space = Box(0, 255, (8, 8, 3), np.uint8)
    create("tiny/frames-v0", space, Discrete(3), jpeg_encoding=False)
    dataset = load("minari:tiny/frames-v0")
    assert dataset.observations.dtype == np.uint8
    assert dataset.observations.shape == (9, 8, 8, 3)


@pytest.mark.filterwarnings("ignore")
def test_links_into_other_files_are_refused(folder):
    create("tiny/walk-v0", Box(-9, 9, (3,), np.float32), Box(-1, 1, (2,), np.float32))
    file = folder / "tiny/walk-v0/data/main_data.hdf5"
    with h5py.File(file, "r+") as raw:
        del raw["episode_1/rewards"]
        raw["episode_1/rewards"] = h5py.ExternalLink("/etc/passwd", "rewards")
    with pytest.raises(DataError, match="'episode_1/rewards' links to /etc/passwd"):
        load("minari:tiny/walk-v0")


@pytest.mark.filterwarnings("ignore")
def test_values_kept_in_other_files_are_refused(folder):
    create("tiny/walk-v0", Box(-9, 9, (3,), np.float32), Box(-1, 1, (2,), np.float32))
    with h5py.File(folder / "tiny/walk-v0/data/main_data.hdf5", "r+") as raw:
        rows = len(raw["episode_1/rewards"])
        del raw["episode_1/rewards"]
        layout = h5py.VirtualLayout((rows,), "f8")
        layout[:] = h5py.VirtualSource("/etc/passwd", "rewards", (rows,))
        raw["episode_1"].create_virtual_dataset("rewards", layout)
    with pytest.raises(DataError, match="'episode_1/rewards' are stored in another file"):
        load("minari:tiny/walk-v0")


@pytest.mark.filterwarnings("ignore")
def test_damage(folder):
    create("tiny/walk-v0", Box(-9, 9, (3,), np.float32), Box(-1, 1, (2,), np.float32))
    file = folder / "tiny/walk-v0/data/main_data.hdf5"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        load("minari:tiny/walk-v0")
    shutil.rmtree(folder / "tiny/walk-v0/data")
    (folder / "tiny/walk-v0/data").mkdir()
    with pytest.raises(DataError, match="cannot be opened"):
        load("minari:tiny/walk-v0")


@pytest.mark.filterwarnings("ignore")
def test_missing_dataset_without_a_network(folder, monkeypatch):
    def offline(_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(minari, "download_dataset", offline)
    with pytest.raises(DataError, match=r"cannot be downloaded: no route.*tiny/none-v0"):
        load("minari:tiny/none-v0")
