from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldrl.data import Dataset, load
from worldrl.data.action_free import concatenate, context_rows, load_action_free
from worldrl.errors import DataError


def arrays(**replace):
    """Two episodes of four rows, the second terminal; None leaves an array out."""
    random = np.random.default_rng(0)
    walk = random.normal(size=(2, 5, 3)).astype(np.float32)
    found = {
        "observations": walk[:, :-1].reshape(8, 3),
        "actions": random.uniform(-1, 1, (8, 2)).astype(np.float32),
        "rewards": random.normal(size=8).astype(np.float32),
        "next_observations": walk[:, 1:].reshape(8, 3),
        "terminals": np.arange(8) == 7,
        "timeouts": np.arange(8) == 3,
        **replace,
    }
    return {key: value for key, value in found.items() if value is not None}


def write(path: Path, **replace) -> str:
    if path.suffix == ".npz":
        np.savez(path, **arrays(**replace))
    else:
        with h5py.File(path, "w") as file:
            for key, value in arrays(**replace).items():
                file[key] = value
    return str(path)


def with_nan(*rows):
    actions = arrays()["actions"].copy()
    actions[list(rows)] = np.nan
    return actions


both_formats = pytest.mark.parametrize("suffix", ["hdf5", "npz"])


@both_formats
def test_a_file_without_actions(tmp_path, suffix):
    free = load_action_free(write(tmp_path / f"a.{suffix}", actions=None))
    whole = load(write(tmp_path / f"b.{suffix}"))
    assert free.actions is None
    assert not free.known.any()
    assert (free.observations == whole.observations).all()
    assert free.lengths.tolist() == [4, 4]
    assert free.terminated.tolist() == [False, True]
    filled = free.with_actions(whole.actions)
    assert (filled.actions == whole.actions).all()
    assert (filled.rewards == whole.rewards).all()


@both_formats
def test_actions_missing_in_some_rows(tmp_path, suffix):
    known = np.arange(8) != 5
    actions = with_nan(2)
    actions[5] = 77  # the mask says that it is not to be trusted
    free = load_action_free(write(tmp_path / f"a.{suffix}", actions=actions, action_known=known))
    assert free.known.tolist() == [True, True, False, True, True, False, True, True]
    filled = free.with_actions(np.full((8, 2), 9, np.float32)).actions
    assert (filled[[2, 5]] == 9).all()
    others = [0, 1, 3, 4, 6, 7]
    assert (filled[others] == arrays()["actions"][others]).all()


def test_rows_dropped_without_a_successor_keep_masks_in_step(tmp_path):
    source = write(tmp_path / "a.hdf5", actions=with_nan(3, 4), next_observations=None)
    free = load_action_free(source)
    assert free.lengths.tolist() == [3, 4]  # the last action of the cut episode is dropped
    assert free.known.tolist() == [True, True, True, False, True, True, True]
    assert free.final_known.tolist() == [True, False]


@both_formats
def test_everywhere_else_missing_actions_are_refused_and_the_remedy_named(tmp_path, suffix):
    for name, change in {
        "none": {"actions": None},
        "nan": {"actions": with_nan(2)},
        "mask": {"action_known": np.arange(8) != 5},
    }.items():
        source = write(tmp_path / f"{name}.{suffix}", **change)
        with pytest.raises(DataError, match="worldrl data label") as error:
            load(source)
        assert source in str(error.value)
    assert load(write(tmp_path / f"all.{suffix}", action_known=np.ones(8))).num_transitions == 8
    with pytest.raises(DataError, match="'action_known' has 7 rows"):
        load(write(tmp_path / f"short.{suffix}", action_known=np.ones(7)))
    with pytest.raises(DataError, match=r"no key 'rewards'(?!.*data label)"):
        load(write(tmp_path / f"r.{suffix}", rewards=None))


def test_arrays_with_missing_actions_name_the_remedy():
    with pytest.raises(DataError, match=r"'actions' row 2, column 0 is nan.*worldrl data label"):
        Dataset.from_arrays(np.eye(4), with_nan(2)[:4], np.ones(4), [0, 0, 0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "holds an action in every row"),
        ({"action_known": np.ones(8, bool)}, "holds an action in every row"),
        ({"actions": None, "action_known": np.zeros(8)}, "'action_known' but no 'actions'"),
        ({"actions": with_nan(1)[:7]}, "'actions' has 7 rows"),
        ({"action_known": np.zeros(3)}, "'action_known' has 3 rows"),
        ({"action_known": np.full(8, 2)}, "'action_known' row 0 is 2"),
        ({"actions": np.zeros(8, int)}, r"shape \(8,\).*continuous"),
        ({"actions": np.zeros((8, 1), int)}, r"shape \(8, 1\).*continuous"),
        ({"actions": np.where(np.arange(16).reshape(8, 2) == 5, np.nan, 0)}, "row 2, column 1 is"),
        ({"actions": None, "rewards": None}, "no key 'rewards'"),
        ({"actions": None, "rewards": np.full(8, np.nan)}, "'rewards' row 0 is nan"),
        ({"actions": None, "observations": np.zeros(8)}, r"'observations' has shape \(8,\)"),
        ({"actions": None, "observations": np.zeros((9, 3))}, "has 8 rows but .* has 9"),
    ],
)
def test_mistakes_name_file_and_array(tmp_path, change, message):
    source = write(tmp_path / "bad.hdf5", **change)
    with pytest.raises(DataError, match=message) as error:
        load_action_free(source)
    assert source in str(error.value)
    assert "\n" not in str(error.value)


