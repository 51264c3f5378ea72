"""The work of tools/bench written the usual way in plain PyTorch and in JAX, beside worldrl's.

    python tools/bench_baselines.py [NAME ...] [--rounds N] [--json]

Rates alternate in one process, so that their ratios hold where a machine's speed drifts. The
baselines have the same networks, losses, optimisers and shapes, and do less around them: no
standardised inputs, no bootstrap by epochs, no box and no health measures. PyTorch runs as
published repositories run it (modules, torch.optim, no compiler). JAX is measured where it is
installed (`pip install jax`); it is no dependency of worldrl.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from bench import HORIZON, LEARNER_BENCHES, ROWS, STARTS, Bench, logged_data
from products import ACTION, OBSERVATION
from torch import Tensor, nn
from torch.nn import functional as F

from worldrl.training.environment import set_determinism

MEMBERS, HIDDEN, BATCH = 7, [200] * 4, 256
DECAY = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
CHUNK = 2000

#: Does some units of work and says how many.
Work = Callable[[], int]


# -- PyTorch -------------------------------------------------------------------------------


class TorchEnsemble(nn.Module):
    """Batched linear layers with SiLU and softly clamped log-variances."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [OBSERVATION + ACTION, *HIDDEN, 2 * (OBSERVATION + 1)]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(MEMBERS, i, o) / (2 * i**0.5)) for i, o in pairwise(sizes)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(MEMBERS, 1, o)) for o in sizes[1:])
        self.upper = nn.Parameter(torch.full((OBSERVATION + 1,), 0.5))
        self.lower = nn.Parameter(torch.full((OBSERVATION + 1,), -10.0))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if layer < len(HIDDEN):
                hidden = F.silu(hidden)
        mean, log_variance = hidden.chunk(2, -1)
        log_variance = self.upper - F.softplus(self.upper - log_variance)
        return mean, self.lower + F.softplus(log_variance - self.lower)


def torch_ensemble() -> Work:
    """Training steps."""
    model, rows = TorchEnsemble(), logged_data(torch.device("cpu")).rows
    groups: list[dict[str, Any]] = [
        {"params": [weight], "weight_decay": decay}
        for weight, decay in zip(model.weights, DECAY, strict=True)
    ]
    optimiser = torch.optim.Adam(
        [*groups, {"params": [*model.biases, model.upper, model.lower]}], lr=1e-3
    )
    width = OBSERVATION + ACTION

    def work() -> int:
        for _ in range(50):
            batch = rows[torch.randint(ROWS, (MEMBERS, BATCH))]
            target = torch.cat(
                [
                    batch[..., width + 1 : -1] - batch[..., :OBSERVATION],
                    batch[..., width : width + 1],
                ],
                -1,
            )
            mean, log_variance = model(batch[..., :width])
            squared = (mean - target).square()
            loss = (squared * (-log_variance).exp() + log_variance).mean((1, 2)).sum()
            loss = loss + 0.01 * (model.upper - model.lower).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return 50

    return work


def torch_rollout() -> Work:
    """50,000 starts x 5 steps with the penalty of MOPO, written to a buffer."""
    model, rows = TorchEnsemble(), logged_data(torch.device("cpu")).rows
    actor = torch_mlp(OBSERVATION, 2 * ACTION)
    buffer = torch.zeros(STARTS * HORIZON, rows.shape[1])

    @torch.no_grad()
    def work() -> int:
        written = 0
        observation = rows[torch.randint(ROWS, (STARTS,)), :OBSERVATION]
        for _ in range(HORIZON):
            action = torch_sample(actor(observation))[0]
            inputs = torch.cat([observation, action], -1)
            parts = [model(one.expand(MEMBERS, -1, -1)) for one in inputs.split(CHUNK)]
            mean = torch.cat([part[0] for part in parts], 1)
            std = torch.cat([part[1] for part in parts], 1).mul(0.5).exp()
            elite, index = torch.randint(5, (STARTS,)), torch.arange(STARTS)
            sample = mean[elite, index] + std[elite, index] * torch.randn(STARTS, OBSERVATION + 1)
            following = observation + sample[:, :-1]
            reward = sample[:, -1:] - std.norm(dim=-1).amax(0)[:, None]
            done = (following[:, :1] > 1e30).float()
            rows_now = torch.cat([observation, action, reward, following, done], -1)
            buffer[written : written + STARTS] = rows_now
            written += STARTS
            observation = following
        return written

    return work


def torch_mlp(inputs: int, outputs: int) -> nn.Sequential:
    """2 x 256 with ReLU."""
    return nn.Sequential(
        nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs)
    )


