import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldrl.data import load
from worldrl.data.readers.hdf5_heap import heap_is_endless
from worldrl.errors import DataError


def write(path: Path, drop: tuple[str, ...] = (), **replace: np.ndarray) -> Path:
    """Four episodes of five rows, the second and fourth terminal, in D4RL's layout."""
    random = np.random.default_rng(0)
    walk = random.normal(size=(4, 6, 3)).astype(np.float32)
    last = np.arange(20) % 5 == 4
    arrays = {
        "observations": walk[:, :-1].reshape(20, 3),
        "actions": random.uniform(-1, 1, (20, 2)).astype(np.float32),
        "rewards": random.normal(size=20).astype(np.float32),
        "next_observations": walk[:, 1:].reshape(20, 3),
        "terminals": last & (np.arange(20) // 5 % 2 == 1),
        "timeouts": last & (np.arange(20) // 5 % 2 == 0),
    }
    with h5py.File(path, "w") as file:
        for key, value in {**arrays, **replace}.items():
            if key not in drop:
                file[key] = value
        file.attrs["env_id"] = np.bytes_("Walk-v0")
        file["metadata/behaviour"] = np.bytes_("nobody")
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "walk.hdf5")


def test_reads_rows_and_metadata(file):
    dataset = load(str(file))
    assert dataset.lengths.tolist() == [5] * 4
    assert dataset.terminated.tolist() == [False, True, False, True]
    with h5py.File(file) as raw:
        assert (dataset.transitions().next_observation == raw["next_observations"][()]).all()
    assert dataset.metadata.env_id == "Walk-v0"
    assert dataset.metadata.behaviour == "nobody"
    assert dataset.metadata.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert dataset.metadata.source == str(file)


def test_types_of_published_files(tmp_path):
    """float64 everywhere, (N, 1) rewards and flags, no timeouts."""
    plain = load(str(write(tmp_path / "plain.hdf5")))
    with h5py.File(tmp_path / "plain.hdf5") as raw:
        odd = {
            "observations": raw["observations"][()].astype(">f8"),
            "rewards": raw["rewards"][()].astype(np.float64)[:, None],
            "terminals": raw["terminals"][()].astype(np.float32)[:, None],
        }
    dataset = load(str(write(tmp_path / "odd.hdf5", drop=("timeouts",), **odd)))
    assert (dataset.observations == plain.observations).all()
    assert dataset.observations.dtype == np.float32
    assert (dataset.rewards == plain.rewards).all()
    assert dataset.terminated.tolist() == plain.terminated.tolist()


def test_max_episode_steps_splits_files_without_timeouts(tmp_path):
    path = write(tmp_path / "bare.hdf5", drop=("timeouts", "next_observations"))
    assert load(str(path), max_episode_steps=5).lengths.tolist() == [4, 5, 4, 5]
    assert load(str(path)).lengths.tolist() == [10, 10]


def test_given_environment_fills_in_or_replaces(tmp_path, file):
    assert load(str(file), env_id="Other-v1").metadata.env_id == "Other-v1"
    assert "Walk-v0" in load(str(file), env_id="Other-v1").metadata.warnings[0]
    assert load(str(file), env_id="Walk-v0").metadata.warnings == ()


def test_strings_of_variable_length(file):
    with h5py.File(file, "r+") as raw:
        raw.attrs["env_id"] = "Wälk-v0"
        raw.attrs["behaviour"] = "somebody"
    metadata = load(str(file)).metadata
    assert (metadata.env_id, metadata.behaviour) == ("Wälk-v0", "somebody")


def test_stored_bounds(file):
    with h5py.File(file, "r+") as raw:
        raw.attrs["action_low"], raw.attrs["action_high"] = [-1.0, -1.0], [1.0, 2.0]
    assert load(str(file)).metadata.action_high.tolist() == [1, 2]


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals"])
def test_missing_key(tmp_path, key):
    path = write(tmp_path / "short.hdf5", drop=(key,))
    with pytest.raises(DataError, match=f"short.hdf5 has no key '{key}'"):
        load(str(path))


def test_misspelt_key_is_suggested(tmp_path, file):
    with h5py.File(file, "r+") as raw:
        raw.move("observations", "observation")
    with pytest.raises(DataError, match="did you mean 'observation'"):
        load(str(file))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
def test_truncated_file(tmp_path, file, share):
    content = file.read_bytes()
    broken = tmp_path / "broken.hdf5"
    broken.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"broken.hdf5 cannot be read as HDF5.*cut short"):
        load(str(broken))


def test_other_files_and_places(tmp_path):
    text = tmp_path / "text.hdf5"
    text.write_text("observations, actions")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        load(str(text))
    folder = tmp_path / "folder.hdf5"
    folder.mkdir()
    with pytest.raises(DataError, match="is a directory"):
        load(str(folder))
    with pytest.raises(DataError, match="does not exist"):
        load(str(tmp_path / "nothing.hdf5"))
    with pytest.raises(DataError, match="names no dataset format"):
        load(str(write(tmp_path / "data.bin")))
    with pytest.raises(DataError, match="did you mean 'd4rl'"):
        load("d4rI:hopper-medium-v2")


def test_nan_names_file_key_and_row(tmp_path):
    rewards = np.zeros(20)
    rewards[13] = np.nan
    with pytest.raises(DataError, match=r"nan.hdf5: 'rewards' row 13 is nan"):
        load(str(write(tmp_path / "nan.hdf5", rewards=rewards)))


def test_lengths_and_flags_use_the_names_of_the_file(tmp_path):
    with pytest.raises(DataError, match="'terminals' has 19 rows"):
        load(str(write(tmp_path / "a.hdf5", terminals=np.zeros(19, bool))))
    with pytest.raises(DataError, match="'timeouts' row 0 is 2"):
        load(str(write(tmp_path / "b.hdf5", timeouts=np.full(20, 2))))


