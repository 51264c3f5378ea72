"""The logged data as training holds it: packed rows on the device, actions in [-1, 1]."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldrl.data.actions import to_unit
from worldrl.data.dataset import Dataset
from worldrl.errors import DataError
from worldrl.rows import pack, unpack
from worldrl.training.rewards import AS_LOGGED, RewardTransform
from worldrl.types import Log, Transitions


class Logged(NamedTuple):
    """Every transition once, in episode order."""

    rows: Tensor  # (num_rows, W), packed as worldrl.rows says
    next_known: Tensor  # (num_rows,) bool: the true next observation is there
    episode: Tensor  # (num_rows,) int64
    observation_size: int
    action_size: int
    action_low: np.ndarray  # (A,) float32, environment units
    action_high: np.ndarray  # (A,)
    rewards: RewardTransform = AS_LOGGED  # what was done to the rewards of the rows

    @property
    def transitions(self) -> Transitions:
        """``(num_rows, ...)``, views."""
        return unpack(self.rows, self.observation_size, self.action_size)

    @property
    def log(self) -> Log:
        """What learners see."""
        transitions = self.transitions
        same = self.episode[1:] == self.episode[:-1]
        known = torch.cat([same, same.new_zeros(min(1, len(self.rows)))]).to(self.rows.dtype)
        action = transitions.action.roll(-1, 0) * known[:, None]
        return Log(transitions, action, known)

    def at(self, rows: Tensor) -> Transitions:
        """``(...)`` row numbers to transitions ``(..., ...)``."""
        return unpack(self.rows[rows], self.observation_size, self.action_size)


def logged(dataset: Dataset, device: torch.device, rewards: RewardTransform = AS_LOGGED) -> Logged:
    """Move a dataset of vectors to ``device``, with its rewards transformed.

    Raises:
        DataError: observations are not vectors, or actions are not continuous.
    """
    source = dataset.metadata.source
    if dataset.discrete:
        raise DataError(
            f"{source}: actions are discrete, and every learner and the dynamics ensemble are of "
            "continuous actions (A,). `worldrl data info`, `import`, `export` and `collect` work "
            "with such data; `train`, `pretrain` and `data label` need vectors of actions, from "
            "an environment whose action space is a Box."
        )
    if len(dataset.observation_shape) != 1:
        raise DataError(
            f"{source}: observations have shape {dataset.observation_shape}, and every learner "
            "and the dynamics ensemble learn from vectors (S,). Flatten them."
        )
    low, high = (np.asarray(bound, np.float32) for bound in dataset.action_bounds())
    arrays = dataset.transitions()
    action = to_unit(arrays.action, low, high)
    transitions = Transitions(
        torch.from_numpy(np.ascontiguousarray(arrays.observation)),
        torch.from_numpy(action),
        torch.from_numpy(rewards(arrays.reward)),
        torch.from_numpy(np.ascontiguousarray(arrays.next_observation)),
        torch.from_numpy(arrays.terminated.astype(np.float32)),
    )
    return Logged(
        pack(transitions).to(device),
        torch.from_numpy(np.ascontiguousarray(arrays.next_known)).to(device),
        torch.from_numpy(np.ascontiguousarray(arrays.episode)).to(device),
        dataset.observation_shape[0],
        dataset.action_shape[0],
        low,
        high,
        rewards,
    )
