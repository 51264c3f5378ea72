"""The ready files come out as their table says."""

import h5py
import numpy as np
import pytest

from worldrl.data import load

TABLE = [  # sha256, rows, episodes, return mean, min, max
    ("halfcheetah-random", "2ce6fa528652", 30_000, 30, -279, -485, -126),
    ("halfcheetah-medium", "183dc3ca04ab", 100_000, 100, 5_409, -63, 5_844),
    ("halfcheetah-mixed", "62bd3421343e", 100_000, 100, 2_160, -381, 5_842),
    ("halfcheetah-expert", "754e7ac00e69", 30_000, 30, 11_534, 11_120, 11_797),
    ("halfcheetah-replay", "ff98f4a24137", 110_000, 110, 2_908, -361, 6_093),
    ("hopper-random", "413e401b987b", 30_000, 1_371, 17, 3, 170),
    ("hopper-medium", "69e01503e587", 100_000, 197, 1_655, 354, 3_690),
    ("hopper-mixed", "ae34b51e9b34", 100_000, 678, 412, 4, 3_042),
    ("hopper-expert", "a066707b4a26", 30_000, 33, 3_324, 913, 3_677),
    ("hopper-replay", "543d30a31e4b", 110_000, 1_154, 213, -2, 1_178),
]


@pytest.mark.parametrize(("name", "sha256", "rows", "episodes", "mean", "low", "high"), TABLE)
def test_mujoco_tiers(recorded, name, sha256, rows, episodes, mean, low, high):
    """A file that was built anew holds as many rows of other episodes."""
    path = recorded(f"mujoco/{name}-sb3.hdf5")
    dataset = load(str(path))
    returns = dataset.returns()
    assert dataset.num_transitions == rows
    if dataset.metadata.sha256.startswith(sha256):
        found = [round(r) for r in (returns.mean(), returns.min(), returns.max())]
        assert (dataset.num_episodes, *found) == (episodes, mean, low, high)
    assert dataset.metadata.env_id in ("HalfCheetah-v5", "Hopper-v5")
    assert dataset.metadata.warnings == ()
    assert dataset.final_known.all()
    with h5py.File(path) as file:
        assert dataset.terminated.sum() == file["terminals"][()].sum()
        out = dataset.transitions()
        assert np.array_equal(out.next_observation, file["next_observations"][()])
        assert np.array_equal(out.terminated, file["terminals"][()])


@pytest.mark.parametrize("part", ["timeouts", "next_observations"])
def test_mujoco_tier_without(recorded, tmp_path, part):
    """What is missing is recovered, up to the rows whose successor is lost."""
    path = recorded("mujoco/hopper-expert-sb3.hdf5")
    whole = load(str(path))
    with h5py.File(path) as file, h5py.File(tmp_path / "less.hdf5", "w") as less:
        for key in ("observations", "actions", "rewards", "terminals", "timeouts"):
            if key != part:
                less[key] = file[key][()]
        if part != "next_observations":
            less["next_observations"] = file["next_observations"][()]
    dataset = load(str(tmp_path / "less.hdf5"))
    lost = whole.truncated if part == "next_observations" else 0
    assert dataset.lengths.tolist() == (whole.lengths - lost).tolist()
    assert dataset.terminated.tolist() == whole.terminated.tolist()


def test_door_human_repeats_the_last_next_observation(recorded):
    dataset = load(str(recorded("adroit/door-human-dapg.hdf5")))
    assert dataset.metadata.source_rows == 6_729
    assert dataset.num_episodes == 25
    # each demonstration is cut, and its last successor is not in the file
    assert dataset.num_transitions == 6_729 - 25
    assert dataset.truncated.all()
    assert (dataset.observation_shape, dataset.action_shape) == ((39,), (28,))
    rows = dataset.transitions()
    assert (rows.next_observation != rows.observation).any(1).all()
    assert ["25" in w for w in dataset.metadata.warnings] == [True]


def test_drex_repeats_after_terminal_rows(recorded):
    dataset = load(str(recorded("demos/drex/hopper-suboptimal.hdf5")))
    assert dataset.num_transitions == 1_324
    assert dataset.terminated.all()
    assert not dataset.final_known.any()
    low, high = dataset.action_bounds()
    assert low.min() < -4
    assert high.max() > 3