def torch_sample(output: Tensor) -> tuple[Tensor, Tensor]:
    """Squashed Gaussian action and its log-density."""
    mean, log_std = output.chunk(2, -1)
    log_std = log_std.clamp(-20, 2)
    noise = torch.randn_like(mean)
    raw = mean + log_std.exp() * noise
    action = raw.tanh()
    density = -0.5 * noise.square() - log_std - 0.5 * torch.log(torch.tensor(2 * torch.pi))
    return action, (density - torch.log(1 - action.square() + 1e-6)).sum(-1, keepdim=True)


def torch_sac() -> Work:
    """Updates with two critics and a learned temperature."""
    rows = logged_data(torch.device("cpu")).rows
    actor = torch_mlp(OBSERVATION, 2 * ACTION)
    critics, targets = (
        [torch_mlp(OBSERVATION + ACTION, 1) for _ in range(2)],
        [torch_mlp(OBSERVATION + ACTION, 1) for _ in range(2)],
    )
    log_temperature = torch.zeros(1, requires_grad=True)
    parameters = [value for critic in critics for value in critic.parameters()]
    target_parameters = [value for critic in targets for value in critic.parameters()]
    actor_adam = torch.optim.Adam(actor.parameters(), lr=1e-4)
    critic_adam = torch.optim.Adam(parameters, lr=3e-4)
    temperature_adam = torch.optim.Adam([log_temperature], lr=1e-4)

    def least(networks: list[nn.Sequential], observation: Tensor, action: Tensor) -> Tensor:
        joined = torch.cat([observation, action], -1)
        return torch.minimum(networks[0](joined), networks[1](joined))

    def work() -> int:
        for _ in range(50):
            batch = rows[torch.randint(ROWS, (BATCH,))]
            width = OBSERVATION + ACTION
            observation, action = batch[:, :OBSERVATION], batch[:, OBSERVATION:width]
            reward, following = batch[:, width : width + 1], batch[:, width + 1 : -1]
            temperature = log_temperature.exp().detach()
            with torch.no_grad():
                next_action, next_density = torch_sample(actor(following))
                value = least(targets, following, next_action) - temperature * next_density
                backup = reward + 0.99 * (1 - batch[:, -1:]) * value
            joined = torch.cat([observation, action], -1)
            loss = sum(F.mse_loss(critic(joined), backup) for critic in critics)
            critic_adam.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            critic_adam.step()
            new_action, density = torch_sample(actor(observation))
            actor_loss = (temperature * density - least(critics, observation, new_action)).mean()
            actor_adam.zero_grad()
            actor_loss.backward()
            actor_adam.step()
            temperature_loss = -(log_temperature * (density.detach() - ACTION)).mean()
            temperature_adam.zero_grad()
            temperature_loss.backward()
            temperature_adam.step()
            with torch.no_grad():
                for target, value in zip(target_parameters, parameters, strict=True):
                    target.lerp_(value, 0.005)
        return 50

    return work


# -- JAX -----------------------------------------------------------------------------------


def jax_adam(parameters: Any, gradients: Any, moments: Any, step: Any, rate: float) -> Any:
    """One step on a tree."""
    import jax
    import jax.numpy as jnp

    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], gradients)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, moments[1], gradients)
    scale = rate * jnp.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    changed = jax.tree.map(
        lambda p, m, v: p - scale * m / (jnp.sqrt(v) + 1e-8), parameters, first, second
    )
    return changed, (first, second)


def jax_network(sizes: list[int], lead: tuple[int, ...] = ()) -> Any:
    """Weights and biases with leading axes."""
    import jax.numpy as jnp

    return [
        (jnp.asarray(torch.randn(*lead, i, o).numpy()) / (2 * i**0.5), jnp.zeros((*lead, 1, o)))
        for i, o in pairwise(sizes)
    ]


def jax_forward(layers: Any, hidden: Any, activation: Any) -> Any:
    """Products, biases and activations."""
    for index, (weight, bias) in enumerate(layers):
        hidden = hidden @ weight + bias
        if index < len(layers) - 1:
            hidden = activation(hidden)
    return hidden


def jax_ensemble_forward(parameters: Any, inputs: Any) -> Any:
    """Mean and softly clamped log-variance."""
    import jax
    import jax.numpy as jnp

    layers, upper, lower = parameters
    mean, log_variance = jnp.split(jax_forward(layers, inputs, jax.nn.silu), 2, -1)
    log_variance = upper - jax.nn.softplus(upper - log_variance)
    return mean, lower + jax.nn.softplus(log_variance - lower)


