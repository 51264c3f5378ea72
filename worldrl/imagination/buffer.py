"""The synthetic buffer: a ring of refreshes.

Each refresh fills one slot; after ``retain`` more refreshes it is overwritten whole, so no row
outlives its welcome and no row is ever sampled before it is written. Members fill their part of a
slot to different lengths.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from worldrl.errors import ConfigError


class SyntheticBuffer:
    """Packed imagined transitions of P members.

    Attributes:
        rows: ``(P, retain * capacity, W)``; slot ``k`` holds rows ``[k * capacity, ...)``.
        counts: ``(P, retain)`` int64, the rows that each slot holds.
    """

    def __init__(
        self, members: int, retain: int, capacity: int, width: int, device: torch.device
    ) -> None:
        self.capacity = capacity
        self.retain = retain
        check_memory(bytes_needed(members, retain, capacity, width), device)
        self.rows = torch.zeros(members, retain * capacity, width, device=device)
        self.counts = torch.zeros(members, retain, dtype=torch.int64, device=device)

    def slot(self, refresh: int) -> Tensor:
        """The rows ``(P, capacity, W)`` that refresh number ``refresh`` writes."""
        start = (refresh % self.retain) * self.capacity
        return self.rows[:, start : start + self.capacity]

    def set_count(self, refresh: int, count: Tensor) -> None:
        """State how many rows ``(P,)`` refresh number ``refresh`` wrote."""
        self.counts[:, refresh % self.retain] = count

    def indices(self, uniform: Tensor) -> Tensor:
        """Row numbers, uniform over all rows held.

        Args:
            uniform: ``(P, ...)`` float64 in [0, 1).

        Returns:
            ``(P, ...)`` int64 into :attr:`flat_rows`.
        """
        shape = (-1, *(1,) * (uniform.dim() - 1))
        ends = self.counts.cumsum(1)
        position = (uniform * ends[:, -1].view(shape)).long()
        skipped = torch.zeros_like(position)
        for slot in range(self.retain - 1):
            # Rows between the end of a slot's content and the start of the next slot.
            gap = (self.capacity - self.counts[:, slot]).view(shape)
            skipped += torch.where(position >= ends[:, slot].view(shape), gap, 0)
        member = torch.arange(len(self.rows), device=self.rows.device).view(shape)
        return position + skipped + member * self.rows.shape[1]

    @property
    def flat_rows(self) -> Tensor:
        """``(P * retain * capacity, W)``, a view."""
        return self.rows.flatten(0, 1)


def bytes_needed(members: int, retain: int, capacity: int, width: int) -> int:
    """Size of the rows of a buffer, or of several buffers with as many members in all."""
    return 4 * members * retain * capacity * width


def check_memory(needed: int, device: torch.device) -> None:
    """Refuse an allocation that cannot fit, before it is made.

    Raises:
        ConfigError: with the bytes needed and free, and the settings that shrink them.
    """
    free = available_memory(device)
    if free is not None and needed > free:
        raise ConfigError(
            f"the synthetic buffer needs {needed / 2**30:.1f} GiB on {device} and "
            f"{free / 2**30:.1f} GiB is free; lower imagination.batch_size, imagination.horizon, "
            "imagination.retain or population"
        )


def available_memory(device: torch.device) -> int | None:
    """Free bytes on ``device``; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [
        bytes for bytes in (_free_of_the_system(), _free_of_the_container()) if bytes is not None
    ]
    return min(free, default=None)


def _free_of_the_system() -> int | None:
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _free_of_the_container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """By cgroup version 2; its caches count as used there, and can be had back."""
    try:
        limit = int((folder / "memory.max").read_text())  # "max" without a limit
        used = int((folder / "memory.current").read_text())
        statistics = dict(
            line.split() for line in (folder / "memory.stat").read_text().splitlines()
        )
        return limit - used + int(statistics.get("inactive_file", 0))
    except (OSError, ValueError):
        return None
