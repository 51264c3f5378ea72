"""Rebuild the datasets that results are reported on, by rolling published actors.

One file a task and tier: ``FOLDER/mujoco/<task>-<tier>-sb3.hdf5``, in D4RL's layout. Tiers are
mixes of behaviours whose shares are kept level from episode to episode. Actions are sampled from
the actor's Gaussian, then disturbed. The seeds of the first collection were not kept, so a rebuilt
file has the same behaviours and sizes and similar returns, not the same rows. The replay tiers are
all transitions of the first 110,000 steps of an online SAC run, ours here, Stable-Baselines3's with
the same settings in the first collection.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray
from online_sac import replay

from worldrl.data.actor import Actor, load_actor
from worldrl.data.collect import ActingPolicy, action_bounds, collect
from worldrl.data.dataset import Dataset
from worldrl.data.export import export
from worldrl.envs import make

REPLAY, REPLAY_STEPS = "replay", 110_000
ACTORS = Path(__file__).parent / "actors"
ENVIRONMENTS = {"halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v5"}


class Behaviour(NamedTuple):
    """One part of a mix."""

    actor: str | None
    """None samples the action space."""
    noise: float
    """Standard deviation of Gaussian noise on actions, in half action ranges."""
    share: float
    """Of the transitions."""


class Tier(NamedTuple):
    """What a dataset holds."""

    steps: int
    mix: tuple[Behaviour, ...]


RANDOM = Tier(30_000, (Behaviour(None, 0.0, 1.0),))
EXPERT = Tier(30_000, (Behaviour("tqc", 0.0, 1.0),))
TIERS: Mapping[str, Mapping[str, Tier]] = {
    "halfcheetah": {
        "random": RANDOM,
        "medium": Tier(100_000, (Behaviour("ppo", 0.0, 1.0),)),
        "mixed": Tier(
            100_000,
            (
                Behaviour(None, 0.0, 0.15),
                Behaviour("trpo", 0.1, 0.2),
                Behaviour("a2c", 0.1, 0.25),
                Behaviour("ppo", 0.3, 0.2),
                Behaviour("ppo", 0.0, 0.2),
            ),
        ),
        "expert": EXPERT,
    },
    "hopper": {
        "random": RANDOM,
        "medium": Tier(100_000, (Behaviour("sac", 0.0, 0.6), Behaviour("ppo", 0.2, 0.4))),
        "mixed": Tier(
            100_000,
            (
                Behaviour(None, 0.0, 0.1),
                Behaviour("a2c", 0.1, 0.3),
                Behaviour("sac", 0.1, 0.3),
                Behaviour("ppo", 0.3, 0.15),
                Behaviour("ppo", 0.0, 0.15),
            ),
        ),
        "expert": EXPERT,
    },
}


class Mix(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment and the policy that acts in it, which may change with every episode."""

    def __init__(self, task: str, mix: tuple[Behaviour, ...], seed: int) -> None:
        super().__init__(make(ENVIRONMENTS[task]))
        bounds = action_bounds(self.env)
        if bounds is None or self.observation_space.shape is None:
            raise ValueError(f"{task} has no bounded vector actions")
        self.mix = mix
        self.steps = np.zeros(len(mix))
        self.current = 0
        self.low, self.high = bounds
        self.random = np.random.default_rng(seed)
        size = self.observation_space.shape[0]
        self.actors: list[ActingPolicy | None] = [
            None
            if part.actor is None
            else unclipped(
                load_actor(ACTORS / f"{task}-{part.actor}.npz", size, *bounds, seed=seed + number)
            )
            for number, part in enumerate(mix, start=1)
        ]

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Let the behaviour act that is furthest below its share."""
        shares = np.array([part.share for part in self.mix])
        self.current = int(np.argmax(shares - self.steps / max(self.steps.sum(), 1)))
        return super().reset(**options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps[self.current] += 1
        return super().step(action)

    def act(self, observations: NDArray[Any]) -> NDArray[np.float32]:
        """``(B, S) -> (B, A)``."""
        actor, noise = self.actors[self.current], self.mix[self.current].noise
        shape = (len(observations), len(self.low))
        if actor is None:
            return self.random.uniform(self.low, self.high, shape).astype(np.float32)
        half = (self.high - self.low) / 2
        disturbed = actor.act(observations) + noise * half * self.random.standard_normal(shape)
        return np.clip(disturbed, self.low, self.high).astype(np.float32)


def unclipped(actor: Actor) -> Actor:
    """Without the clip to the bounds, which the mix does once, after adding its noise."""
    return replace(actor, squash="none") if actor.squash == "clip" else actor


def build(task: str, tier: str, steps: int | None = None, seed: int = 0) -> Dataset:
    """Collect one dataset.

    Args:
        steps: transitions; None for as many as the tier has.
    """
    wanted = TIERS[task][tier]
    acting = Mix(task, wanted.mix, seed)
    return collect(
        lambda: acting,
        steps or wanted.steps,
        policy=acting,
        seed=seed,
        behaviour=str([tuple(part) for part in wanted.mix]),
    )


def main(arguments: list[str] | None = None) -> None:
    """Build the chosen datasets and print what each holds."""
    tiers = [*sorted({tier for table in TIERS.values() for tier in table}), REPLAY]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data"), metavar="FOLDER")
    parser.add_argument("--task", choices=TIERS, nargs="*", default=list(TIERS))
    parser.add_argument("--tier", choices=tiers, nargs="*", default=tiers)
    parser.add_argument("--steps", type=int, help="transitions of each file, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for task in options.task:
        for tier in (name for name in (*TIERS[task], REPLAY) if name in options.tier):
            path = options.out / "mujoco" / f"{task}-{tier}-sb3.hdf5"
            if path.exists():
                print(f"{path} is there already", file=sys.stderr)
                continue
            if tier == REPLAY:
                steps = options.steps or REPLAY_STEPS
                dataset = replay(ENVIRONMENTS[task], steps, options.seed)
            else:
                dataset = build(task, tier, options.steps, options.seed)
            export(dataset, path)
            returns = dataset.returns()
            print(
                f"{path}: {dataset.num_transitions:,} rows, {dataset.num_episodes:,} episodes, "
                f"return {returns.mean():,.0f} (min {returns.min():,.0f}, "
                f"max {returns.max():,.0f})"
            )


if __name__ == "__main__":
    main()
