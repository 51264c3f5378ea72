"""Every transition of an online SAC run, in order: what replay datasets are made of."""

from __future__ import annotations

import numpy as np
import torch

from worldrl.config.learners import SACSettings
from worldrl.data.actions import from_unit
from worldrl.data.collect import action_bounds
from worldrl.data.dataset import Dataset
from worldrl.envs import make
from worldrl.learners.sac import SAC
from worldrl.random import generator
from worldrl.rows import pack, row_width, unpack
from worldrl.training.compilation import compiled, compiler_available
from worldrl.training.environment import set_determinism
from worldrl.training.logged import Logged
from worldrl.training.policy import update_function
from worldrl.types import Context, Log, Transitions

#: Stable-Baselines3's defaults: one update a step after 100 random steps, all rates 3e-4.
SETTINGS = SACSettings(
    actor_learning_rate=3e-4,
    critic_learning_rate=3e-4,
    temperature_learning_rate=3e-4,
    max_temperature=None,
    actor_schedule="constant",
)
RANDOM_STEPS = 100
COMPILE_FROM = 15_000


def replay(env_id: str, steps: int, seed: int) -> Dataset:
    """Train SAC online for ``steps`` environment steps and keep everything it saw."""
    set_determinism(None)
    env = make(env_id)
    bounds = action_bounds(env)
    if bounds is None or env.observation_space.shape is None:
        raise ValueError(f"{env_id} has no bounded vector actions")
    low, high = bounds
    size, width = env.observation_space.shape[0], len(low)
    cpu = torch.device("cpu")
    learner = SAC(SETTINGS, size, width, steps)
    rows = torch.zeros(steps, row_width(size, width))
    log = Log(unpack(rows, size, width), torch.zeros(steps, width), torch.zeros(steps))
    state = learner.initialise([seed], log)
    truncated = np.zeros(steps, bool)
    nothing = torch.zeros(0, dtype=torch.bool)
    logged = Logged(rows, nothing, nothing, size, width, low, high)
    update = compiled(
        update_function(learner, logged, autocast=False),
        steps >= COMPILE_FROM and compiler_available(cpu),
        cpu,
    )
    sums = torch.zeros(2, len(learner.metric_names), 1)
    no_rows = torch.zeros(1, 0, dtype=torch.int64)
    draws = generator(seed, "online.sac")
    observation, _ = env.reset(seed=seed)
    for step in range(steps):
        seen = torch.as_tensor(np.asarray(observation, np.float32))
        if step < RANDOM_STEPS:
            action = 2 * torch.rand(width, generator=draws) - 1
        else:
            noise = torch.randn(1, 1, width, generator=draws)
            with torch.no_grad():
                policy = learner.policy_parameters(state)
                action = learner.act(policy, seen[None, None], noise)[0, 0]
        following, reward, terminated, cut, _ = env.step(from_unit(action.numpy(), low, high))
        rows[step] = pack(
            Transitions(
                seen,
                action,
                torch.tensor(float(reward)),
                torch.as_tensor(np.asarray(following, np.float32)),
                torch.tensor(float(terminated)),
            )
        )
        truncated[step] = cut
        observation = env.reset()[0] if terminated or cut else following
        if step >= RANDOM_STEPS:
            chosen = torch.randint(step + 1, (1, SETTINGS.batch_size), generator=draws)
            update_noise = learner.noise(draws, 1, SETTINGS.batch_size)
            update(state, rows, rows, chosen, no_rows, update_noise, Context(log), sums)
    env.close()
    table = rows.numpy()
    return Dataset.from_arrays(
        table[:, :size],
        from_unit(table[:, size : size + width], low, high),
        table[:, size + width],
        table[:, -1] > 0,
        truncated,
        table[:, size + width + 1 : -1],
        env_id=env_id,
        action_low=low,
        action_high=high,
        behaviour=f"online SAC, steps 0 to {steps}, in order",
    )
