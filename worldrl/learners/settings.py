"""The numbers of a learner that may differ between members, as tensors of its state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worldrl.config.members import per_member


def settings_tensors(
    settings: Mapping[str, float | tuple[float, ...]],
    first: int,
    count: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Each ``(count,)`` float64: the values of members ``first`` to ``first + count``."""
    return {
        name: torch.tensor(
            per_member(value, first + count)[first : first + count],
            dtype=torch.float64,
            device=device,
        )
        for name, value in settings.items()
    }
