"""Learners that go on from the weights of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from worldrl.config.schema import TrainConfig
from worldrl.errors import RunError
from worldrl.models.anchors import is_anchor_network
from worldrl.models.mlp import part
from worldrl.random import generator
from worldrl.training import checkpoint
from worldrl.training.run_directory import RunDirectory
from worldrl.training.stages import flat
from worldrl.types import LearnerState, Parameters

#: Parts of a learner's state that have a critic axis M behind P.
CRITICS = ("critic", "target")


def trained_state(run: str, dataset_sha256: str) -> dict[str, Tensor]:
    """The learners of a run's last checkpoint, flat, each ``(P, ...)``.

    Raises:
        RunError: there is none yet, or it learned from other data.
    """
    directory = RunDirectory.open(Path(run))
    last = checkpoint.last_checkpoint(directory)
    saved = None if last is None else checkpoint.load(last)
    if saved is None or saved.plain["stage"] != "train":
        raise RunError(
            f"{run} holds no policy yet. It comes with the first checkpoint of its training: "
            f"go on with it by `worldrl resume {run}`."
        )
    if (known := directory.read_dataset().sha256) != dataset_sha256:
        raise RunError(
            f"{run} learned from other data (sha256 {known[:12]}..., not {dataset_sha256[:12]}...)."
            " Give its own as dataset=..., or set weights=fresh to start afresh on this one."
        )
    config = directory.read_config()
    judged = isinstance(config, TrainConfig) and config.acceptance.kind != "none"
    # What passed the gate is what the run's result is; training went on from what did not.
    return learners_of(saved, "good/" if judged else "learner/")


def learners_of(saved: checkpoint.Checkpoint, prefix: str = "learner/") -> Parameters:
    """The learners of a checkpoint, flat; the networks that an encoder asks are in its policies."""
    policy = part(saved.model, "policy/").items()
    frozen = {f"inputs/{name}": value for name, value in policy if is_anchor_network(name)}
    return part(saved.state, prefix) | frozen


def start_from(
    state: LearnerState,
    trained: Mapping[str, Tensor],
    members: Sequence[int],
    seeds: Sequence[int],
    tile_noise: float,
) -> None:
    """Overwrite a fresh state in place, but for settings and optimisers.

    Args:
        trained: what :func:`trained_state` gave.
        members: of ``trained``, one for each member of ``state``.
        seeds: of the members of ``state``.
        tile_noise: see :func:`tiled`.

    Raises:
        RunError: what was trained does not fit.
    """
    for name, value in flat(state).items():
        kind, _, parameter = name.partition("/")
        if kind == "settings" or kind.endswith("_adam"):
            continue
        found = trained.get(name)
        if found is not None:
            found = found[list(members)]
            if kind in CRITICS:
                found = tiled(found, value.shape[1], seeds, parameter, tile_noise)
        if found is None or found.shape != value.shape:
            raise RunError(
                f"the run's weights do not fit: '{name}' is {_shape(found)}, and needs to be "
                f"{_shape(value)}. Another version of worldrl may have written them."
            )
        value.copy_(found)


def tiled(
    critics: Tensor, wanted: int, seeds: Sequence[int], parameter: str, noise: float
) -> Tensor:
    """As many critics as wanted: ``(P, M, ...) -> (P, wanted, ...)``.

    The first M are as they are; further ones repeat them, times 1 plus a normal draw times
    ``noise``. The draw depends on the parameter's name alone, so targets stay with their critics.
    """
    have = critics.shape[1]
    found = critics[:, torch.arange(wanted) % have]
    for member, seed in enumerate(seeds):
        draws = generator(seed, f"finetune.tile.{parameter}")
        repeated = found[member, have:]
        factor = 1 + noise * torch.randn(repeated.shape, generator=draws)
        found[member, have:] = repeated * factor.to(repeated)
    return found


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"of shape {tuple(tensor.shape[1:])}"
