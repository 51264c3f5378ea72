"""``worldrl data label``: actions for trajectories that lack them."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from worldrl.cli.output import json_only, print_json, print_table
from worldrl.config.label import LabelSettings
from worldrl.errors import ConfigError

_DEFAULT = LabelSettings()


def label(
    unlabelled: Annotated[
        str, typer.Argument(metavar="UNLABELLED", help="A file without actions, or with some.")
    ],
    labelled: Annotated[
        str,
        typer.Option("--with", metavar="PATH_OR_URI", help="Data that has actions, to learn from."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="A .hdf5 or .npz file to write.")],
    updates: Annotated[int, typer.Option(min=1, help="At most.")] = _DEFAULT.num_updates,
    members: Annotated[
        int, typer.Option(min=1, help="Networks whose mean is the label.")
    ] = _DEFAULT.num_members,
    history: Annotated[
        int, typer.Option(min=0, help="Observations seen before the current one.")
    ] = _DEFAULT.history,
    hidden: Annotated[
        str, typer.Option(metavar="SIZES", help="Hidden layers, such as 256,256.")
    ] = ",".join(map(str, _DEFAULT.hidden)),
    max_episode_steps: Annotated[
        int | None,
        typer.Option("--max-episode-steps", min=1, help="Cuts episodes of files without timeouts."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Infer the actions of UNLABELLED from trajectories that have them (SS-ORL).

    An ensemble of inverse dynamics models learns which action led from one observation to the
    next. The file holds the labelled trajectories, then those of UNLABELLED with the mean label;
    infos/pseudo_labelled tells which, infos/label_variance how sure. The errors printed are of
    labelled trajectories held out, one number an action dimension: a normalized_mse of 1 is as
    good as always saying the mean action, and an nll should be below nll_of_mean.

    The defaults are the paper's networks, for a GPU; on a few cores, --hidden 256,256 and 5,000
    updates take minutes.
    """
    settings = LabelSettings(
        num_updates=updates, num_members=members, history=history, hidden=_sizes(hidden)
    )
    with json_only(as_json):
        from worldrl import api

        result = api.label(unlabelled, labelled, out, settings, seed, max_episode_steps, device)
    for warning in result.warnings:
        print(f"worldrl: warning: {warning}", file=sys.stderr)
    if as_json:
        print_json(asdict(result))
    else:
        print_table({name: value for name, value in asdict(result).items() if name != "warnings"})


def _sizes(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--hidden {text}: give sizes above 0 with commas, such as 256,256")
    return tuple(map(int, parts))
