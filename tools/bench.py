"""Measure how fast worldrl's hot paths are, as a share of what the machine's matrix products reach.

    tools/bench [NAME ...] [--json] [--rounds N] [--threads N] [--precision float32 bf16]
    tools/bench loop [--json] [--rounds N]

Every bench prints its rate, the fraction of the float32 matmul peak that its matrix products reach
(counting their FLOPs only, by the formula in its docstring), and the ceiling: the fraction that
these products reach alone, in this shape, without anything around them. The peak is the median of
2048^3 products, measured between the rounds in the same process. Rates are medians over rounds.
``loop`` is the share of a run's time that goes into the loop around the updates: metrics, progress,
status and one checkpoint every 5,000 updates, beside the same updates without them.
Synthetic data: observation size 17, action size 6, 100,000 rows.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldrl.config.imagination import PenaltySettings
from worldrl.config.model import EnsembleSettings
from worldrl.config.schema import GuardSettings, TrainConfig
from worldrl.imagination.branched import branched_rollouts
from worldrl.imagination.experience import imagined_experience
from worldrl.imagination.rollout import chunk_rows, grouped_rows
from worldrl.imagination.setup import Setup
from worldrl.imagination.step import Step
from worldrl.imagination.termination import RULES
from worldrl.learners import LEARNERS
from worldrl.learners.mobile import CPU_ROWS
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
OBSERVATION, ACTION, ROWS = 17, 6, 100_000
Shape = tuple[int, int, int, int]  # batch, rows, in, out


@dataclass(frozen=True)
class Line:
    """One measured rate."""

    name: str
    rate: float
    unit: str
    fraction: float
    ceiling: float
    peak_gflops: float


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall-clock time of ``work``."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matmul_peak(device: torch.device) -> float:
    """FLOP/s of a 2048^3 float32 product."""
    a, b = torch.randn(2, 2048, 2048, device=device)
    out = torch.empty_like(a)
    return 2 * 2048**3 / median_seconds(lambda: torch.mm(a, b, out=out), 5)


def flops(shapes: list[Shape]) -> float:
    """Of batched products ``(batch, rows, in) @ (batch, in, out)``."""
    return float(sum(2 * b * m * k * n for b, m, k, n in shapes))


def matmul_seconds(shapes: list[Shape], dtype: torch.dtype, device: torch.device) -> float:
    """Time of the products alone, one after another, operands warm as training has them."""
    operands = [
        (
            torch.randn(b, m, k, device=device, dtype=dtype),
            torch.randn(b, k, n, device=device, dtype=dtype),
            torch.empty(b, m, n, device=device, dtype=dtype),
        )
        for b, m, k, n in shapes
    ]

    def run() -> None:
        for left, right, out in operands:
            torch.bmm(left, right, out=out)

    run()
    return median_seconds(run, 7)


def network(batch: int, rows: int, sizes: list[int]) -> list[Shape]:
    """Forward products of a batched network."""
    pairs = pairwise(sizes)
    return [(batch, rows, fan_in, fan_out) for fan_in, fan_out in pairs]


def backward(shapes: list[Shape], weights: bool = True, inputs: bool = True) -> list[Shape]:
    """Products for the gradients of the weights and of the inputs."""
    found: list[Shape] = []
    for b, m, k, n in shapes:
        if weights:
            found.append((b, k, m, n))
        if inputs:
            found.append((b, m, n, k))
    return found


def ensemble_shapes(settings: EnsembleSettings) -> list[Shape]:
    """A training step: forward, and backward without the gradient of the data."""
    sizes = [OBSERVATION + ACTION, *settings.hidden, 2 * (OBSERVATION + 1)]
    forward = network(settings.num_members, settings.batch_size, sizes)
    first, *rest = forward
    return [*forward, *backward([first], inputs=False), *backward(rest)]


def rollout_shapes(config: TrainConfig, rows: int) -> list[Shape]:
    """One model call: the policy once and every ensemble member on every row."""
    model = config.model
    sizes = [OBSERVATION + ACTION, *model.hidden, 2 * (OBSERVATION + 1)]
    policy = [OBSERVATION, *config.learner.hidden, 2 * ACTION]
    return [*network(model.num_members, rows, sizes), *network(1, rows, policy)]


def ravl_rollout_shapes(config: TrainConfig, rows: int) -> list[Shape]:
    """One model call where nothing is compared: the policy, and every row through one elite."""
    model = config.model
    sizes = [OBSERVATION + ACTION, *model.hidden, 2 * (OBSERVATION + 1)]
    policy = [OBSERVATION, *config.learner.hidden, 2 * ACTION]
    elites = network(model.num_elites, rows // model.num_elites, sizes)
    return [*elites, *network(1, rows, policy)]


def morec_rollout_shapes(
    config: TrainConfig, rows: int, candidates: int, networks: int
) -> list[Shape]:
    """One model call where every row chooses: also every discriminator on every candidate."""
    assert config.imagination.kind == "branched"
    assert config.imagination.filter.kind == "dynamics_reward"
    sizes = [2 * OBSERVATION + ACTION, *config.imagination.filter.reward.hidden, 1]
    return [*rollout_shapes(config, rows), *network(networks, rows * candidates, sizes)]


def sac_shapes(config: TrainConfig) -> list[Shape]:
    """An update, counted as 4 actor and 6 critic passes.

    0.590 GFLOP with 2 critics of 2 x 256; 4.50 with the 10 of 3 x 256 that sac-n has.
    Actor: forward on the next and on the current observations, backward (two). Critics: target
    forward, forward, backward (two), forward under the new action, backward to the action (one).
    """
    assert config.learner.kind == "sac"
    batch, hidden = config.learner.batch_size, list(config.learner.hidden)
    actor = network(1, batch, [OBSERVATION, *hidden, 2 * ACTION])
    critic = network(config.learner.num_critics, batch, [OBSERVATION + ACTION, *hidden, 1])
    return [
        *actor,
        *actor,
        *backward(actor),
        *critic,
        *critic,
        *backward(critic),
        *critic,
        *backward(critic, weights=False),
    ]


def iql_shapes(config: TrainConfig) -> list[Shape]:
    """An update, counted as 4 value, 8 critic and 3 actor passes of 256 x 256: 0.547 GFLOP.

    Value: forward on the next and on the current observations, backward (two). Each of two critics:
    target forward, forward, backward (two). Actor: forward, backward (two). As in
    :func:`sac_shapes` backward counts the gradient of the data too, 2 % that no one needs.
    """
    batch, hidden = config.learner.batch_size, list(config.learner.hidden)
    value = network(1, batch, [OBSERVATION, *hidden, 1])
    critic = network(2, batch, [OBSERVATION + ACTION, *hidden, 1])
    actor = network(1, batch, [OBSERVATION, *hidden, ACTION])
    forward = [*value, *critic, *actor]
    return [*value, *critic, *forward, *backward(forward)]


def edac_shapes(config: TrainConfig) -> list[Shape]:
    """An update of SAC with the diversity term, by the fewest products: 5.20 GFLOP.

    One critic pass beside SAC's: where the loss and the action gradients go backward together, the
    term costs one more pass forward (see worldrl.learners.diversity). Differentiating twice takes 6
    more passes: 8.7 GFLOP.
    """
    assert config.learner.kind == "sac"
    batch, hidden = config.learner.batch_size, list(config.learner.hidden)
    sizes = [OBSERVATION + ACTION, *hidden, 1]
    return [*sac_shapes(config), *network(config.learner.num_critics, batch, sizes)]


def td3bc_shapes(config: TrainConfig) -> list[Shape]:
    """A turn of two updates, counted as 5 actor and 18 critic passes of 256 x 256: 0.843 GFLOP, or
    0.422 an update.

    Both: target actor and two target critics forward, two critics forward and backward (two
    passes). The second one also: actor forward and backward (two), the first critic forward under
    the new action and backward to it (one).
    """
    batch, hidden = config.learner.batch_size, list(config.learner.hidden)
    actor = network(1, batch, [OBSERVATION, *hidden, ACTION])
    critic = network(2, batch, [OBSERVATION + ACTION, *hidden, 1])
    heard = network(1, batch, [OBSERVATION + ACTION, *hidden, 1])
    both = [*actor, *critic, *critic, *backward(critic)]
    second = [*actor, *backward(actor), *heard, *backward(heard, weights=False)]
    return [*both, *both, *second]


def mobile_shapes(config: TrainConfig) -> list[Shape]:
    """An update of SAC, the 5 elites on the 244 imagined rows, and actor and two target critics on
    10 samples of each: 0.590 + 0.315 + 5.278 GFLOP.

    Counted in the parts, and critic by critic, as a CPU takes them.
    """
    learner, imagination = config.learner, config.imagination
    assert learner.kind == "mobile"
    assert imagination.kind == "branched"
    hidden, elites = list(learner.hidden), config.model.num_elites
    rows = learner.batch_size - int(imagination.real_ratio * learner.batch_size)
    model = [OBSERVATION + ACTION, *config.model.hidden, 2 * (OBSERVATION + 1)]
    samples = elites * learner.num_samples * rows
    parts = math.ceil(samples / CPU_ROWS)
    part = [
        *network(1, samples // parts, [OBSERVATION, *hidden, 2 * ACTION]),
        *network(1, samples // parts, [OBSERVATION + ACTION, *hidden, 1]) * learner.num_critics,
    ]
    return [*sac_shapes(config), *network(elites, rows, model), *part * parts]


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
