"""The stage that learns a dynamics reward: a discriminator and a generator, one against the other.

Every update first teaches the discriminator to tell logged from generated steps, then the generator
to be taken for the log; see :mod:`worldrl.models.dynamics_reward`. The last snapshots of the
discriminator are what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad_and_value

from worldrl.config.filters import DynamicsRewardSettings
from worldrl.errors import ModelError
from worldrl.models.dynamics_reward import (
    DynamicsReward,
    discriminator_loss,
    generated,
    generator_loss,
    initialise,
    logits,
    steps,
)
from worldrl.models.ensemble import Standardizer, fit_standardizer
from worldrl.optim import AdamState, adam_init, adam_step
from worldrl.random import draw, generator
from worldrl.training.compilation import compiled
from worldrl.training.logged import Logged
from worldrl.training.stages import (
    Snapshot,
    common_step,
    copy_into,
    flat,
    join,
    listed,
    split,
)
from worldrl.types import Parameters

#: Updates whose rows and noise are drawn at once.
BLOCK = 100
#: Logged rows that a snapshot's judgement is measured on.
CHECKED_ROWS = 4_096

METRICS = ("discriminator_loss", "generator_nll")


class DynamicsRewardStage:
    """All groups' dynamics rewards, learned one group after another."""

    name = "reward"

    def __init__(
        self,
        settings: DynamicsRewardSettings,
        groups: Sequence[Sequence[int]],
        logged: Logged,
        rows: Tensor,
        compile_update: bool,
        autocast: bool,
    ) -> None:
        """``rows`` ``(n,)``: numbers of the logged rows to learn from."""
        self.total = settings.num_updates
        update = compiled(_update(settings, logged, autocast), compile_update, rows.device)
        self.groups = [DynamicsRewardGroup(settings, own, logged, rows, update) for own in groups]

    @property
    def step(self) -> int:
        return common_step(self.groups)

    @property
    def finished(self) -> bool:
        return all(group.finished for group in self.groups)

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Every group up to update ``until``."""
        for group in self.groups:
            group.advance(until, stop)

    def report(self) -> dict[str, list[float]]:
        """Losses since the last report, and what the last snapshot says of both kinds of steps."""
        return listed([group.report() for group in self.groups])

    def snapshot(self) -> Snapshot:
        """The reward as the model; both networks and their optimisers as the state."""
        return Snapshot(
            join([flat(group.reward) for group in self.groups]),
            join([group.tensors() for group in self.groups]),
            {"steps": [group.step for group in self.groups]},
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of the same settings and data."""
        sizes = [len(group.seeds) for group in self.groups]
        models, states = split(snapshot.model, sizes), split(snapshot.state, sizes)
        for group, model, state, step in zip(
            self.groups, models, states, snapshot.plain["steps"], strict=True
        ):
            copy_into(flat(group.reward), model)
            copy_into(group.tensors(), state)
            group.step = step

    def check_learned(self) -> None:
        """Refuse a reward that holds a number which is not finite.

        Raises:
            ModelError: with the seeds concerned and what to change.
        """
        failed = [
            seed
            for group in self.groups
            for member, seed in enumerate(group.seeds)
            if not all(bool(v[member].isfinite().all()) for v in flat(group.reward).values())
        ]
        if failed:
            raise ModelError(
                f"the dynamics reward diverged for seed(s) {failed}. Lower "
                "imagination.filter.reward.learning_rate, or look for extreme values with "
                "`worldrl data info`."
            )


