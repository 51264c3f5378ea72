"""What a refresh of rollouts tells about itself."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from worldrl.imagination.step import Imagined


class RolloutHealth(NamedTuple):
    """What a refresh tells about itself; each ``(P,)``."""

    rows: Tensor  # transitions written
    penalty_mean: Tensor
    penalty_max: Tensor
    reward_min: Tensor  # before the penalty
    reward_max: Tensor
    reward_mean: Tensor
    disagreement_mean: Tensor | None  # deviation of the members' means, in deviations of the data
    dynamics_reward_mean: Tensor | None  # of finite rows, dropped ones too: of what was chosen
    outside_share: Tensor  # of rows, next observation or reward beyond any logged one
    clipped_share: Tensor  # of rows, some dimension clipped to the box
    terminated_share: Tensor
    stopped_share: Tensor  # of finite rows, dropped ones too: ended there as unsure or implausible
    nonfinite: Tensor  # rows dropped because a prediction was not finite


class Tally:
    """Sums of what a refresh's :class:`RolloutHealth` reports; stays on the device."""

    def __init__(self, members: int, device: torch.device) -> None:
        zero = torch.zeros(members, device=device)
        self.rows, self.finite, self.nonfinite = (zero.clone() for _ in range(3))
        self.stopped, self.penalty_max = zero.clone(), zero.clone()
        self.sums = dict.fromkeys(("penalty", "reward", "clipped", "outside", "ended"), zero)
        self.disagreement: Tensor | None = None
        self.dynamics_reward: Tensor | None = None
        self.reward_min, self.reward_max = zero + math.inf, zero - math.inf

    def add(
        self, imagined: Imagined, given: Tensor, finite: Tensor, keep: Tensor, ended: Tensor
    ) -> None:
        """Count one depth; the masks are ``(P, width)``."""
        reward = imagined.reward
        self.rows += keep.sum(1)
        said = given & finite
        self.finite += said.sum(1)
        self.nonfinite += (given & ~finite).sum(1)
        self.stopped += (said & imagined.stopped).sum(1)
        values = imagined._asdict() | {"ended": ended}
        for name, total in self.sums.items():
            self.sums[name] = total + values[name].where(keep, 0).sum(1)
        self.disagreement = _added(self.disagreement, imagined.disagreement, keep)
        self.dynamics_reward = _added(self.dynamics_reward, imagined.dynamics_reward, said)
        self.penalty_max = torch.maximum(
            self.penalty_max, imagined.penalty.where(keep, 0.0).amax(1)
        )
        self.reward_min = torch.minimum(self.reward_min, reward.where(keep, math.inf).amin(1))
        self.reward_max = torch.maximum(self.reward_max, reward.where(keep, -math.inf).amax(1))

    def health(self) -> RolloutHealth:
        """Sums turned into means and shares."""
        rows, finite = self.rows.clamp(min=1), self.finite.clamp(min=1)
        mean = {name: total / rows for name, total in self.sums.items()}
        return RolloutHealth(
            rows=self.rows,
            penalty_mean=mean["penalty"],
            penalty_max=self.penalty_max,
            reward_min=self.reward_min.where(self.rows > 0, 0.0),
            reward_max=self.reward_max.where(self.rows > 0, 0.0),
            reward_mean=mean["reward"],
            disagreement_mean=None if self.disagreement is None else self.disagreement / rows,
            dynamics_reward_mean=(
                None if self.dynamics_reward is None else self.dynamics_reward / finite
            ),
            outside_share=mean["outside"],
            clipped_share=mean["clipped"],
            terminated_share=mean["ended"],
            stopped_share=self.stopped / finite,
            nonfinite=self.nonfinite,
        )


def _added(total: Tensor | None, values: Tensor | None, counted: Tensor) -> Tensor | None:
    """A sum of what may not be known, ``(P,)``, with ``values (P, width)`` of some rows."""
    if values is None:
        return total
    here = values.where(counted, 0).sum(1)
    return here if total is None else total + here
