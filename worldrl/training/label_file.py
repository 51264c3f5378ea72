"""Labels from files to a file: what ``worldrl data label`` does."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldrl.config.label import LabelSettings
from worldrl.data.action_free import load_action_free
from worldrl.data.dataset import Metadata, load
from worldrl.data.export import Extras, export
from worldrl.data.readers import SUFFIXES
from worldrl.errors import ConfigError, DataError
from worldrl.strict_json import finite
from worldrl.training.environment import set_determinism
from worldrl.training.execution import device_of
from worldrl.training.label import Labelled, label
from worldrl.training.progress import Progress


@dataclass(frozen=True)
class LabelResult:
    """What was written, and how good the labels are on labelled trajectories that were held out.

    Lists have one number an action dimension; likelihoods and variances are of actions in [-1, 1].
    """

    out: str
    transitions: int
    labels: int
    """Rows whose action is a label."""
    episodes: int
    updates: int
    held_out_episodes: int
    held_out_rows: int
    normalized_mse: list[float]
    """1 is as good as always saying the mean action, 0 is exact."""
    nll: list[float]
    nll_of_mean: list[float]
    variance: list[float]
    unlabelled_variance: list[float]
    warnings: tuple[str, ...]


def label_file(
    unlabelled: str,
    labelled: str,
    out: Path,
    settings: LabelSettings,
    seed: int,
    max_episode_steps: int | None,
    device: str,
    quiet: bool,
) -> LabelResult:
    """Read both, label, and write ``out``.

    Beside the dataset the file holds ``infos/pseudo_labelled`` ``(N,)``, true where the action is a
    label, ``infos/label_variance`` ``(N, A)`` in squared environment units, and ``metadata/label``,
    the sources, settings and held-out errors as JSON.

    Raises:
        ConfigError: there is no such device.
        DataError: a file cannot be read, the two do not fit each other, or ``out`` exists.
        ModelError: the fit diverged.
    """
    check_out(out)
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is None:
        raise ConfigError(f"device={device} is no device; use auto, cpu, cuda or cuda:0")
    found = device_of(device)
    free = load_action_free(unlabelled, max_episode_steps=max_episode_steps)
    given = load(labelled, max_episode_steps=max_episode_steps)
    set_determinism(None, found.type)
    with Progress("label", settings.num_updates, "updates", quiet) as progress:
        result = label(
            free,
            given,
            settings,
            seed,
            found,
            lambda step, nll: progress.update(step, {"held_out_nll": nll}),
        )
    check_out(out)  # it took a while
    notes = _notes(result, free.metadata, given.metadata, settings, seed)
    infos = {"pseudo_labelled": result.pseudo, "label_variance": result.variance}
    export(result.dataset, out, Extras(infos, {"label": json.dumps(notes, allow_nan=False)}))
    written = load(out)  # what a later reader will be told
    held_out = result.fit.held_out
    return LabelResult(
        str(out),
        written.num_transitions,
        int(result.pseudo.sum()),
        written.num_episodes,
        result.fit.updates,
        held_out.episodes,
        held_out.rows,
        held_out.normalized_mse,
        held_out.nll,
        held_out.nll_of_mean,
        held_out.variance,
        result.unlabelled_variance,
        tuple(
            dict.fromkeys(
                (
                    *result.dataset.metadata.warnings,
                    *written.metadata.warnings,
                    *result.warnings,
                )
            )
        ),
    )


def check_out(out: Path) -> None:
    """Before the work: nothing is replaced, and the place can be written."""
    if out.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"--out {out}: the suffix '{out.suffix}' names no dataset format; use "
            f"{', '.join(SUFFIXES)}"
        )
    if out.exists():
        raise DataError(f"--out {out} exists, and no file is replaced; name another")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out} cannot be written: {error}; choose another") from None
    if not os.access(out.parent, os.W_OK):
        raise DataError(f"--out {out}: its folder cannot be written to; choose another")


def _notes(
    result: Labelled, free: Metadata, given: Metadata, settings: LabelSettings, seed: int
) -> Any:
    return finite(
        {
            "unlabelled": {"source": Path(free.source).name, "sha256": free.sha256},
            "labelled": {"source": Path(given.source).name, "sha256": given.sha256},
            "settings": settings.model_dump(mode="json"),
            "seed": seed,
            "updates": result.fit.updates,
            "held_out": result.fit.held_out._asdict(),
            "unlabelled_variance": result.unlabelled_variance,
            "warnings": list(result.warnings),
        }
    )
