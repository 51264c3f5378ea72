"""``worldrl finetune``: go on in the environment from a run that learned from logged data."""

from __future__ import annotations

from typing import Annotated

import typer

from worldrl.cli.stage import AsJson, Out, Overrides, finish
from worldrl.config.loader import load_config


def finetune(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory of worldrl train.")],
    overrides: Overrides = None,
    recipe: Annotated[str, typer.Option(help="wsrl, rlpd or a YAML path.")] = "wsrl",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune the policies of RUN in env_id=ID, or in the environment of its data.

    Recipe wsrl goes on from RUN's policies and critics without its data; rlpd starts afresh with
    its data in half of every batch, or goes on with both (weights=run). Every member has an
    environment of its own; num_steps counts its steps.
    """
    config = load_config("finetune", recipe, [f"run={run}", *(overrides or ())])
    from worldrl import api

    finish(lambda: api.finetune(config, out), as_json)
