import numpy as np
import pytest

from worldrl.data import load
from worldrl.errors import DataError


def arrays():
    random = np.random.default_rng(0)
    walk = random.normal(size=(21, 3))
    return {
        "observations": walk[:-1],
        "actions": random.uniform(-1, 1, (20, 2)),
        "rewards": random.normal(size=20),
        "terminated": np.arange(20) == 9,
        "truncated": np.arange(20) == 19,
        "next_observations": np.concatenate([walk[1:10], [[9, 9, 9]], walk[11:]]),
        "env_id": np.array("Walk-v0"),
    }


def test_reads_arrays_and_metadata(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(), action_low=-1, action_high=1)
    dataset = load(str(tmp_path / "a.npz"))
    assert dataset.lengths.tolist() == [10, 10]
    assert dataset.metadata.env_id == "Walk-v0"
    assert dataset.metadata.action_low.tolist() == [-1, -1]


def test_names_of_d4rl_and_compression(tmp_path):
    renamed = arrays()
    renamed["terminals"], renamed["timeouts"] = renamed.pop("terminated"), renamed.pop("truncated")
    np.savez_compressed(tmp_path / "a.npz", **renamed)
    assert load(str(tmp_path / "a.npz")).terminated.tolist() == [True, False]


def test_missing_key(tmp_path):
    short = arrays()
    short["reward"] = short.pop("rewards")
    np.savez(tmp_path / "a.npz", **short)
    with pytest.raises(DataError, match=r"no key 'rewards' \(did you mean 'reward'"):
        load(str(tmp_path / "a.npz"))


def test_python_objects_are_refused(tmp_path):
    bad = arrays()
    bad["rewards"] = np.array([{"a": 1}] * 20, object)
    np.savez(tmp_path / "a.npz", **bad, allow_pickle=True)
    with pytest.raises(DataError, match=r"a.npz cannot be read.*refused"):
        load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("size", [0, 10, 1000])
def test_cut_short(tmp_path, size):
    np.savez(tmp_path / "a.npz", **arrays())
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "b.npz").write_bytes(content[:size])
    with pytest.raises(DataError, match=r"b.npz is not a NumPy archive"):
        load(str(tmp_path / "b.npz"))


def test_damage_inside(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays())
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[300] ^= 0xFF
    (tmp_path / "b.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"b.npz cannot be read"):
        load(str(tmp_path / "b.npz"))


def test_a_single_array_is_no_archive(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="not a NumPy archive"):
        load(str(tmp_path / "a.npz"))
