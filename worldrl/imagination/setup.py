"""What every kind of imagination is made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from worldrl.models.world import World
from worldrl.types import Learner, Log, Parameters

F = TypeVar("F", bound=Callable[..., Any])

#: ``(terminator parameters, observation, action, next_observation) -> (P, C) bool``
Ends = Callable[[Parameters, Tensor, Tensor, Tensor], Tensor]


class Setup(NamedTuple):
    """The parts of a run that imagination works with."""

    groups: Sequence[Sequence[int]]  # seeds of the members of each group
    learner: Learner
    worlds: Sequence[World]  # one a group
    ends: Ends
    log: Log  # all that was recorded
    num_updates: int
    prepare: Callable[[Any, int], Any]
    """Compiles a function that is called so often, or lets it be."""
    next_known: Tensor | None = None
    """``(n,)`` bool, the logged rows whose next observation a model may learn; None: all."""

    @property
    def population(self) -> int:
        """Members of all groups."""
        return sum(len(seeds) for seeds in self.groups)
