"""A small part of a dataset that stands for it: for replay while later tasks are learned.

Model-based experience selection after OER (Gai et al. 2023, arXiv 2305.13804): the policy that was
learned walks in the world model, and the logged transitions nearest to its steps are kept. The
paper's abstract says so much; how near is told (observation and action, each number in units of its
deviation in the data) and that rows are taken once, by turns, are ours.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldrl.config.selection import SelectSettings
from worldrl.data.dataset import Dataset
from worldrl.errors import DataError
from worldrl.imagination.walks import ground_of, walk
from worldrl.nearest import nearest
from worldrl.random import generator
from worldrl.training.logged import Logged
from worldrl.training.world.world_model import WorldModel, ends_function
from worldrl.types import Learner, Parameters


def random_rows(dataset: Dataset, num: int, seed: int) -> NDArray[np.bool_]:
    """``(N,)``: any rows, all alike."""
    keep = np.zeros(dataset.num_transitions, bool)
    order = torch.randperm(len(keep), generator=generator(seed, "select.random")).numpy()
    keep[order[:num]] = True
    return keep


def best_rows(dataset: Dataset, num: int) -> NDArray[np.bool_]:
    """``(N,)``: episodes in the order of their returns; of the last one what there is room for."""
    order = np.argsort(-dataset.returns(), kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    rows = np.argsort(place[dataset.episode_of_row], kind="stable")
    keep = np.zeros(dataset.num_transitions, bool)
    keep[rows[:num]] = True
    return keep


@torch.no_grad()
def visited_rows(
    dataset: Dataset,
    logged: Logged,
    model: WorldModel,
    learner: Learner,
    policy: Parameters,
    settings: SelectSettings,
) -> NDArray[np.bool_]:
    """``(N,)``: nearest to the steps of a policy ``(1, ...)`` in all worlds of a model.

    Raises:
        DataError: every walk breaks at its first step.
    """
    seeds: list[int] = model.facts["seeds"]
    count, device = len(seeds), logged.rows.device
    ends = ends_function(model.facts["termination"], logged.observation_size)
    ground = ground_of(model.world, ends, seeds, "none", logged.log)
    walks = math.ceil(settings.num / (settings.horizon * count))
    source = generator(settings.seed, "select.starts")
    picked = torch.randint(dataset.num_episodes, (count, walks), generator=source)
    first = torch.from_numpy(dataset.starts)[picked].to(device)
    everywhere = {name: one.expand(count, *one.shape[1:]) for name, one in policy.items()}
    data, steps = logged.transitions, []
    starts = data.observation[first]
    for visited in walk(ground, learner.act, everywhere, starts, settings.horizon, settings.seed):
        at = visited.transitions
        steps.append(torch.cat([at.observation, at.action], -1)[visited.alive])
    pairs = torch.cat([data.observation, data.action], -1)
    if not sum(map(len, steps)):
        raise DataError(
            "the policy meets predictions that are not finite at its first step; use another model"
        )
    mean, spread = pairs.mean(0), pairs.std(0, correction=0)
    scale = spread.where(spread > 0, 1.0)
    points, visits = ((each - mean) / scale for each in (pairs, torch.cat(steps)))
    # In any order: the last turn may serve a part of the visits alone.
    order = torch.randperm(len(visits), generator=generator(settings.seed, "select.order"))
    return by_turns(visits[order.to(device)], points, settings.num).cpu().numpy()


def by_turns(visits: Tensor, points: Tensor, num: int) -> Tensor:
    """``num`` of the points ``(n, D)``: each of the visits ``(m, D)`` takes the nearest that is
    left, and again until there are enough.

    Visits that want the same point in one turn share it. ``(n,) bool``.
    """
    keep = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    while (missing := num - int(keep.sum())) > 0:
        left = (~keep).nonzero().squeeze(1)
        wanted = left[nearest(visits[None], points[left][None])[0]]
        distinct, turn = torch.unique(wanted, return_inverse=True)
        # The first visit that wants each: unique() sorts by the point.
        at = torch.full_like(distinct, len(visits))
        at.scatter_reduce_(0, turn, torch.arange(len(visits), device=points.device), "amin")
        keep[distinct[at.argsort()[:missing]]] = True
    return keep
