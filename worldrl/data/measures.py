"""How much a dataset holds, how good it is, and how much of the space it covers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldrl.data.dataset import Dataset
from worldrl.data.rows import row_hashes
from worldrl.errors import DataError

_EXACT_DIMENSIONS = 6  # beyond it nearly every pair falls into a bin of its own
_EXACT_BINS = 100
_PROJECTED_DIMENSIONS = 8
_PROJECTED_BINS = 10


@dataclass(frozen=True)
class Summary:
    """What ``worldrl data info`` prints; returns are undiscounted, counts are of episodes."""

    source: str
    sha256: str
    env_id: str | None
    behaviour: str | None
    rows: int | None  # in the source, before those without a successor were dropped
    transitions: int
    episodes: int
    terminated: int
    truncated: int
    observation_shape: tuple[int, ...]
    observation_type: str
    action_shape: tuple[int, ...]  # () for discrete actions
    action_type: str
    action_low: list[float] | None  # stated bounds
    action_high: list[float] | None
    action_min: list[float] | int  # what the data holds
    action_max: list[float] | int
    reward_min: float
    reward_max: float
    return_mean: float
    return_std: float
    return_min: float
    return_max: float
    length_mean: float
    length_min: int
    length_max: int
    warnings: tuple[str, ...]


def summary(dataset: Dataset) -> Summary:
    """Sizes and distributions of one dataset."""
    returns, metadata = dataset.returns(), dataset.metadata
    low, high = metadata.action_low, metadata.action_high
    return Summary(
        metadata.source,
        metadata.sha256,
        metadata.env_id,
        metadata.behaviour,
        metadata.source_rows,
        dataset.num_transitions,
        dataset.num_episodes,
        int(dataset.terminated.sum()),
        int(dataset.truncated.sum()),
        dataset.observation_shape,
        str(dataset.observations.dtype),
        dataset.action_shape,
        str(dataset.actions.dtype),
        None if low is None else low.tolist(),
        None if high is None else high.tolist(),
        dataset.actions.min(0).tolist(),
        dataset.actions.max(0).tolist(),
        float(dataset.rewards.min()),
        float(dataset.rewards.max()),
        float(returns.mean()),
        float(returns.std()),
        float(returns.min()),
        float(returns.max()),
        float(dataset.lengths.mean()),
        int(dataset.lengths.min()),
        int(dataset.lengths.max()),
        metadata.warnings,
    )


def trajectory_quality(dataset: Dataset, random_return: float, online_return: float) -> float:
    """TQ: 0 at a random policy's return, 1 at the best return learned online.

    Schweighofer et al. 2021, arXiv 2111.04714, section 4.
    """
    if not online_return > random_return:
        raise DataError(
            f"TQ needs an online return above the random one, but {online_return} is not above "
            f"{random_return}"
        )
    return (float(dataset.returns().mean()) - random_return) / (online_return - random_return)


class Coverage(NamedTuple):
    """State-action coverage against a reference replay of as many rows."""

    saco: float  # unique pairs in the data / unique pairs in the reference
    lsaco: float | None  # ratio of their logarithms; None where the reference has one pair
    unique: int
    reference_unique: int
    rows: int  # compared, from the start of each
    variant: str  # how pairs were told apart


def coverage(dataset: Dataset, reference: Dataset) -> Coverage:
    """SACo and lSACo (arXiv 2111.04714, section 4), counted exactly instead of by HyperLogLog.

    Bins span the reference's range in both sets, so sets compared with one reference compare with
    each other. Up to 6 continuous dimensions get 100 bins each. With more, nearly every pair is
    unique and SACo would only compare sizes: the pairs are first projected to 8 dimensions by a
    fixed random matrix and get 10 bins each; ``variant`` says so. Images and discrete actions
    count as they are.

    Raises:
        DataError: observations or actions of the two differ in shape or type.
    """
    for ours, theirs in (
        (dataset.observations, reference.observations),
        (dataset.actions, reference.actions),
    ):
        if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
            raise DataError(
                f"{dataset.metadata.source} and its reference {reference.metadata.source} hold "
                f"unlike things: {ours.shape[1:]} {ours.dtype} and {theirs.shape[1:]} "
                f"{theirs.dtype}; the reference must come from the same environment"
            )
    n = min(dataset.num_transitions, reference.num_transitions)
    images = dataset.observations.dtype == np.uint8
    size = dataset.observations[0].size * (not images) + sum(dataset.action_shape)
    variant = (
        f"{_EXACT_BINS} bins a dimension"
        if size <= _EXACT_DIMENSIONS
        else f"{_PROJECTED_BINS} bins a dimension of a random projection from {size} to "
        f"{_PROJECTED_DIMENSIONS}"
    )
    exact_ours, ours = _pairs(dataset, images)
    exact_theirs, theirs = _pairs(reference, images)
    low, high = theirs.min(0), theirs.max(0)
    scale = np.where(high > low, high - low, 1)
    unique = [
        len(np.unique(row_hashes(_binned((pairs[:n] - low) / scale, size), exact[:n])))
        for exact, pairs in ((exact_ours, ours), (exact_theirs, theirs))
    ]
    lsaco = float(np.log(unique[0]) / np.log(unique[1])) if unique[1] > 1 else None
    return Coverage(unique[0] / unique[1], lsaco, unique[0], unique[1], n, variant)


def _pairs(dataset: Dataset, images: bool) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """What counts exactly ``(N, k)`` and what is binned ``(N, 1 + size)``, first column 0."""
    n = dataset.num_transitions
    observations = dataset.observations[dataset.observation_rows].reshape(n, -1)
    actions = dataset.actions.reshape(n, -1)
    exact = np.zeros((n, 1), np.uint64)
    binned = np.zeros((n, 1), np.float32)
    if images:
        exact = np.stack([exact[:, 0], row_hashes(observations)], 1)
    else:
        binned = np.concatenate([binned, observations], 1)
    if dataset.discrete:
        exact = np.concatenate([exact, actions.astype(np.uint64)], 1)
    else:
        binned = np.concatenate([binned, actions], 1)
    return exact, binned


def _binned(unit: NDArray[np.float32], size: int) -> NDArray[np.int32]:
    """Bin numbers of coordinates that span [0, 1] in the reference; beyond it the end bins."""
    if size <= _EXACT_DIMENSIONS:
        return np.asarray(np.clip(unit * _EXACT_BINS, 0, _EXACT_BINS - 1), np.int32)
    matrix = np.random.default_rng(0).standard_normal((unit.shape[1], _PROJECTED_DIMENSIONS))
    # Scaled so that each projection varies about as much as one coordinate does.
    projected = (unit.clip(0, 1) - 0.5) @ (matrix / np.sqrt(size))
    bins: NDArray[np.int32] = np.floor(projected * _PROJECTED_BINS).astype(np.int32)
    return bins
