"""What the nouns hand to each other: typed batches and the protocols they meet in.

Axes, in this order wherever they occur: ``P`` population members (one per seed), ``N`` members of
a dynamics ensemble, ``B`` or ``R`` rows, ``S`` observation size, ``A`` action size. Scalars per row
are ``(B,)``, never ``(B, 1)``. Actions inside worldrl are scaled to [-1, 1]; a saved policy holds
the bounds that map them back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

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


class Batch(NamedTuple):
    """What one update learns from: :class:`Transitions` ``(P, B)``, the logged ones first."""

    observation: Tensor  # (P, B, S)
    action: Tensor  # (P, B, A)
    reward: Tensor  # (P, B)
    next_observation: Tensor  # (P, B, S)
    terminated: Tensor  # (P, B)
    # (P, L) int64: numbers in Log of the first L rows; the others are imagined or, where a learner
    # is fine-tuned, from its environment
    logged: Tensor


class Log(NamedTuple):
    """The logged data as learners see it; row n is one transition, in episode order."""

    transitions: Transitions  # (n, ...)
    next_action: Tensor  # (n, A), the action logged after this one; 0 where there is none
    next_action_known: Tensor  # (n,), 1.0 or 0.0


class Prediction(NamedTuple):
    """Every ensemble member's Gaussian over the next observation and the reward (last column)."""

    mean: Tensor  # (P, N, R, S + 1), in observation and reward units
    std: Tensor  # (P, N, R, S + 1)


class DynamicsModel(Protocol):
    """A one-step world with an ensemble of members."""

    @property
    def num_members(self) -> int:
        """N."""
        ...

    @property
    def elites(self) -> Tensor:
        """``(P, E)`` int64: the members to sample from."""
        ...

    def predict(self, observation: Tensor, action: Tensor) -> Prediction:
        """``(P, R, S), (P, R, A) -> Prediction``; deterministic."""
        ...

    def predict_each(self, observation: Tensor, action: Tensor) -> Prediction:
        """Every member on rows of its own: ``(P, N, R, S), (P, N, R, A) -> Prediction``."""
        ...

    def of_elites(self) -> DynamicsModel:
        """The elites alone, in their order: N is E."""
        ...

    def of_members(self, chosen: Sequence[int]) -> DynamicsModel:
        """The models of the population members of these numbers, in this order."""
        ...


class Sampled(NamedTuple):
    """What every member predicted, and the sample that one of them made for each row."""

    prediction: Prediction
    member: Tensor  # (P, R) int64: who made the sample
    value: Tensor  # (P, R, S + 1), the next observation and the reward, before any box
    spread: Tensor  # (S + 1,) deviations of the data's observations and rewards


#: Uncertainty of a prediction or of its sample: ``Sampled -> (P, R)``, non-negative.
Penalty: TypeAlias = Callable[[Sampled], Tensor]

#: ``(observation, action, next_observation) -> (...) bool``: does the episode end here?
Termination: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


#: Everything a learner owns, as a tree of tensors that updates change in place.
LearnerState: TypeAlias = dict[str, Any]


class Imagination(Protocol):
    """Makes synthetic experience for a group of learners."""

    @property
    def capacity(self) -> int:
        """Rows that :meth:`fill` writes at most, for each member."""
        ...

    @property
    def state(self) -> dict[str, Tensor]:
        """What :meth:`prepare` changes, each ``(P, ...)``; empty where it changes nothing."""
        ...

    def prepare(self, number: int, learner: LearnerState) -> None:
        """Before refresh ``number``: an adversarial model, say, learns from the learner."""
        ...

    def sources(self, learner: LearnerState) -> Parameters:
        """References to what the next refresh is made from, each ``(P, ...)``: the policy, say."""
        ...

    def fill(self, rows: Tensor, number: int, sources: Parameters) -> tuple[Tensor, Metrics]:
        """Write packed transitions to the front of ``rows (P, capacity, W)``.

        What is written is a function of the arguments and the members' seeds: called again, it
        comes out the same.

        Args:
            number: of the refresh; another number draws other noise.
            sources: what :meth:`sources` named, as it was then.

        Returns:
            Rows written ``(P,)`` int64, and health metrics.
        """
        ...


