import time

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from worldrl.data import Dataset, Metadata, load
from worldrl.data.export import export
from worldrl.errors import DataError

# no denormal numbers: torch may have told this process's CPU to flush them to zero
FLOATS = st.floats(-1, 1, width=32, allow_subnormal=False)


def same(a: Dataset, b: Dataset) -> bool:
    names = (
        "observations",
        "actions",
        "rewards",
        "lengths",
        "terminated",
        "truncated",
        "final_known",
    )
    return all(
        getattr(a, n).dtype == getattr(b, n).dtype and np.array_equal(getattr(a, n), getattr(b, n))
        for n in names
    )


@st.composite
def datasets(draw):
    """Any dataset, including ones that stand still, repeat rows and lost their last observation."""
    lengths = np.array(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    n, e = int(lengths.sum()), len(lengths)
    image = draw(st.booleans())
    shape = (n + e, 2, 3) if image else (n + e, 2)
    kind = np.uint8 if image else np.float32
    elements = st.integers(0, 3) if image else st.integers(-3, 3).map(float)
    observations = draw(hnp.arrays(kind, shape, elements=elements))
    terminated = draw(hnp.arrays(bool, e))
    known = draw(hnp.arrays(bool, e)) | ~terminated
    last = np.cumsum(lengths) + np.arange(e)
    observations[last[~known]] = observations[last[~known] - 1]
    if draw(st.booleans()):
        actions = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 5)))
        bounds = (None, None)
    else:
        actions = draw(hnp.arrays(np.float32, (n, 1), elements=FLOATS))
        bounds = (np.array([-1], np.float32), np.array([1], np.float32))
    rewards = draw(hnp.arrays(np.float32, n, elements=FLOATS))
    metadata = Metadata("made", "0" * 64, "Made-v0", *bounds, behaviour="hypothesis")
    return Dataset(
        observations, actions, rewards, lengths, terminated, ~terminated, known, metadata
    )


@pytest.mark.parametrize("suffix", ["hdf5", "npz"])
@settings(max_examples=60, deadline=None)
@given(dataset=datasets())
def test_round_trip(tmp_path_factory, suffix, dataset):
    path = tmp_path_factory.mktemp("export") / f"data.{suffix}"
    export(dataset, path)
    back = load(str(path))
    assert same(dataset, back)
    assert back.metadata.env_id == "Made-v0"
    assert back.metadata.behaviour == "hypothesis"
    low = back.metadata.action_low
    assert (low is None) if dataset.discrete else low.tolist() == [-1]


@pytest.fixture
def dataset():
    random = np.random.default_rng(0)
    walk = random.normal(size=(21, 3))
    return Dataset.from_arrays(
        walk[:-1], np.zeros((20, 1)), np.ones(20), np.arange(20) == 19, None, walk[1:]
    )


@pytest.mark.parametrize("name", ["a.hdf5", "a.npz"])
def test_same_dataset_same_bytes(dataset, tmp_path, name, monkeypatch):
    export(dataset, tmp_path / name)
    later = time.time() + 100_000
    monkeypatch.setattr(time, "time", lambda: later)
    export(dataset, tmp_path / f"b{name}")
    assert (tmp_path / name).read_bytes() == (tmp_path / f"b{name}").read_bytes()


def test_layout_and_provenance(dataset, tmp_path):
    export(dataset, tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file["observations"].shape == file["next_observations"].shape == (20, 3)
        assert file["terminals"].dtype == bool
        assert file["timeouts"][()].sum() == 0
        assert file.attrs["source"] == b"arrays"
        assert file.attrs["source_sha256"].decode() == dataset.metadata.sha256
        assert file.attrs["written_by"].startswith(b"worldrl ")


def test_an_export_that_fails_leaves_the_old_file(dataset, tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    path.write_text("precious")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DataError, match=r"a.npz cannot be written.*No space left"):
        export(dataset, path)
    assert path.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_places_that_cannot_be_written(dataset, tmp_path):
    with pytest.raises(DataError, match="names no dataset format"):
        export(dataset, tmp_path / "a.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        export(dataset, tmp_path / "file" / "a.hdf5")
    export(dataset, tmp_path / "new" / "folder" / "a.hdf5")
