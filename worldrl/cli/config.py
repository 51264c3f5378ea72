"""``worldrl config``: the recipes there are, and the settings that one would run with."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from worldrl.cli.output import print_json
from worldrl.config import recipes, yaml_subset
from worldrl.config.loader import show_config

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command("list")
def list_recipes(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the shipped recipes."""
    table = {
        stage: {name: recipes.summary(path) for name, path in recipes.shipped(stage).items()}
        for stage in recipes.STAGES
    }
    if as_json:
        print_json(table)
        return
    width = max(len(name) for names in table.values() for name in names)
    for stage, names in table.items():
        print(f"worldrl {stage} {'RUN --recipe ' if stage == 'finetune' else ''}RECIPE")
        for name, text in names.items():
            print(f"  {name:<{width}}  {text}")


@app.command("show")
def show(
    recipe: Annotated[str, typer.Argument(help="A shipped name or a YAML path.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print every setting that RECIPE would run with, defaults included.

    With dataset=d4rl:NAME the recipe's row for that dataset is applied.
    """
    text = show_config(recipes.stage_of(recipe), recipe, overrides or ())
    if as_json:
        print_json(yaml_subset.parse(text, "settings"))
    else:
        print(text, end="")


@app.command("explain")
def explain_settings(
    key: Annotated[str, typer.Argument(help="A setting or a group; all without one.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what settings mean, what values they take, and what holds without a recipe."""
    from worldrl.config.explain import explain

    found = explain(key)
    if as_json:
        print_json({"settings": [one._asdict() for one in found]})
        return
    for one in found:
        kind = f"  (of kind {one.kind})" if one.kind else ""
        print(f"{one.key}={one.default}{kind}")
        for text in one.values, one.meaning:
            if text:
                print(textwrap.fill(text, 96, initial_indent="    ", subsequent_indent="    "))