class Experience(Protocol):
    """What a group of members learns from beside its log, renewed as they learn."""

    @property
    def metrics(self) -> Metrics:
        """Its health, each ``(P,)``."""
        ...

    @property
    def rows(self) -> Tensor:
        """``(m, W)``, all members' rows, packed as worldrl.rows says."""
        ...

    def renew(self, step: int, learner: LearnerState) -> int:
        """Renew the rows where update ``step`` asks for it; the update that asks for more."""
        ...

    def indices(self, uniform: Tensor) -> Tensor:
        """``(P, ...)`` float64 in [0, 1) to rows of the member's own, uniformly."""
        ...

    def rows_held(self) -> list[int]:
        """Rows of every member."""
        ...

    def tensors(self, learner: LearnerState) -> dict[str, Tensor]:
        """References to what must be saved, each ``(P, ...)``."""
        ...

    def ledger(self) -> Any:
        """The rest of what must be saved; JSON-able."""
        ...

    def expect(self, ledger: Any, learner: LearnerState) -> None:
        """Take over a ledger; :meth:`tensors` then has the place of what is restored next."""
        ...

    def remake(self) -> None:
        """Come, after that, to where it was.

        Raises:
            RunError: it cannot.
        """
        ...


class Policy(Protocol):
    """Acts on batches of observations; one row of the population axis per member."""

    def __call__(self, observation: Tensor, noise: Tensor | None) -> Tensor:
        """``(P, B, S), (P, B, A) or None (deterministic) -> (P, B, A)`` in [-1, 1]."""
        ...


#: What an update draws: standard normals, say, by name; of one update of P members ``(P, ...)``.
Noise: TypeAlias = dict[str, Tensor]


class Context(NamedTuple):
    """What an update may consult beside its batch; no update changes it."""

    log: Log
    # A learned world of the same members, where imagination or an encoder asks for one; else None,
    # as it is with a simulator.
    model: DynamicsModel | None = None


class Learner(Protocol):
    """One algorithm. Methods are functions of tensors; the object holds only settings."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Keys of what :meth:`update` returns, of all phases."""
        ...

    @property
    def phases(self) -> int:
        """Updates of a turn: 2 where the actor learns at every second one. All but the last of a
        turn are alike."""
        ...

    def initialise(self, seeds: Sequence[int], log: Log, first: int = 0) -> LearnerState:
        """Fresh state on the log's device, one member per seed.

        ``state["settings"]`` holds every number that may differ between members, each ``(P,)``
        float64; updates read them there. A learner of values has ``discount`` among them.

        Args:
            first: the number of the first of these members in the run's population.
        """
        ...

    def noise(self, generator: torch.Generator, count: int, batch_size: int) -> Noise:
        """One member's noise for ``count`` updates, each ``(count, ...)``."""
        ...

    def update(
        self, state: LearnerState, batch: Batch, noise: Noise, context: Context, phase: int = 0
    ) -> Metrics:
        """One update in place.

        Args:
            phase: the update's number modulo :attr:`phases`.

        Returns:
            Each ``(P,)``; a phase may leave out what it does not compute.
        """
        ...

    def policy_parameters(self, state: LearnerState) -> Parameters:
        """What :meth:`act` needs, by reference."""
        ...

    def act(self, policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
        """``(P, B, S), (P, B, A) or None (deterministic) -> (P, B, A)`` in [-1, 1]."""
        ...


@runtime_checkable
class ValueLearner(Protocol):
    """A learner that can tell what an action is worth: all that have critics. Adversarial worlds,
    judges and the footing of fine-tuning ask."""

    def values(self, state: LearnerState, observation: Tensor, action: Tensor) -> Tensor:
        """``(P, B, S), (P, B, A) -> (P, B)``: what learning makes of the critics (the least, say),
        not of their targets."""
        ...


@runtime_checkable
class DelayedTargets(Protocol):
    """A learner whose target networks do not follow at every update."""

    @property
    def target_every(self) -> int:
        """Updates of which one moves them."""
        ...
