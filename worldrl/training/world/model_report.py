"""How good a world model is, measured on episodes that it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldrl.data.dataset import Dataset
from worldrl.evaluation.model_error import ModelErrorReport, measure, segments
from worldrl.imagination.setup import Ends
from worldrl.models.world import World
from worldrl.random import generator
from worldrl.training.logged import Logged

#: With fewer episodes none can be spared.
MIN_EPISODES = 20
MAX_TEST_EPISODES = 50


def choose_test_episodes(dataset: Dataset, ratio: float) -> NDArray[np.bool_]:
    """``(E,)``: episodes kept apart from training, the same for every seed."""
    count = dataset.num_episodes
    chosen = np.zeros(count, bool)
    if ratio > 0 and count >= MIN_EPISODES:
        order = torch.randperm(count, generator=generator(0, "world.test")).numpy()
        chosen[order[: min(max(round(ratio * count), 1), MAX_TEST_EPISODES)]] = True
    return chosen


def trainable_rows(logged: Logged, test_episodes: NDArray[np.bool_]) -> Tensor:
    """``(n,)`` numbers of the logged rows that a world may learn from."""
    kept_apart = torch.from_numpy(test_episodes).to(logged.episode.device)[logged.episode]
    return (logged.next_known & ~kept_apart).nonzero().squeeze(1)


def measure_world(
    world: World,
    dataset: Dataset,
    logged: Logged,
    test_episodes: NDArray[np.bool_],
    holdout: Tensor,
    seeds: Sequence[int],
    ends: Ends,
) -> ModelErrorReport:
    """One-step error, calibration, open-loop error and ends of every member's world.

    Args:
        test_episodes: ``(E,)``; without any, the rows held out for early stopping serve for the
            one-step measures, and open-loop error is not measured.
        holdout: ``(P, H)`` row numbers held out for early stopping.
        ends: the rule that imagined episodes will end by, compared with the logged ends.
    """
    recorded = None
    if test_episodes.any():
        kept = torch.from_numpy(test_episodes).to(logged.episode.device)
        rows = (kept[logged.episode] & logged.next_known).nonzero().squeeze(1)
        holdout = rows.expand(len(seeds), -1)
        recorded = segments(
            dataset.subset(test_episodes),
            logged.action_low,
            logged.action_high,
            device=logged.rows.device,
        )
    batch = logged.at(holdout)

    def rule(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        return ends(world.terminator, observation, action, next_observation)

    return measure(world.ensemble, batch, seeds, recorded, rule)


def summary(report: ModelErrorReport) -> dict[str, list[float]]:
    """The few numbers worth a line, one a member."""
    found: dict[str, Any] = {
        "test_mse_norm": report.one_step.mse_norm.mean(1).tolist(),
        "test_nll": report.one_step.nll.mean(1).tolist(),
        "coverage_80": report.mixture.coverage[:, 1].tolist(),
    }
    if report.open_loop is not None:
        for index, horizon in enumerate(report.horizons):
            if horizon in (1, 5, 25):
                errors = report.open_loop.mean_median[:, index].tolist()
                found[f"open_loop_median_{horizon}"] = errors
    return found
