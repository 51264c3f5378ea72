"""``worldrl train``: train a policy, in imagination or from the data alone."""

from __future__ import annotations

from worldrl.cli.stage import AsJson, Out, Overrides, Recipe, finish
from worldrl.config.loader import load_config


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Train a policy with RECIPE on dataset=PATH, dataset=d4rl:NAME or dataset=minari:ID.

    Without model=RUN_DIR a recipe that imagines learns its world model first, in the same run.
    `worldrl config list` names the recipes, `worldrl config show RECIPE` every setting.
    """
    config = load_config("train", recipe, overrides or ())
    from worldrl import api

    finish(lambda: api.train(config, out), as_json)