def test_actions_that_are_a_link_are_not_taken_for_missing(tmp_path):
    source = write(tmp_path / "a.hdf5", actions=None)
    with h5py.File(source, "r+") as file:
        file["actions"] = h5py.SoftLink("/nothing")
    with pytest.raises(DataError, match="'actions' is a link"):
        load_action_free(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("d4rl:hopper-medium-v2", "as a .hdf5 or .npz file"),
        ("minari:mujoco/hopper/medium-v0", "as a .hdf5 or .npz file"),
        ("nowhere.hdf5", "does not exist"),
        ("{tmp}", "is a directory"),
    ],
)
def test_other_sources(tmp_path, source, message):
    with pytest.raises(DataError, match=message):
        load_action_free(source.format(tmp=tmp_path))


@pytest.mark.parametrize("history", [0, 1, 3])
def test_history_before_an_episode_is_its_first_observation(history):
    lengths = np.array([3, 1, 2])
    tags = [(e, t) for e, n in enumerate(lengths) for t in range(n + 1)]  # as in storage
    expected = [
        [(e, max(t + offset, 0)) for offset in range(-history, 2)]
        for e, n in enumerate(lengths)
        for t in range(n)
    ]
    found = context_rows(lengths, history)
    assert found.shape == (6, history + 2)
    assert [[tags[row] for row in window] for window in found] == expected


def test_concatenate(tmp_path):
    first = load(write(tmp_path / "a.hdf5"), env_id="Walk-v0")
    second = first.subset([1])
    joined = concatenate(first, second)
    assert joined.num_episodes == 3
    assert joined.terminated.tolist() == [False, True, True]
    last, same = joined.episode(2), first.episode(1)
    assert (last.observations == same.observations).all()
    assert (last.actions == same.actions).all()
    assert joined.metadata.env_id == "Walk-v0"
    assert joined.metadata.sha256 not in ("", first.metadata.sha256)


SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
TYPES = st.sampled_from(["f4", "f8", "i8", "u1", "?", "S3", "c8"])


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_fuzz_odd_arrays(tmp_path, data):
    """A DataError of one paragraph that names the file, or trajectories that fit together."""
    path = tmp_path / "odd.npz"
    rows = data.draw(st.integers(0, 4), "rows")
    sizes = {"observations": (rows, 2), "actions": (rows, 2), "next_observations": (rows, 2)}
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    found = {}
    for key in ("observations", "actions", "rewards", "terminals", "timeouts", "action_known",
                "next_observations"):  # fmt: skip
        if data.draw(st.integers(0, 5), f"drop {key}") == 0:
            continue
        usual = data.draw(st.integers(0, 5), f"odd {key}") > 0
        shape = sizes.get(key, (rows,)) if usual else data.draw(SHAPES, f"shape of {key}")
        kind = "f4" if usual else data.draw(TYPES, f"type of {key}")
        values = random.integers(0, 2, shape).astype(kind)
        if key == "actions" and values.dtype.kind == "f" and values.ndim == 2:
            values[random.random(len(values)) < 0.5] = np.nan
        found[key] = values
    np.savez(path, **found)
    assert refused_or_valid(path)


def test_a_last_row_that_is_dropped_may_be_the_only_one_to_label(tmp_path):
    path = tmp_path / "cut.npz"
    actions = np.zeros((3, 2), np.float32)
    actions[2] = np.nan  # its episode is cut there, and what it led to is not stored
    np.savez(path, observations=np.eye(3, dtype=np.float32), actions=actions, rewards=np.ones(3),
             terminals=np.zeros(3), timeouts=np.array([0, 0, 1.0]))  # fmt: skip
    with pytest.raises(DataError, match="in every row that can be used"):
        load_action_free(str(path))


def refused_or_valid(path: Path) -> bool:
    try:
        free = load_action_free(str(path))
    except DataError as error:
        return str(path) in str(error) and "\n" not in str(error)
    width = 2 if free.actions is None else free.actions.shape[1]
    filled = free.with_actions(np.zeros((len(free.rewards), width), np.float32))
    return (
        not free.known.all()
        and len(free.known) == len(free.rewards) == free.lengths.sum() > 0
        and bool(np.isfinite(filled.actions).all())
        and bool(np.isfinite(filled.observations).all())
    )