def jax_world() -> Any:
    """Fresh ensemble parameters."""
    import jax.numpy as jnp

    sizes = [OBSERVATION + ACTION, *HIDDEN, 2 * (OBSERVATION + 1)]
    bounds = jnp.full((OBSERVATION + 1,), 0.5), jnp.full((OBSERVATION + 1,), -10.0)
    return (jax_network(sizes, (MEMBERS,)), *bounds)


def jax_ensemble() -> Work:
    """Training steps."""
    import jax
    import jax.numpy as jnp

    rows = jnp.asarray(logged_data(torch.device("cpu")).rows.numpy())
    parameters = jax_world()
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    state = [parameters, (zeros, zeros), jax.random.key(0), 1.0]
    width = OBSERVATION + ACTION

    @jax.jit
    def step(parameters: Any, moments: Any, key: Any, count: Any) -> Any:
        key, own = jax.random.split(key)
        batch = rows[jax.random.randint(own, (MEMBERS, BATCH), 0, ROWS)]
        target = jnp.concatenate(
            [batch[..., width + 1 : -1] - batch[..., :OBSERVATION], batch[..., width : width + 1]],
            -1,
        )

        def loss(parameters: Any) -> Any:
            mean, log_variance = jax_ensemble_forward(parameters, batch[..., :width])
            likelihood = (mean - target) ** 2 * jnp.exp(-log_variance) + log_variance
            decay = sum(
                0.5 * rate * (weight**2).sum()
                for rate, (weight, _) in zip(DECAY, parameters[0], strict=True)
            )
            bounds = 0.01 * (parameters[1] - parameters[2]).sum()
            return likelihood.mean((1, 2)).sum() + bounds + decay

        gradients = jax.grad(loss)(parameters)
        return *jax_adam(parameters, gradients, moments, count, 1e-3), key, count + 1

    def work() -> int:
        for _ in range(50):
            state[:] = step(*state)
        jax.block_until_ready(state)
        return 50

    return work


def jax_sample(layers: Any, observation: Any, noise: Any) -> Any:
    """Squashed Gaussian action and its log-density."""
    import jax
    import jax.numpy as jnp

    mean, log_std = jnp.split(jax_forward(layers, observation, jax.nn.relu), 2, -1)
    log_std = log_std.clip(-20, 2)
    action = jnp.tanh(mean + jnp.exp(log_std) * noise)
    density = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    return action, (density - jnp.log(1 - action**2 + 1e-6)).sum(-1)