def test_things_that_are_no_arrays(tmp_path):
    path = write(tmp_path / "a.hdf5", drop=("rewards",))
    with h5py.File(path, "r+") as raw:
        raw.create_group("rewards")
    with pytest.raises(DataError, match="'rewards' is not an array"):
        load(str(path))
    with pytest.raises(DataError, match="must hold numbers"):
        load(str(write(tmp_path / "b.hdf5", actions=np.array([b"left"] * 20))))
    with h5py.File(path, "r+") as raw:
        del raw["rewards"]
        raw["rewards"] = h5py.Empty("f4")
    with pytest.raises(DataError, match="'rewards' is not an array"):
        load(str(path))


@pytest.mark.parametrize("kind", ["external", "soft", "dangling", "virtual", "external storage"])
def test_nothing_outside_the_file_is_read(tmp_path, kind):
    secret = write(tmp_path / "secret.hdf5")
    path = write(tmp_path / "linked.hdf5", drop=("rewards",))
    with h5py.File(path, "r+") as raw:
        if kind == "external":
            raw["rewards"] = h5py.ExternalLink(str(secret), "rewards")
        elif kind == "soft":
            raw["rewards"] = h5py.SoftLink("/terminals")
        elif kind == "dangling":
            raw["rewards"] = h5py.SoftLink("/nothing")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((20,), "f4")
            layout[:] = h5py.VirtualSource(str(secret), "rewards", (20,))
            raw.create_virtual_dataset("rewards", layout)
        else:
            raw.create_dataset("rewards", (20,), "f4", external=[(str(secret), 0, 80)])
    with pytest.raises(DataError, match=r"'rewards'.*(link|another file)"):
        load(str(path))


def test_linked_metadata_is_left_out(tmp_path, file):
    secret = write(tmp_path / "secret.hdf5")
    with h5py.File(file, "r+") as raw:
        del raw["metadata/behaviour"]
        raw["metadata/behaviour"] = h5py.ExternalLink(str(secret), "metadata/behaviour")
    assert load(str(file)).metadata.behaviour is None


def test_sizes_that_the_file_cannot_hold_are_not_allocated(tmp_path):
    path = write(tmp_path / "huge.hdf5", drop=("rewards",))
    with h5py.File(path, "r+") as raw:
        raw.create_dataset("rewards", (1 << 40,), "f8", chunks=(1 << 10,))
    with pytest.raises(DataError, match="'rewards' claims 8796093022208 bytes"):
        load(str(path))


def test_damage_that_would_loop_for_ever(file):
    with h5py.File(file, "r+") as raw:
        raw.attrs["behaviour"] = "a string of variable length"
    assert not heap_is_endless(file)
    content = bytearray(file.read_bytes())
    heap = content.find(b"GCOL")
    content[heap + 24 : heap + 32] = (9999).to_bytes(8, "little")  # the first object's size
    assert not heap_is_endless(file)
    content[heap + 24 : heap + 32] = (1024).to_bytes(8, "little")  # leads into zeros
    file.write_bytes(content)
    assert heap_is_endless(file)
    with pytest.raises(DataError, match="strings is damaged"):
        load(str(file))


FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def refused_or_valid(path: Path) -> bool:
    """A DataError of one paragraph that names the file, or a dataset without NaN."""
    try:
        dataset = load(str(path))
    except DataError as error:
        return str(path) in str(error) and "\n" not in str(error)
    rows = dataset.transitions()
    return (
        len(rows.reward) == dataset.num_transitions > 0
        and bool(np.isfinite(rows.observation).all())
        and bool(np.isfinite(rows.next_observation).all())
        and bool(np.isfinite(rows.action).all())
        and bool(np.isfinite(rows.reward).all())
    )


@FUZZ
@given(st.data())
def test_fuzz_damaged_bytes(tmp_path, data):
    content = bytearray(write(tmp_path / "good.hdf5").read_bytes())
    for _ in range(data.draw(st.integers(1, 6), "damages")):
        at = data.draw(st.integers(0, len(content) - 1), "at")
        new = data.draw(st.binary(min_size=1, max_size=8), "bytes")
        content[at : at + len(new)] = new
    cut = data.draw(st.none() | st.integers(0, len(content)), "cut")
    damaged = tmp_path / "damaged.hdf5"
    damaged.write_bytes(content[:cut])
    assert refused_or_valid(damaged)


TYPES = st.sampled_from(["f2", "f4", ">f8", "i1", "i8", "u1", "u8", "?", "S3", "c8", "O", "V4"])
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@FUZZ
@given(st.data())
def test_fuzz_odd_arrays(tmp_path, data):
    path = tmp_path / "odd.hdf5"
    rows = data.draw(st.integers(0, 5), "rows")
    sizes = {"observations": (rows, 2), "actions": (rows, 1), "next_observations": (rows, 2)}
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    with h5py.File(path, "w") as file:
        for key in ("observations", "actions", "rewards", "terminals", "timeouts", *sizes):
            if key in file or data.draw(st.integers(0, 9), f"drop {key}") == 0:
                continue
            usual = data.draw(st.integers(0, 3), f"odd {key}") > 0
            shape = sizes.get(key, (rows,)) if usual else data.draw(SHAPES, f"shape of {key}")
            kind = "f4" if usual else data.draw(TYPES, f"type of {key}")
            if kind == "O":
                file.create_dataset(key, shape, h5py.string_dtype())
            elif kind == "V4":
                file[key] = np.zeros(shape, [("a", "i2"), ("b", "i2")])
            else:
                file[key] = random.integers(0, 2, shape).astype(kind)
    assert refused_or_valid(path)
