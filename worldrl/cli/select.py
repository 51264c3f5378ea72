"""``worldrl data select``: a few rows that stand for a dataset."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from worldrl.cli.output import json_only, print_json, print_table
from worldrl.config.selection import SelectSettings
from worldrl.errors import ConfigError

By = Literal["policy", "random", "return"]
HORIZON: int = SelectSettings.model_fields["horizon"].default


def select(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run of worldrl train, or a checkpoint of one.")
    ],
    num: Annotated[int, typer.Option(min=1, help="Rows to select.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="A .hdf5 or .npz file to write.")],
    by: Annotated[
        By, typer.Option(help="Nearest to where the policy goes, any, or the best episodes'.")
    ] = "policy",
    model: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Where the policy walks, instead of where it learned."),
    ] = None,
    member: Annotated[int, typer.Option(min=0, help="Of the run, whose policy it is.")] = 0,
    horizon: Annotated[int, typer.Option(min=1, help="Steps of a walk.")] = HORIZON,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Select rows of the data of RUN that stand for its task, to replay while others are learned.

    The policy of RUN walks in its world model from logged starts of episodes, and the logged rows
    nearest to its steps are kept. Consecutive rows of an episode stay an episode; where one is cut
    it is marked as a timeout, and its last next observation is the recorded one. infos/row holds
    the rows' numbers, metadata/select how they were chosen. Join the file with another task's data
    (worldrl data join) to learn both.
    """
    walks = {"--model": model is not None, "--member": member != 0, "--horizon": horizon != HORIZON}
    of_policy = [name for name, given in walks.items() if given and by != "policy"]
    if by == "return" and seed != 0:
        of_policy.append("--seed")
    if of_policy:
        raise ConfigError(f"{' and '.join(of_policy)} would be unused with --by {by}; leave it out")
    settings = SelectSettings(num=num, by=by, member=member, horizon=horizon, seed=seed)
    with json_only(as_json):
        from worldrl import api

        found = {"out": str(out), **asdict(api.select(run_dir, out, settings, model))}
    for warning in found["warnings"]:
        print(f"worldrl: warning: {warning}", file=sys.stderr)
    if as_json:
        print_json(found)
    else:
        print_table({key: v for key, v in found.items() if v is not None and key != "warnings"})
