"""``worldrl train``: train a policy, in imagination or from the data alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worldrl.cli.stage import finish
from worldrl.config.loader import load_config


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped name or a YAML path.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="Where the run is written.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Train a policy with RECIPE on dataset=PATH, dataset=d4rl:NAME or dataset=minari:ID.

    Without model=RUN_DIR a recipe that imagines learns its world model first, in the same run.
    `worldrl config list` names the recipes, `worldrl config show RECIPE` every setting.
    """
    config = load_config("train", recipe, overrides or ())
    from worldrl import api

    finish(lambda: api.train(config, out), as_json)
