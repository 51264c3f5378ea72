"""The matrix products of what tools/bench measures, their number of operations, and their time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from worldrl.config.learners import SoftSettings
from worldrl.config.model import EnsembleSettings
from worldrl.config.schema import TrainConfig
from worldrl.learners.mobile import CPU_ROWS

OBSERVATION, ACTION = 17, 6
Shape = tuple[int, int, int, int]  # batch, rows, in, out


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
    """Time of the products alone, one after another, operands warm as training has them; each as
    one batched product or network by network, whichever is faster."""
    operands = [
        (
            torch.randn(b, m, k, device=device, dtype=dtype),
            torch.randn(b, k, n, device=device, dtype=dtype),
            torch.empty(b, m, n, device=device, dtype=dtype),
        )
        for b, m, k, n in shapes
    ]

    def batched(left: Tensor, right: Tensor, out: Tensor) -> None:
        torch.bmm(left, right, out=out)

    def one_by_one(left: Tensor, right: Tensor, out: Tensor) -> None:
        for one in range(len(left)):
            torch.mm(left[one], right[one], out=out[one])

    def faster(*operand: Tensor) -> Callable[..., None]:
        ways = batched, one_by_one
        return min(ways, key=lambda way: median_seconds(lambda: way(*operand), 7))

    chosen = [(faster(*operand), operand) for operand in operands]

    def run() -> None:
        for way, operand in chosen:
            way(*operand)

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
    """One model call where every row chooses: also every discriminator on every candidate, but for
    their heads, which are no products (:func:`worldrl.models.mlp.scalar_mlp`)."""
    assert config.imagination.kind == "branched"
    assert config.imagination.filter.kind == "dynamics_reward"
    sizes = [2 * OBSERVATION + ACTION, *config.imagination.filter.reward.hidden]
    return [*rollout_shapes(config, rows), *network(networks, rows * candidates, sizes)]


def sac_shapes(config: TrainConfig) -> list[Shape]:
    """An update, counted as 4 actor and 6 critic passes.

    0.590 GFLOP with 2 critics of 2 x 256; 4.50 with the 10 of 3 x 256 that sac-n has.
    Actor: forward on the next and on the current observations, backward (two). Critics: target
    forward, forward, backward (two), forward under the new action, backward to the action (one).
    """
    assert isinstance(config.learner, SoftSettings)
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
