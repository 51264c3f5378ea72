"""What the tests of several folders share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worldrl.types import Batch, Context, Log, Transitions


def log_of(rows: int, observation_size: int, action_size: int, seed: int = 0) -> Log:
    """Random float32 transitions in episodes of ten; the last step of every second one ends it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    last = torch.arange(rows) % 10 == 9
    last[-1:] = True
    ended = last & (torch.arange(rows) % 20 == 19)
    action = normal(rows, action_size).tanh()
    known = (~last).float()
    transitions = Transitions(
        2 * normal(rows, observation_size) + 1,
        action,
        normal(rows),
        2 * normal(rows, observation_size) + 1,
        ended.float(),
    )
    return Log(transitions, action.roll(-1, 0) * known[:, None], known)


def context_of(observation_size: int, action_size: int) -> Context:
    """A log of 40 rows and no model."""
    return Context(log_of(40, observation_size, action_size))


def batch_of(transitions: Transitions, logged: int = 0) -> Batch:
    """``(P, B)`` transitions; the first ``logged`` of them are called rows 0, 1, ... of the log."""
    members = transitions.reward.shape[0]
    return Batch(*transitions, torch.arange(logged).expand(members, -1))


def of_member(tree: Any, member: int) -> Any:
    """One member of named tuples, dictionaries and tensors, with its axis kept."""
    return tree_map(lambda value: value[member : member + 1], tree)


def converted(tree: Any, dtype: torch.dtype) -> Any:
    """A copy with its floating-point tensors in another precision."""
    return tree_map(lambda v: v.to(dtype, copy=True) if v.is_floating_point() else v.clone(), tree)


def tree_map(function: Any, tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {name: tree_map(function, value) for name, value in tree.items()}
    if tree is None:
        return None
    return type(tree)(*(tree_map(function, value) for value in tree))