class DynamicsRewardGroup:
    """The dynamics rewards of a few seeds, batched: snapshots are ``(P, K, ...)``."""

    def __init__(
        self,
        settings: DynamicsRewardSettings,
        seeds: Sequence[int],
        logged: Logged,
        rows: Tensor,
        update: Callable[..., Tensor],
    ) -> None:
        self.settings, self.seeds = settings, list(seeds)
        self._logged, self._rows, self._update = logged, rows, update
        device, members = rows.device, len(self.seeds)
        size, width = logged.observation_size, 2 * logged.observation_size + logged.action_size
        self.discriminator = self._network("discriminator", [width, *settings.hidden, 1])
        self.generator = self._network(
            "generator", [width - size, *settings.generator_hidden, 2 * size]
        )
        self.adams = adam_init(self.discriminator), adam_init(self.generator)
        self.sums = torch.zeros(len(METRICS), members, device=device)
        self.counts = torch.zeros(members, device=device)
        nothing = torch.zeros(members, settings.snapshots, device=device)
        scaling = fit_standardizer(steps(logged.transitions), rows[None])
        self.reward = DynamicsReward(
            {
                name: torch.zeros(members, settings.snapshots, *value.shape[1:], device=device)
                for name, value in self.discriminator.items()
            },
            Standardizer(*(value.expand(members, -1).clone() for value in scaling)),
            nothing,
            nothing.clone(),
        )
        self.total = settings.num_updates
        self.step = 0
        self._drawn: tuple[int, Tensor, Tensor] | None = None

    def _network(self, name: str, sizes: Sequence[int]) -> Parameters:
        fresh = initialise([generator(seed, f"reward.{name}") for seed in self.seeds], sizes)
        return {name: value.to(self._rows.device) for name, value in fresh.items()}

    @property
    def finished(self) -> bool:
        return self.step >= self.total

    def tensors(self) -> dict[str, Tensor]:
        """References to everything that an update changes."""
        return flat(
            {
                "discriminator": self.discriminator,
                "generator": self.generator,
                "discriminator_adam": self.adams[0],
                "generator_adam": self.adams[1],
                "sums": {"values": self.sums.T, "counts": self.counts},
            }
        )

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Updates up to number ``until``, with the snapshots that fall there."""
        while self.step < until and not stop():
            block, within = divmod(self.step, BLOCK)
            rows, noise = self._block(block)
            for index in range(within, min(BLOCK, within + until - self.step)):
                self.sums += self._update(
                    self.discriminator,
                    self.generator,
                    *self.adams,
                    self._logged.rows,
                    rows[:, index],
                    noise[:, index],
                    self.reward.inputs,
                )
                self.counts += 1
                self.step += 1
                if self.step % self.settings.snapshot_every == 0:
                    self._take_snapshot()

    @torch.no_grad()
    def _take_snapshot(self) -> None:
        """Over the oldest one, with the mean logits that it gives to logged and generated steps."""
        number = self.step // self.settings.snapshot_every - 1
        place = number % self.settings.snapshots
        for name, value in self.reward.parameters.items():
            value[:, place] = self.discriminator[name]
        rows, noise = self._draws("check", number, CHECKED_ROWS)
        logged = self.reward.inputs.standardized(steps(self._logged.at(rows)))
        made = generated(self.generator, logged, noise)
        self.reward.logged[:, place] = logits(self.discriminator, logged).mean(-1)
        self.reward.generated[:, place] = logits(self.discriminator, made).mean(-1)

    def _block(self, block: int) -> tuple[Tensor, Tensor]:
        """Row numbers ``(P, BLOCK, B)`` and noise ``(P, BLOCK, B, S)``."""
        if self._drawn is None or self._drawn[0] != block:
            self._drawn = block, *self._draws("update", block, BLOCK, self.settings.batch_size)
        return self._drawn[1:]

    def _draws(self, name: str, number: int, *shape: int) -> tuple[Tensor, Tensor]:
        """Row numbers ``(P, *shape)`` and normals ``(P, *shape, S)``."""
        count, size, device = len(self._rows), self._logged.observation_size, self._rows.device
        rows = draw(
            self.seeds,
            f"reward.{name}.rows",
            number,
            lambda g: torch.randint(count, shape, generator=g, device=g.device),
            device,
        )
        noise = draw(
            self.seeds,
            f"reward.{name}.noise",
            number,
            lambda g: torch.randn(*shape, size, generator=g, device=g.device),
            device,
        )
        return self._rows[rows], noise

    def report(self) -> dict[str, Tensor]:
        """Per seed; a mean over no update is NaN."""
        means = dict(zip(METRICS, self.sums / self.counts, strict=True))
        self.sums.zero_()
        self.counts.zero_()
        taken = self.step // self.settings.snapshot_every
        if taken:
            last = (taken - 1) % self.settings.snapshots
            means["logged_logit"] = self.reward.logged[:, last]
            means["generated_logit"] = self.reward.generated[:, last]
        return means


def _update(
    settings: DynamicsRewardSettings, logged: Logged, autocast: bool
) -> Callable[..., Tensor]:
    """One update of both networks, in place, as one function of tensors."""
    device = logged.rows.device.type

    def update(
        discriminator: Parameters,
        generator: Parameters,
        discriminator_adam: AdamState,
        generator_adam: AdamState,
        logged_rows: Tensor,
        rows: Tensor,  # (P, B) int64
        noise: Tensor,  # (P, B, S)
        inputs: Standardizer,
    ) -> Tensor:
        batch = logged._replace(rows=logged_rows).at(rows)
        real = inputs.standardized(steps(batch))
        rate = torch.full_like(noise[:, 0, 0], settings.learning_rate)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            made = generated(generator, real, noise)
            gradients, (_, loss) = grad_and_value(discriminator_loss, has_aux=True)(
                discriminator, real, made
            )
            adam_step(discriminator, gradients, discriminator_adam, rate)
            gradients, (_, nll) = grad_and_value(generator_loss, has_aux=True)(
                generator, discriminator, real, noise, settings.likelihood_weight
            )
            adam_step(generator, gradients, generator_adam, rate)
        return torch.stack([loss, nll])

    return update
