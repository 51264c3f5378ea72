"""MOBILE: SAC with model-Bellman inconsistency (Sun et al. 2023, PMLR 202).

Every elite of the world model draws next observations and so tells what value it expects ahead; the
less they agree, the lower the target. What the imagination writes is not penalised: it is here, at
every update and with the values of the day, that pessimism enters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from worldrl.config.learners import MOBILESettings
from worldrl.learners.inputs import seen
from worldrl.learners.policies import tanh_gaussian
from worldrl.learners.sac import SAC
from worldrl.learners.settings import settings_tensors
from worldrl.types import (
    Batch,
    Context,
    DynamicsModel,
    LearnerState,
    Log,
    Metrics,
    Noise,
    Parameters,
)

#: Sampled next observations that a CPU takes through the networks at once, over all members: what
#: lies between two layers then stays in cache.
CPU_ROWS = 2048


class MOBILE:
    """SAC, but for its targets, for a population of P members."""

    phases = 1

    def __init__(
        self, settings: MOBILESettings, observation_size: int, action_size: int, num_updates: int
    ) -> None:
        self.settings = settings
        self.sac = SAC(settings, observation_size, action_size, num_updates)
        own = "inconsistency", "inconsistency_cost"
        self.metric_names = (*self.sac.metric_names, *own)

    def initialise(self, seeds: Sequence[int], log: Log, first: int = 0) -> LearnerState:
        """That of SAC, and the settings of the penalty."""
        state = self.sac.initialise(seeds, log, first)
        given = self.settings
        numbers = {
            "inconsistency_weight": given.inconsistency_weight,
            "target_min": -math.inf if given.target_min is None else given.target_min,
        }
        device = log.transitions.reward.device
        return state | {
            "settings": state["settings"] | settings_tensors(numbers, first, len(seeds), device)
        }

    def noise(self, generator: torch.Generator, count: int, batch_size: int) -> Noise:
        """SAC's, and standard normals for ``num_samples`` next observations and their actions."""
        sac = self.sac
        found = sac.noise(generator, count, batch_size)
        for name, size in ("futures", sac.observation_size), ("future_actions", sac.action_size):
            shape = (count, self.settings.num_samples, batch_size, size)
            found[name] = torch.randn(shape, generator=generator, device=generator.device)
        return found

    def update(
        self, state: LearnerState, batch: Batch, noise: Noise, context: Context, phase: int = 0
    ) -> Metrics:
        """An update of SAC, in place, towards the lower targets."""
        assert context.model is not None  # the configuration sees to it
        real = batch.logged.shape[1]
        own = {name: value.to(batch.reward.dtype) for name, value in state["settings"].items()}
        imagined = self.inconsistency(
            state,
            context.model,
            batch.observation[:, real:],
            batch.action[:, real:],
            noise["futures"][:, :, real:],
            noise["future_actions"][:, :, real:],
        )
        cost = own["inconsistency_weight"][:, None] * imagined
        logged = torch.zeros_like(batch.reward[:, :real])
        backup, metrics = self.sac.backup(state, batch, noise)
        backup = (backup - torch.cat([logged, cost], 1)).maximum(own["target_min"][:, None])
        return (
            metrics
            | self.sac.learn(state, batch, noise, backup)
            | {
                "inconsistency": imagined.mean(-1),
                "inconsistency_cost": cost.mean(-1),
            }
        )

    def inconsistency(
        self,
        state: LearnerState,
        model: DynamicsModel,
        observation: Tensor,
        action: Tensor,
        noise: Tensor,
        action_noise: Tensor,
    ) -> Tensor:
        """``(P, R)``: deviation over the E elites (with E - 1 in the denominator, as published) of
        the mean over K sampled next observations of the least target critic's value.

        The draws of a row serve each elite in another row: for every row all E times K are
        independent, and a batch needs no more of them than K a row, however many elites there are.

        Args:
            observation: ``(P, R, S)``.
            noise: ``(P, K, R, S)``.
            action_noise: ``(P, K, R, A)``.
        """
        mean, std = (part[..., :-1] for part in model.of_elites().predict(observation, action))
        elites, (members, samples, rows, _) = mean.shape[1], noise.shape

        def for_elites(draws: Tensor) -> Tensor:
            return torch.stack([draws.roll(elite, 2) for elite in range(elites)], 1)

        # (P, E, K, R, ...)
        following = mean[:, :, None] + std[:, :, None] * for_elites(noise)
        values = self._values_ahead(
            state, following.flatten(1, 3), for_elites(action_noise).flatten(1, 3)
        )
        return values.view(members, elites, samples, rows).mean(2).std(1)

    def _values_ahead(self, state: LearnerState, observation: Tensor, noise: Tensor) -> Tensor:
        """``(P, n, S), (P, n, A) -> (P, n)``: of the policy's actions, by the target critics."""
        members, rows = noise.shape[:2]
        if noise.device.type == "cpu":  # even parts, which share their compiled code
            rows = math.ceil(rows / math.ceil(rows * members / CPU_ROWS))
        found = []
        for given, own in zip(
            torch.split(observation, rows, 1), torch.split(noise, rows, 1), strict=True
        ):
            inputs = seen(self.settings, state["inputs"], given)
            action, _ = tanh_gaussian(state["actor"], inputs).sample(own)
            values = self.sac.critics.values(state["target"], state["support"], inputs, action)
            found.append(values.amin(1))
        return torch.cat(found, 1)

    def values(self, state: LearnerState, observation: Tensor, action: Tensor) -> Tensor:
        """Those of SAC."""
        return self.sac.values(state, observation, action)

    def policy_parameters(self, state: LearnerState) -> Parameters:
        """Those of SAC."""
        return self.sac.policy_parameters(state)

    def act(self, policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
        """As SAC acts."""
        return self.sac.act(policy, observation, noise)
