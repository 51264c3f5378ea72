import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.spaces import Dict as DictSpace

from worldrl.data import load
from worldrl.data.collect import collect
from worldrl.data.export import export
from worldrl.errors import DataError


class Counter(gymnasium.Env):
    """Observes (episode, step); ends after ``length`` steps, terminal in odd episodes.

    The observation array is written to in place, as some environments do.
    """

    def __init__(self, length=4, restarts=None, space=None, actions=None):
        self.observation_space = space or Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = actions or Box(-2, 4, (1,), np.float32)
        self.length, self.restarts = length, restarts
        self.episode, self.seen, self.closed = -1, np.zeros(2), False
        self.actions: list[float] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.seen[:] = self.episode, 0
        return self.seen, {}

    def step(self, action):
        self.actions.append(float(np.asarray(action).ravel()[0]))
        self.seen[1] += 1
        reward = float(self.seen[1])
        done = self.seen[1] == self.length
        terminated, truncated = done and self.episode % 2 == 1, done and self.episode % 2 == 0
        if done and self.restarts:
            info = {self.restarts: self.seen.copy()}
            self.reset()
            return self.seen, reward, terminated, truncated, info
        return self.seen, reward, terminated, truncated, {}

    def close(self):
        self.closed = True


class Constant:
    def __init__(self, value):
        self.value = np.asarray(value)

    def act(self, observations):
        return np.repeat(self.value[None], len(observations), 0)


@pytest.mark.parametrize("restarts", [None, "final_observation", "final_obs"])
def test_episodes_keep_their_true_last_observation(restarts):
    environment = Counter(restarts=restarts)
    dataset = collect(lambda: environment, 10, seed=1)
    assert dataset.lengths.tolist() == [4, 4, 2]
    assert dataset.terminated.tolist() == [False, True, False]
    assert dataset.truncated.tolist() == [True, False, True]  # the last one was cut by us
    assert dataset.final_known.all()
    for number, length in enumerate([4, 4, 2]):
        episode = dataset.episode(number)
        assert episode.observations.tolist() == [[number, k] for k in range(length + 1)]
        assert episode.rewards.tolist() == [k + 1 for k in range(length)]
    np.testing.assert_allclose(dataset.actions[:, 0], environment.actions)
    assert environment.closed


def test_metadata():
    dataset = collect(lambda: Counter(), 4, policy=Constant([1.0]), behaviour="always one")
    assert dataset.metadata.behaviour == "always one"
    assert dataset.metadata.action_low.tolist() == [-2]
    assert dataset.metadata.action_high.tolist() == [4]
    assert dataset.metadata.env_id == "Counter"
    assert collect(lambda: Counter(), 4).metadata.behaviour == "random"


def test_same_seed_same_data():
    first, same, other = (collect(lambda: Counter(), 50, seed=s) for s in (3, 3, 4))
    assert first.metadata.sha256 == same.metadata.sha256 != other.metadata.sha256
    assert first.actions.min() >= -2
    assert first.actions.max() <= 4
    assert first.actions.std() > 1


def test_noise_is_in_units_of_half_the_range_and_clipped():
    still = Constant([1.0])
    dataset = collect(lambda: Counter(length=99), 5_000, policy=still, noise=0.1)
    assert dataset.actions.std() == pytest.approx(0.3, rel=0.05)
    assert dataset.actions.mean() == pytest.approx(1.0, abs=0.02)
    wild = collect(lambda: Counter(length=99), 1_000, policy=still, noise=2.0).actions
    assert (wild.min(), wild.max()) == (-2, 4)


def test_discrete_actions_and_images():
    frames = Box(0, 255, (2, 1), np.uint8)

    class Frames(Counter):
        def reset(self, **options):
            observation, info = super().reset(**options)
            return observation.astype(np.uint8)[:, None], info

        def step(self, action):
            assert isinstance(action, int)
            observation, *rest = super().step(action)
            return observation.astype(np.uint8)[:, None], *rest

    dataset = collect(lambda: Frames(space=frames, actions=Discrete(3)), 9)
    assert dataset.observations.dtype == np.uint8
    assert dataset.observation_shape == (2, 1)
    assert dataset.discrete
    assert set(dataset.actions) <= {0, 1, 2}
    assert dataset.metadata.action_low is None
    with pytest.raises(DataError, match="noise needs continuous"):
        collect(lambda: Frames(space=frames, actions=Discrete(3)), 9, noise=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": Discrete(3)}, "FlattenObservation"),
        ({"space": DictSpace({"a": Box(0, 1, (2,))})}, "FlattenObservation"),
        ({"actions": MultiDiscrete([2, 2])}, "must be Box"),
        ({"actions": Discrete(2, start=1)}, "must be Box"),
    ],
)
def test_spaces_that_cannot_be_stored(changes, message):
    with pytest.raises(DataError, match=message):
        collect(lambda: Counter(**changes), 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": Constant([1.0, 2.0])}, r"shape \(2,\), not \(1,\)"),
        ({"policy": Constant([np.nan])}, "action at step 0 is not finite"),
        ({"noise": -1}, "at least 0"),
        ({"noise": np.nan}, "at least 0"),
    ],
)
def test_policies_that_do_not_fit(options, message):
    environment = Counter()
    with pytest.raises(DataError, match=message):
        collect(lambda: environment, 5, **options)
    with pytest.raises(DataError, match="at least one"):
        collect(lambda: environment, 0)


def test_observations_that_are_not_finite_close_the_environment():
    class Broken(Counter):
        def step(self, action):
            observation, reward, *rest = super().step(action)
            return observation / (0.0 if observation[1] == 3 else 1.0), reward, *rest

    environment = Broken()
    with np.errstate(all="ignore"), pytest.raises(DataError, match="observation at step 2"):
        collect(lambda: environment, 5)
    assert environment.closed


def test_progress_is_reported():
    seen = []
    collect(lambda: Counter(), 5, report=seen.append)
    assert seen == [1, 2, 3, 4, 5]


def test_a_collected_file_reads_back_as_it_was(tmp_path):
    dataset = collect(lambda: gymnasium.make("Pendulum-v1"), 450, seed=2)
    assert dataset.lengths.tolist() == [200, 200, 50]
    assert dataset.metadata.env_id == "Pendulum-v1"
    export(dataset, tmp_path / "a.hdf5")
    back = load(str(tmp_path / "a.hdf5"))
    assert (back.observations == dataset.observations).all()
    assert back.lengths.tolist() == [200, 200, 50]
    assert back.metadata.action_high.tolist() == [2]
    assert back.metadata.warnings == ()
