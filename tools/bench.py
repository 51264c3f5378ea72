"""Measure how fast worldrl's hot paths are, as a share of what the machine's matrix products reach.

    tools/bench [NAME ...] [--json] [--rounds N] [--threads N] [--precision float32 bf16]
    tools/bench loop [--json] [--rounds N]

Every bench prints its rate, the fraction of the float32 matmul peak that its matrix products reach
(counting their FLOPs only, by the formulas in tools/products.py), and the ceiling: the fraction
that these products reach alone, in this shape, batched or network by network, whichever is faster.
The peak is the median of 2048^3 products, measured between the rounds in the same process. Rates
are medians over rounds.
``loop`` is the share of a run's time that goes into the loop around the updates: metrics, progress,
status and one checkpoint every 5,000 updates, beside the same updates without them.
Synthetic data: observation size 17, action size 6, 100,000 rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from products import (
    ACTION,
    OBSERVATION,
    Shape,
    edac_shapes,
    ensemble_shapes,
    flops,
    iql_shapes,
    matmul_peak,
    matmul_seconds,
    mobile_shapes,
    morec_rollout_shapes,
    ravl_rollout_shapes,
    rollout_shapes,
    sac_shapes,
    td3bc_shapes,
)

from worldrl.config.imagination import PenaltySettings
from worldrl.config.schema import GuardSettings, TrainConfig
from worldrl.imagination.branched import branched_rollouts
from worldrl.imagination.experience import imagined_experience
from worldrl.imagination.rollout import chunk_rows, grouped_rows
from worldrl.imagination.setup import Setup
from worldrl.imagination.step import Step
from worldrl.imagination.termination import RULES
from worldrl.learners import LEARNERS
from worldrl.models.dynamics_reward import DynamicsReward, initialise
from worldrl.models.ensemble import Standardizer
from worldrl.models.mlp import stack
from worldrl.models.world import World
from worldrl.random import generator
from worldrl.training.compilation import compiled, in_bf16
from worldrl.training.environment import environment_record, set_determinism
from worldrl.training.logged import Logged
from worldrl.training.loop import Session, run_stage
from worldrl.training.metrics import MetricsWriter
from worldrl.training.policy import PolicyStage
from worldrl.training.policy_group import members_of
from worldrl.training.run_directory import RunDirectory
from worldrl.training.signals import StopRequests
from worldrl.training.stages import group_seeds
from worldrl.training.world.ensemble import EnsembleStage
from worldrl.types import Learner

STARTS, HORIZON = 50_000, 5
ROWS = 100_000


@dataclass(frozen=True)
class Line:
    """One measured rate."""

    name: str
    rate: float
    unit: str
    fraction: float
    ceiling: float
    peak_gflops: float


def logged_data(device: torch.device) -> Logged:
    """Random rows: speed does not depend on what they say."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, 2 * OBSERVATION + ACTION + 2, generator=generator)
    rows[:, -1] = 0.0
    low = np.full(ACTION, -1.0, np.float32)
    return Logged(
        rows.to(device),
        torch.ones(ROWS, dtype=torch.bool, device=device),
        (torch.arange(ROWS) // 1000).to(device),
        OBSERVATION,
        ACTION,
        low,
        -low,
    )


class Bench:
    """The three hot paths at one precision and population."""

    def __init__(self, precision: str, population: int, device: torch.device) -> None:
        self.precision, self.device, self.population = precision, device, population
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.config = TrainConfig.model_validate(
            {
                "dataset": {"source": "synthetic"},
                "precision": precision,
                "population": population,
                "model": {"patience": 10**6},  # random rows teach nothing: go on all the same
                "imagination": {"kind": "branched", "batch_size": STARTS, "horizon": HORIZON},
            }
        )
        self.logged = logged_data(device)
        self.groups = group_seeds(0, population, device)
        self.rows = torch.arange(ROWS, device=device)

    def line(
        self,
        name: str,
        unit: str,
        work: Callable[[], int],
        shapes: list[Shape],
        rounds: int,
        units: int = 1,
    ) -> Line:
        """Interleave the work, its matrix products alone, and the peak.

        Args:
            work: returns how many units it did.
            shapes: the products of ``units`` units.
        """
        work()  # compiles
        rates, peaks, products = [], [], []
        for _ in range(rounds):
            peaks.append(matmul_peak(self.device))
            start = time.perf_counter()
            done = work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            rates.append(done / (time.perf_counter() - start))
            products.append(flops(shapes) / matmul_seconds(shapes, self.dtype, self.device))
        peak = statistics.median(peaks)
        rate = statistics.median(rates)
        per_unit = flops(shapes) / units
        return Line(
            name if self.precision == "float32" else f"{name}-{self.precision}",
            rate,
            unit,
            rate * per_unit / peak,
            statistics.median(products) / peak,
            peak / 1e9,
        )

    def ensemble(self, rounds: int) -> Line:
        """Training steps of 7 members, 4 x 200, 256 rows a member, data handling included."""
        shapes = ensemble_shapes(self.config.model)
        return self.line("ensemble", "steps/s", self.ensemble_work(), shapes, rounds)

    def ensemble_work(self) -> Callable[[], int]:
        """100 steps of every member."""
        stage = EnsembleStage(
            self.config.model,
            self.groups,
            self.logged,
            self.rows,
            True,
            self.precision == "bf16",
        )

        def work() -> int:
            before = stage.step
            stage.advance(before + 100, never)
            return (stage.step - before) * self.population

        return work

    def policy_stage(self, config: TrainConfig) -> PolicyStage:
        """A policy stage on an untrained world."""
        untrained = EnsembleStage(
            self.config.model, self.groups, self.logged, self.rows, False, False
        )
        ensembles = untrained.ensembles()
        worlds = [
            World(ensemble, {}, reward_of(config, len(seeds), self.device))
            for ensemble, seeds in zip(ensembles, self.groups, strict=True)
        ]
        learner = learner_of(config)
        rule = RULES["walker2d"].ends

        def ends(
            terminator: dict[str, torch.Tensor],
            observation: torch.Tensor,
            action: torch.Tensor,
            following: torch.Tensor,
        ) -> torch.Tensor:
            # The rule is computed as in training, and no row leaves, so that the work is fixed.
            return rule(observation, action, following) & (following[..., 0] > 1e30)

        settings = config.imagination
        assert settings.kind == "branched"
        setup = Setup(
            self.groups,
            learner,
            worlds,
            ends,
            self.logged.log,
            config.num_updates,
            self.prepared,
        )
        imaginations = branched_rollouts(settings, setup)
        experiences = imagined_experience(settings, imaginations, self.groups, self.logged.rows)
        members = members_of(self.groups, self.logged.log, experiences, ensembles)
        return PolicyStage(config, learner, members, self.logged, True)

    def prepared(self, step: Step, calls: int) -> Step:
        """Compiled, as a long run has it."""
        step = in_bf16(step, self.device) if self.precision == "bf16" else step
        return compiled(step, True, self.device)

    def rollout(self, rounds: int) -> Line:
        """50,000 starts x 5 steps, all 7 members, penalty, termination, buffer write."""
        rows = chunk_rows(STARTS, len(self.groups[0]), self.device)
        shapes = rollout_shapes(self.config, rows)
        work = self.rollout_work(self.config)
        return self.line("rollout", "transitions/s", work, shapes, rounds, rows)

    def ravl_rollout(self, rounds: int) -> Line:
        """The same without penalty and stop: each row through its own elite alone."""
        model = self.config.model
        config = self.config.model_copy(
            update={
                "imagination": self.config.imagination.model_copy(
                    update={"penalty": PenaltySettings(kind="none")}
                )
            }
        )
        elites = model.num_elites
        rows = elites * grouped_rows(STARTS, len(self.groups[0]), elites, self.device)
        shapes = ravl_rollout_shapes(config, rows)
        work = self.rollout_work(config)
        return self.line("ravl-rollout", "transitions/s", work, shapes, rounds, rows)

    def morec_rollout(self, rounds: int) -> Line:
        """The same with a penalty and the filter of MOREC-MOBILE: 10 discriminators of 128 and 256
        units on 10 candidates a row."""
        base = self.config.model_dump()
        chooses = {"kind": "dynamics_reward", "networks": 10, "limit": 0.0}
        imagination = base["imagination"] | {"filter": chooses}
        config = TrainConfig.model_validate(base | {"imagination": imagination})
        members, candidates = len(self.groups[0]), 2 * config.model.num_elites
        networks = config.model.num_members + 10 * candidates
        rows = chunk_rows(STARTS, members, self.device, networks)
        shapes = morec_rollout_shapes(config, rows, candidates, 10)
        work = self.rollout_work(config)
        return self.line("morec-rollout", "transitions/s", work, shapes, rounds, rows)

    def rollout_work(self, config: TrainConfig) -> Callable[[], int]:
        """One refresh of every member."""
        stage = self.policy_stage(config)
        settings = config.imagination
        assert settings.kind == "branched"
        step = 0

        def work() -> int:
            nonlocal step
            for group in stage.groups:
                assert group.experience is not None
                group.experience.renew(step, group.state)
            step += settings.every
            return STARTS * HORIZON * self.population

        return work

    def updates(self, name: str, rounds: int) -> Line:
        """Updates of a learner of :data:`LEARNER_BENCHES`, sampling included, no refresh."""
        config, (_, shapes) = self.with_learner(name), LEARNER_BENCHES[name]
        work, phases = self.updates_work(config), learner_of(config).phases
        return self.line(name, "updates/s", work, shapes(config), rounds, phases)

    def with_learner(self, name: str) -> TrainConfig:
        """The configuration of one of :data:`LEARNER_BENCHES`."""
        settings, _ = LEARNER_BENCHES[name]
        base = self.config.model_dump()
        # Rollouts are not measured here, and a learner may refuse to be doubly pessimistic.
        imagination = base["imagination"] | {"penalty": {"kind": "none"}}
        return TrainConfig.model_validate(base | {"imagination": imagination, "learner": settings})

    def updates_work(self, config: TrainConfig) -> Callable[[], int]:
        """300 updates of every member."""
        stage = self.policy_stage(config)
        stage.advance(1, never)  # fills the buffer and compiles

        def work() -> int:
            before = stage.step
            for group in stage.groups:
                end = before + 300
                while group.step < end:
                    group._run_updates(min(end - group.step, group.left_in_block))
            return (stage.step - before) * self.population

        return work

    def loop(self, rounds: int) -> float:
        """Share of the time spent around the updates, of 5,000 of them with their rollouts."""
        shares = []
        updates = 5_000
        config = self.config.model_copy(
            update={
                "num_updates": (2 * rounds + 1) * updates,
                "checkpoint_every": updates,
                "imagination": self.config.imagination.model_copy(update={"batch_size": 10_000}),
                "guard": GuardSettings(value_bound=1e9, value_growth=1e9, critic_loss_growth=1e9),
            }
        )
        stage = self.policy_stage(config)
        stage.advance(1_000, never)  # compiles
        with (
            tempfile.TemporaryDirectory() as folder,
            RunDirectory.create(Path(folder) / "run", config) as run,
            MetricsWriter(run.metrics_file, None) as metrics,
            StopRequests() as stop,
        ):
            session = Session(run, config, metrics, stop, False, {}, 0.0, time.monotonic())
            for _ in range(rounds):
                stage.total = stage.step + updates
                for group in stage.groups:
                    group.total = stage.total
                start = time.perf_counter()
                run_stage(stage, session)
                middle = time.perf_counter()
                for group in stage.groups:
                    group.total += updates
                stage.advance(stage.total + updates, never)
                bare = time.perf_counter() - middle
                shares.append(1 - bare / (middle - start))
        return statistics.median(shares)


def reward_of(config: TrainConfig, members: int, device: torch.device) -> DynamicsReward | None:
    """Fresh discriminators, where a filter asks for them."""
    imagination = config.imagination
    if imagination.kind != "branched" or imagination.filter.kind == "none":
        return None
    settings, width = imagination.filter.reward, 2 * OBSERVATION + ACTION
    sizes = [width, *settings.hidden, 1]
    parameters = stack(
        [
            initialise(
                [generator(member, "bench.reward", k) for k in range(settings.snapshots)], sizes
            )
            for member in range(members)
        ]
    )
    said = torch.ones(members, settings.snapshots, device=device)
    inputs = Standardizer(*(torch.full((members, width), v, device=device) for v in (0.0, 1.0)))
    moved = {name: value.to(device) for name, value in parameters.items()}
    return DynamicsReward(moved, inputs, said, -said)


def learner_of(config: TrainConfig) -> Learner:
    """The learner of a configuration."""
    return LEARNERS[config.learner.kind](config.learner, OBSERVATION, ACTION, config.num_updates)


def never() -> bool:
    """No stop is asked for."""
    return False


MANY_CRITICS = {"kind": "sac", "num_critics": 10, "hidden": (256, 256, 256), "init": "edac"}

#: Settings of a learner and the products of one update of each phase, by the bench's name.
LEARNER_BENCHES: dict[str, tuple[dict[str, Any], Callable[[TrainConfig], list[Shape]]]] = {
    "sac": ({"kind": "sac"}, sac_shapes),
    "iql": ({"kind": "iql"}, iql_shapes),
    "sac-n": (MANY_CRITICS, sac_shapes),
    "edac": ({**MANY_CRITICS, "diversity": 1.0}, edac_shapes),
    "td3bc": ({"kind": "td3bc"}, td3bc_shapes),
    "mobile": ({"kind": "mobile"}, mobile_shapes),
}
NAMES = ("ensemble", "rollout", "ravl-rollout", "morec-rollout", *LEARNER_BENCHES)


def main() -> int:
    """Run the benches asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = (*NAMES, "loop")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--population", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"]
    )
    arguments = parser.parse_args()
    names = arguments.names or list(NAMES)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown bench {unknown[0]}; known: {', '.join(known)}")
    device = torch.device(arguments.device)
    set_determinism(arguments.threads, device.type)
    lines = []
    for precision in arguments.precision:
        bench = Bench(precision, arguments.population, device)
        for name in (name for name in names if name in NAMES):
            if name in LEARNER_BENCHES:
                line = bench.updates(name, arguments.rounds)
            else:
                line = getattr(bench, name.replace("-", "_"))(arguments.rounds)
            lines.append(line)
            print(
                f"{line.name:14s} {line.rate:12,.1f} {line.unit:14s} "
                f"fraction {line.fraction:.2f}  ceiling {line.ceiling:.2f}  "
                f"peak {line.peak_gflops:,.0f} GFLOP/s",
                file=sys.stderr,
            )
    loop = None
    if "loop" in names:
        loop = Bench("float32", arguments.population, device).loop(arguments.rounds)
        print(f"loop           {loop:12.1%} of the time", file=sys.stderr)
    if arguments.json:
        peaks = [line.peak_gflops for line in lines] or [matmul_peak(device) / 1e9]
        record = {
            "peak_gflops": statistics.median(peaks),
            "loop_share": loop,
            "population": arguments.population,
            "environment": environment_record(str(device)),
            "benches": [asdict(line) for line in lines],
        }
        print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
