"""Rewards as learners and models see them: the logged ones, scaled and shifted.

Scores and the measures of a dataset are always those of the rewards as they were logged.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldrl.config.schema import DatasetSettings
from worldrl.data.dataset import Dataset
from worldrl.errors import DataError

#: What the best and the worst episode differ by after normalisation by the range of returns.
NORMAL_RANGE = 1000.0


class RewardTransform(NamedTuple):
    """``reward * scale + shift``."""

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, reward: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(N,)`` to ``(N,)``; the identity changes no bit."""
        changed = reward.astype(np.float64) * self.scale + self.shift
        return changed.astype(np.float32)

    def equals(self, other: RewardTransform) -> bool:
        """The same but for rounding."""
        pairs = zip(self, other, strict=True)
        return all(math.isclose(one, two, rel_tol=1e-6, abs_tol=1e-9) for one, two in pairs)

    def __str__(self) -> str:
        if self == AS_LOGGED:
            return "as logged"
        return f"times {self.scale:g}, plus {self.shift:g}"


AS_LOGGED = RewardTransform()


def reward_transform(settings: DatasetSettings, dataset: Dataset) -> RewardTransform:
    """The numbers that the settings mean for this dataset.

    Raises:
        DataError: rewards are to be normalised by the range of the returns, and there is none.
    """
    scale = settings.reward_scale
    if settings.reward_normalization == "return_range":
        returns = dataset.returns()  # of episodes as they ended, at whatever length
        spread = float(returns.max() - returns.min())
        # A sum of as many rounded rewards is not exact.
        noise = 1e-6 * float(np.abs(returns).max())
        if spread <= noise:
            raise DataError(
                f"{dataset.metadata.source}: dataset.reward_normalization=return_range divides "
                "rewards by the range of the episodes' returns, and "
                + (
                    "there is one episode"
                    if dataset.num_episodes == 1
                    else f"all {dataset.num_episodes} episodes return {returns.mean():g}"
                )
                + ". Set dataset.reward_normalization=none, and dataset.reward_scale if need be."
            )
        scale *= NORMAL_RANGE / spread
    return RewardTransform(scale, settings.reward_shift)


def recorded_transform(facts: dict[str, Any]) -> RewardTransform:
    """What the facts of a model say; one that says nothing saw rewards as they were logged."""
    return RewardTransform(**facts.get("rewards", {}))
