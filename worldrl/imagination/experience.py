"""Experience that is imagined: the last refreshes of an imagination.

A refresh is a function of its number, its sources (the policy, say) and the seeds, so a checkpoint
holds the sources and a digest of the rows each made, and resuming makes the rows again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldrl.config.imagination import ImaginationSettings
from worldrl.errors import RunError
from worldrl.imagination.buffer import SyntheticBuffer, bytes_needed, check_memory
from worldrl.models.anchors import is_anchor_network
from worldrl.types import Imagination, LearnerState, Metrics, Parameters


class Refresh(NamedTuple):
    """What it takes to make one refresh again."""

    number: int
    sources: Parameters
    digest: list[str]  # sha256 of each member's rows; empty until a checkpoint asks


class ImaginedExperience:
    """The synthetic rows of a group of members; a :class:`worldrl.types.Experience`.

    Args:
        every: updates between refreshes.
        retain: refreshes that are kept.
        width: columns of a packed row.
        device: of the rows.
    """

    def __init__(
        self,
        imagination: Imagination,
        members: int,
        every: int,
        retain: int,
        width: int,
        device: torch.device,
    ) -> None:
        self.every, self.retain = every, retain
        self.buffer = SyntheticBuffer(members, retain, imagination.capacity, width, device)
        self.metrics: Metrics = {}
        self._imagination = imagination
        self._live: list[Refresh] = []

    def renew(self, step: int, learner: LearnerState) -> int:
        """Refresh where update ``step`` asks for it; the update that asks for the next one."""
        number = step // self.every
        if not self._live or self._live[-1].number < number:
            self._imagination.prepare(number, learner)
            sources = copied(self._imagination.sources(learner))
            self._live = [*self._live, Refresh(number, sources, [])][-self.retain :]
            self._make(self._live[-1])
        return (number + 1) * self.every

    @property
    def rows(self) -> Tensor:
        """``(m, W)``, all members' rows."""
        return self.buffer.flat_rows

    def indices(self, uniform: Tensor) -> Tensor:
        """``(P, ...)`` float64 in [0, 1) to rows of the member's own, uniformly."""
        return self.buffer.indices(uniform)

    def rows_held(self) -> list[int]:
        """Rows of every member."""
        held: list[int] = self.buffer.counts.sum(1).tolist()
        return held

    def _make(self, refresh: Refresh) -> None:
        rows = self.buffer.slot(refresh.number)
        count, self.metrics = self._imagination.fill(rows, refresh.number, refresh.sources)
        self.buffer.set_count(refresh.number, count)

    def tensors(self, learner: LearnerState) -> dict[str, Tensor]:
        """References to what must be saved, each ``(P, ...)``: what the live refreshes were made
        from but for frozen networks, and the state of the imagination.

        Names are the same before every slot is filled: groups are saved together.
        """
        like = self._imagination.sources(learner)
        empty = {name: torch.zeros_like(value) for name, value in like.items()}
        slots = [refresh.sources for refresh in self._live]
        slots += [empty] * (self.retain - len(slots))
        found = {
            f"{slot}/{name}": value
            for slot, sources in enumerate(slots)
            for name, value in sources.items()
            if not is_anchor_network(name)
        }
        return found | {
            f"imagination/{name}": value for name, value in self._imagination.state.items()
        }

    def ledger(self) -> list[tuple[int, list[str]]]:
        """Number and digests of every live refresh."""
        self._live = [
            refresh if refresh.digest else refresh._replace(digest=self._digest(refresh.number))
            for refresh in self._live
        ]
        return [(refresh.number, refresh.digest) for refresh in self._live]

    def _digest(self, number: int) -> list[str]:
        counts = self.buffer.counts[:, number % self.retain].tolist()
        slot = self.buffer.slot(number)
        return [
            hashlib.sha256(slot[member, :count].cpu().numpy().tobytes()).hexdigest()
            for member, count in enumerate(counts)
        ]

    def expect(self, ledger: list[tuple[int, list[str]]], learner: LearnerState) -> None:
        """Make room in :meth:`tensors` for those of a ledger, before they are restored."""
        like = self._imagination.sources(learner)
        self._live = [Refresh(number, copied(like), digest) for number, digest in ledger]

    def remake(self) -> None:
        """Make all live refreshes again.

        Raises:
            RunError: one came out differently.
        """
        for refresh in self._live:
            self._make(refresh)
            if self._digest(refresh.number) != refresh.digest:
                raise RunError(
                    "the synthetic data of this run came out differently when it was made again, "
                    "so the run cannot be continued exactly: the machine, its number of threads "
                    "or the versions of torch differ from those in environment.json. Resume "
                    "where the run was started, or start a new run."
                )


def copied(sources: Parameters) -> Parameters:
    """Copies, but for frozen networks."""
    return {
        name: value if is_anchor_network(name) else value.clone() for name, value in sources.items()
    }


def imagined_experience(
    settings: ImaginationSettings,
    imaginations: Sequence[Imagination],
    groups: Sequence[Sequence[int]],
    logged: Tensor,
) -> list[ImaginedExperience]:
    """Of every group, kept as the settings say.

    Args:
        groups: seeds of the members of each.
        logged: rows ``(n, W)`` like those that are imagined.
    """
    assert settings.kind != "none"
    kept = settings.every, settings.retain, logged.shape[1], logged.device
    return [
        ImaginedExperience(imagination, len(seeds), *kept)
        for imagination, seeds in zip(imaginations, groups, strict=True)
    ]


def check_buffers(settings: ImaginationSettings, members: int, logged: Tensor) -> None:
    """Refuse the synthetic buffers of all members together where they do not fit.

    Asked for together, because memory that one was given counts as free until it is written.

    Args:
        logged: rows ``(n, W)`` like those that are imagined.

    Raises:
        ConfigError: with the bytes needed and free, and the settings that shrink them.
    """
    if settings.kind != "none":
        rows = settings.most_rows(members)
        needed = bytes_needed(members, settings.retain, rows, logged.shape[1])
        check_memory(needed, logged.device)
