"""``worldrl pretrain``: learn a world model from a dataset."""

from __future__ import annotations

from worldrl.cli.stage import AsJson, Out, Overrides, Recipe, finish
from worldrl.config.loader import load_config


def pretrain(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Learn a world model with RECIPE on dataset=PATH, dataset=d4rl:NAME or dataset=minari:ID.

    `worldrl train RECIPE model=RUN_DIR` then trains policies in it. `worldrl config list` names the
    recipes, `worldrl config show RECIPE` every setting.
    """
    config = load_config("pretrain", recipe, overrides or ())
    from worldrl import api

    finish(lambda: api.pretrain(config, out), as_json)