def jax_rollout() -> Work:
    """50,000 starts x 5 steps with the penalty of MOPO, written to a buffer."""
    import jax
    import jax.numpy as jnp

    rows = jnp.asarray(logged_data(torch.device("cpu")).rows.numpy())
    world, actor = jax_world(), jax_network([OBSERVATION, 256, 256, 2 * ACTION])
    keys = [jax.random.key(0)]

    @jax.jit
    def rollout(key: Any) -> Any:
        def model_step(observation: Any, key: Any) -> Any:
            own = jax.random.split(key, 3)
            action, _ = jax_sample(actor, observation, jax.random.normal(own[0], (CHUNK, ACTION)))
            inputs = jnp.concatenate([observation, action], -1)
            mean, log_variance = jax_ensemble_forward(world, inputs)
            std = jnp.exp(0.5 * log_variance)
            elite, index = jax.random.randint(own[1], (CHUNK,), 0, 5), jnp.arange(CHUNK)
            noise = jax.random.normal(own[2], (CHUNK, OBSERVATION + 1))
            sample = mean[elite, index] + std[elite, index] * noise
            following = observation + sample[:, :-1]
            reward = sample[:, -1:] - jnp.linalg.norm(std, axis=-1).max(0)[:, None]
            done = (following[:, :1] > 1e30).astype(jnp.float32)
            return following, jnp.concatenate([observation, action, reward, following, done], -1)

        def chunk(key: Any) -> Any:
            start, rest = jax.random.split(key)
            observation = rows[jax.random.randint(start, (CHUNK,), 0, ROWS), :OBSERVATION]
            return jax.lax.scan(model_step, observation, jax.random.split(rest, HORIZON))[1]

        return jax.lax.map(chunk, jax.random.split(key, STARTS // CHUNK))

    def work() -> int:
        keys[0], own = jax.random.split(keys[0])
        jax.block_until_ready(rollout(own))
        return STARTS * HORIZON

    return work


def jax_sac() -> Work:
    """Updates with two critics and a learned temperature."""
    import jax
    import jax.numpy as jnp

    rows = jnp.asarray(logged_data(torch.device("cpu")).rows.numpy())
    actor = jax_network([OBSERVATION, 256, 256, 2 * ACTION])
    critic = jax_network([OBSERVATION + ACTION, 256, 256, 1], (2,))
    target = jax.tree.map(jnp.copy, critic)
    log_temperature = jnp.zeros(())

    def zeros(tree: Any) -> Any:
        empty = jax.tree.map(jnp.zeros_like, tree)
        return empty, empty

    state = [
        (actor, zeros(actor)),
        (critic, zeros(critic)),
        target,
        (log_temperature, zeros(log_temperature)),
        jax.random.key(0),
        1.0,
    ]
    width = OBSERVATION + ACTION

    def values(critic: Any, observation: Any, action: Any) -> Any:
        joined = jnp.concatenate([observation, action], -1)
        return jax_forward(critic, joined[None], jax.nn.relu)[..., 0]

    @jax.jit
    def step(
        actor: Any, critic: Any, target: Any, log_temperature: Any, key: Any, count: Any
    ) -> Any:
        key, rows_key, next_key, new_key = jax.random.split(key, 4)
        batch = rows[jax.random.randint(rows_key, (BATCH,), 0, ROWS)]
        observation, action = batch[:, :OBSERVATION], batch[:, OBSERVATION:width]
        reward, following = batch[:, width], batch[:, width + 1 : -1]
        temperature = jnp.exp(log_temperature[0])
        shape = (BATCH, ACTION)
        next_action, density = jax_sample(actor[0], following, jax.random.normal(next_key, shape))
        value = values(target, following, next_action).min(0) - temperature * density
        backup = reward + 0.99 * (1 - batch[:, -1]) * value

        def critic_loss(critic: Any) -> Any:
            return ((values(critic, observation, action) - backup) ** 2).mean(-1).sum()

        critic = jax_adam(critic[0], jax.grad(critic_loss)(critic[0]), critic[1], count, 3e-4)

        def actor_loss(actor: Any) -> Any:
            noise = jax.random.normal(new_key, shape)
            new_action, density = jax_sample(actor, observation, noise)
            value = values(critic[0], observation, new_action).min(0)
            return (temperature * density - value).mean(), density.mean()

        gradients, density = jax.grad(actor_loss, has_aux=True)(actor[0])
        actor = jax_adam(actor[0], gradients, actor[1], count, 1e-4)
        gradient = -(density - ACTION)
        log_temperature = jax_adam(log_temperature[0], gradient, log_temperature[1], count, 1e-4)
        target = jax.tree.map(lambda t, c: t + 0.005 * (c - t), target, critic[0])
        return actor, critic, target, log_temperature, key, count + 1

    def work() -> int:
        for _ in range(50):
            state[:] = step(*state)
        jax.block_until_ready(state)
        return 50

    return work


# -- comparison ----------------------------------------------------------------------------


TORCH = {"ensemble": torch_ensemble, "rollout": torch_rollout, "sac": torch_sac}
JAX = {"ensemble": jax_ensemble, "rollout": jax_rollout, "sac": jax_sac}


def worldrl_work(name: str) -> Work:
    """What tools/bench measures."""
    bench = Bench("float32", 1, torch.device("cpu"))
    if name in LEARNER_BENCHES:
        return bench.updates_work(bench.with_learner(name))
    work: Work = getattr(bench, f"{name}_work")()
    return work


def main() -> int:
    """Measure the works asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TORCH)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    arguments = parser.parse_args()
    names = arguments.names or list(TORCH)
    if unknown := [name for name in names if name not in TORCH]:
        parser.error(f"unknown bench {unknown[0]}; known: {', '.join(TORCH)}")
    set_determinism(None, "cpu")
    found = {}
    for name in names:
        works = {"worldrl": worldrl_work(name), "torch": TORCH[name]()}
        if importlib.util.find_spec("jax"):
            works["jax"] = JAX[name]()
        rates: dict[str, list[float]] = {one: [] for one in works}
        for turn in range(arguments.rounds + 1):
            for one, work in works.items():
                start = time.perf_counter()
                done = work()
                if turn:  # the first compiles
                    rates[one].append(done / (time.perf_counter() - start))
        medians = {one: statistics.median(values) for one, values in rates.items()}
        found[name] = medians
        ratios = ", ".join(
            f"{medians['worldrl'] / rate:.2f} x {one} ({rate:,.0f}/s)"
            for one, rate in medians.items()
            if one != "worldrl"
        )
        print(f"{name:10s} {medians['worldrl']:10,.0f}/s = {ratios}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
