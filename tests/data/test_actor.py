from pathlib import Path

import numpy as np
import pytest

from worldrl.data.actor import load_actor
from worldrl.errors import DataError

LOW, HIGH = np.array([-2, 0], np.float32), np.array([2, 4], np.float32)


def arrays(**changes):
    random = np.random.default_rng(0)
    made = {
        "W0": random.normal(size=(5, 3)).astype(np.float32),
        "b0": random.normal(size=5).astype(np.float32),
        "W1": random.normal(size=(2, 5)).astype(np.float32),
        "b1": random.normal(size=2).astype(np.float32),
        "squash": np.array("tanh"),
        "hidden_activation": np.array("relu"),
    }
    return {key: value for key, value in {**made, **changes}.items() if value is not None}


def save(path, **changes):
    np.savez(path, **arrays(**changes))
    return path


def observe(rows=4):
    return np.random.default_rng(1).normal(size=(rows, 3)).astype(np.float32)


def test_tanh_actor_is_scaled_to_the_bounds(tmp_path):
    actor = load_actor(save(tmp_path / "a.npz"), 3, LOW, HIGH)
    a, o = arrays(), observe()
    mean = np.maximum(o @ a["W0"].T + a["b0"], 0) @ a["W1"].T + a["b1"]
    np.testing.assert_allclose(
        actor.act(o), np.stack([2 * np.tanh(mean[:, 0]), 2 + 2 * np.tanh(mean[:, 1])], 1), rtol=1e-6
    )


@pytest.mark.parametrize("squash", ["clip", "none"])
def test_normalised_tanh_network(tmp_path, squash):
    normaliser = {
        "obs_mean": np.array([1.0, 2, 3]),
        "obs_var": np.array([4.0, 1, 0.25]),
        "eps": np.array(0.0),
        "clip_obs": np.array(1.5),
    }
    kinds = {"squash": np.array(squash), "hidden_activation": np.array("tanh")}
    actor = load_actor(save(tmp_path / "a.npz", **kinds, **normaliser), 3, LOW, HIGH)
    a, o = arrays(), observe() * 3
    unit = np.clip((o - [1, 2, 3]) / [2, 1, 0.5], -1.5, 1.5)
    mean = np.tanh(unit @ a["W0"].T + a["b0"]) @ a["W1"].T + a["b1"]
    expected = np.clip(mean, LOW, HIGH) if squash == "clip" else mean
    np.testing.assert_allclose(actor.act(o), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [False, True])
def test_sampled_actions_have_the_stated_deviation(tmp_path, layer):
    a, o = arrays(), observe(1)
    log_std = np.array([-1, -2], np.float32)
    weight = np.full((2, 5), 0.1, np.float32)
    hidden = np.maximum(o @ a["W0"].T + a["b0"], 0)
    stored = {"log_std_W": weight, "log_std_b": log_std} if layer else {"log_std": log_std}
    stored["squash"] = np.array("none")
    path = save(tmp_path / "a.npz", **stored)
    many = np.repeat(o, 20_000, 0)
    actor = load_actor(path, 3, LOW, HIGH, seed=3)
    actions = actor.act(many)
    expected = np.exp(log_std + (hidden @ weight.T)[0] * layer)
    np.testing.assert_allclose(actions.std(0), expected, rtol=0.03)
    np.testing.assert_allclose(actions.mean(0), load_actor(path, 3, LOW, HIGH).act(o)[0], atol=0.01)
    again = load_actor(path, 3, LOW, HIGH, seed=3).act(many)
    assert (again == actions).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W0": np.zeros((5, 4))}, "takes 4 numbers but is given 3"),
        ({"W1": np.zeros((2, 6))}, "takes 6 numbers but is given 5"),
        ({"W1": np.zeros((3, 5)), "b1": np.zeros(3)}, "gives 3 action dimensions"),
        ({"W0": None}, "gives 0 action dimensions"),
        ({"b0": np.zeros(4)}, "layer 0 needs"),
        ({"squash": np.array("relu")}, "'squash' is 'relu'"),
        ({"squash": None}, "'squash' is None"),
        ({"hidden_activation": np.array("gelu")}, "'hidden_activation' is 'gelu'"),
        ({"time_feature": np.array(True)}, "time"),
        ({"obs_mean": np.zeros(3)}, "obs_var"),
        ({"obs_mean": np.zeros(2), "obs_var": np.zeros(2)}, "obs_var"),
    ],
)
def test_actors_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load_actor(save(tmp_path / "a.npz", **changes), 3, LOW, HIGH)


def test_actors_that_cannot_be_sampled_or_read(tmp_path):
    with pytest.raises(DataError, match="cannot be sampled"):
        load_actor(save(tmp_path / "a.npz"), 3, LOW, HIGH, seed=0)
    (tmp_path / "b.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"b.npz cannot be read"):
        load_actor(tmp_path / "b.npz", 3, LOW, HIGH)


def test_published_actors_load():
    sizes = {"halfcheetah": (17, 6), "hopper": (11, 3)}
    files = sorted((Path(__file__).parents[2] / "tools" / "actors").glob("*.npz"))
    assert files
    for file in files:
        observed, acted = sizes[file.stem.split("-")[0]]
        one = np.ones(acted, np.float32)
        actions = load_actor(file, observed, -one, one).act(np.zeros((2, observed)))
        assert actions.shape == (2, acted)
        assert (np.abs(actions) <= 1).all()
