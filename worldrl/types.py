"""What the nouns hand to each other: typed batches and the protocols they meet in.

Axes, in this order wherever they occur: ``P`` population members (one per seed), ``N`` members of
a dynamics ensemble, ``B`` or ``R`` rows, ``S`` observation size, ``A`` action size. Scalars per row
are ``(B,)``, never ``(B, 1)``. Actions inside worldrl are scaled to [-1, 1]; a saved policy holds
the bounds that map them back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

#: Named tensors of one network; every one carries the leading population axis.
Parameters: TypeAlias = dict[str, Tensor]

#: Per-member scalars of an update or a refresh, each ``(P,)``.
Metrics: TypeAlias = dict[str, Tensor]


class Transitions(NamedTuple):
    """A batch of one-step experience; ``...`` is usually ``(P, B)``."""

    observation: Tensor  # (..., S)
    action: Tensor  # (..., A), in [-1, 1]
    reward: Tensor  # (...)
    next_observation: Tensor  # (..., S)
    terminated: Tensor  # (...), 1.0 where the environment ended the episode, else 0.0


class Prediction(NamedTuple):
    """Every ensemble member's Gaussian over the next observation and the reward (last column)."""

    mean: Tensor  # (P, N, R, S + 1), in observation and reward units
    std: Tensor  # (P, N, R, S + 1)


class DynamicsModel(Protocol):
    """A learned one-step world with an ensemble of members."""

    @property
    def elites(self) -> Tensor:
        """``(P, E)`` int64: the members to sample from."""
        ...

    def predict(self, observation: Tensor, action: Tensor) -> Prediction:
        """``(P, R, S), (P, R, A) -> Prediction``; deterministic."""
        ...


#: Uncertainty of a prediction: ``Prediction -> (P, R)``, non-negative.
Penalty: TypeAlias = Callable[[Prediction], Tensor]

#: ``(observation, action, next_observation) -> (...) bool``: does the episode end here?
Termination: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


class Imagination(Protocol):
    """Makes synthetic experience for a group of learners."""

    @property
    def capacity(self) -> int:
        """Rows that :meth:`fill` writes at most, for each member."""
        ...

    def fill(self, rows: Tensor, number: int, policy: Parameters) -> tuple[Tensor, Metrics]:
        """Write packed transitions to the front of ``rows (P, capacity, W)``.

        What is written is a function of the arguments and the members' seeds: called again, it
        comes out the same.

        Args:
            number: of the refresh; another number draws other noise.
            policy: of every member.

        Returns:
            Rows written ``(P,)`` int64, and health metrics.
        """
        ...


class Policy(Protocol):
    """Acts on batches of observations; one row of the population axis per member."""

    def __call__(self, observation: Tensor, noise: Tensor | None) -> Tensor:
        """``(P, B, S), (P, B, A) or None (deterministic) -> (P, B, A)`` in [-1, 1]."""
        ...


#: Everything a learner owns, as a tree of tensors that updates change in place.
LearnerState: TypeAlias = dict[str, Any]


class Learner(Protocol):
    """One algorithm. Methods are functions of tensors; the object holds only settings."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Keys of what :meth:`update` returns."""
        ...

    def initialise(
        self, seeds: Sequence[int], device: torch.device, first: int = 0
    ) -> LearnerState:
        """Fresh state, one member per seed.

        ``state["settings"]`` holds every number that may differ between members, each ``(P,)``
        float64; updates read them there. A learner of values has ``discount`` among them.

        Args:
            first: the number of the first of these members in the run's population.
        """
        ...

    def noise(self, generator: torch.Generator, count: int, batch_size: int) -> Tensor:
        """One member's noise for ``count`` updates: ``(count, K, batch_size, A)``."""
        ...

    def update(self, state: LearnerState, batch: Transitions, noise: Tensor) -> Metrics:
        """One update in place; ``batch`` is ``(P, B)``, ``noise`` is ``(P, K, B, A)``."""
        ...

    def policy_parameters(self, state: LearnerState) -> Parameters:
        """What :meth:`act` needs, by reference."""
        ...

    def act(self, policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
        """``(P, B, S), (P, B, A) or None (deterministic) -> (P, B, A)`` in [-1, 1]."""
        ...
