"""What the loop trains: a stage, made of groups that are populations of their own.

On a CPU members run one after another in groups of one (their weights then stay in cache, and a
member's numbers are bit-equal to its lone run's); on a GPU all members are one group, batched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from worldrl.errors import RunError


class Snapshot(NamedTuple):
    """What a checkpoint of a stage holds; tensors carry the whole population axis P."""

    model: dict[str, Tensor]
    state: dict[str, Tensor]
    plain: dict[str, Any]


class Stage(Protocol):
    """One part of a run: it advances by updates, reports, and can be saved at any update."""

    @property
    def name(self) -> str:
        """Used in metrics and checkpoint names."""
        ...

    @property
    def step(self) -> int:
        """Updates done."""
        ...

    @property
    def total(self) -> int | None:
        """Updates to do; None where the stage stops by itself."""
        ...

    @property
    def finished(self) -> bool:
        """Nothing is left to do."""
        ...

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Run updates up to number ``until``; return early when finished or ``stop()``."""
        ...

    def report(self) -> dict[str, list[float]]:
        """Metrics since the last report, one value a member."""
        ...

    def snapshot(self) -> Snapshot:
        """Everything that the rest of the stage depends on."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Continue exactly where ``snapshot`` was taken."""
        ...


def group_seeds(seed: int, population: int, device: torch.device) -> list[list[int]]:
    """Seeds of the members of each group."""
    seeds = [seed + member for member in range(population)]
    return [[one] for one in seeds] if device.type == "cpu" else [seeds]


class Progressing(Protocol):
    """What a group tells about how far it is."""

    @property
    def step(self) -> int: ...

    @property
    def finished(self) -> bool: ...


def common_step(groups: Sequence[Progressing]) -> int:
    """Updates that every group which goes on has done; where none goes on, the most of any.

    A stop request may leave one group ahead of another.
    """
    going_on = [group.step for group in groups if not group.finished]
    return min(going_on) if going_on else max(group.step for group in groups)


def join(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the groups' flat tensors along P."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def listed(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, list[float]]:
    """The groups' reports as one: a value a member, ``(P,)``, by name."""
    return {name: [v for part in parts for v in part[name].tolist()] for name in parts[0]}


def split(joined: dict[str, Tensor], sizes: Iterable[int]) -> list[dict[str, Tensor]]:
    """Undo :func:`join` for groups of the given sizes."""
    parts, first = [], 0
    for size in sizes:
        parts.append({name: value[first : first + size] for name, value in joined.items()})
        first += size
    return parts


def copy_into(target: dict[str, Tensor], source: dict[str, Tensor]) -> None:
    """Overwrite flat tensors in place, so that references to them stay good.

    Raises:
        RunError: ``source`` lacks one, or has it in another shape.
    """
    for name, value in target.items():
        if name not in source or source[name].shape != value.shape:
            raise RunError(
                f"the checkpoint does not hold '{name}' as this worldrl trains it: another version "
                "wrote it, or its config.yaml was changed. Resume with the version named in "
                "environment.json and the settings as they were, or start a new run."
            )
    for name, value in target.items():
        value.copy_(source[name])


def flat(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    """References to the tensors of nested dictionaries and named tuples, by "/"-joined names.

    None holds nothing.
    """
    if isinstance(tree, Tensor):
        return {prefix: tree}
    if tree is None:
        return {}
    items = tree.items() if isinstance(tree, dict) else tree._asdict().items()
    found: dict[str, Tensor] = {}
    for name, value in items:
        found.update(flat(value, f"{prefix}/{name}" if prefix else name))
    return found
