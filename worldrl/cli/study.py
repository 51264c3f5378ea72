"""``worldrl study``: experiments that explain a method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from worldrl.cli.output import json_only, print_json

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A new or empty directory for the results.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Seeds = Annotated[int, typer.Option(min=1, help="Members of each arm.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the first member.")]


@app.command("edge-of-reach")
def edge_of_reach(
    seeds: Seeds = 3,
    updates: Annotated[int, typer.Option(min=1, help="Updates of every member.")] = 20_000,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Learn in a small world whose true values are known, by three ways to value its edge.

    Writes study.json, figures and index.html.
    """
    with json_only(as_json):
        from worldrl import api

        found = api.study_edge_of_reach(seeds, updates, seed, out)
    _report(found.path, found.record, as_json)


@app.command("true-dynamics")
def true_dynamics(
    env_id: Annotated[str, typer.Argument(metavar="ENV_ID", help="Such as HalfCheetah-v5.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="dataset=FILE, and settings to change."),
    ] = None,
    seeds: Seeds = 1,
    updates: Annotated[int, typer.Option(min=1, help="Updates of every member.")] = 10_000,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Learn from dataset=FILE with the simulator ENV_ID in place of a learned model.

    Writes study.json, figures and index.html.
    """
    from worldrl.study.true_settings import arm_configs

    configs = arm_configs(env_id, overrides or (), seeds, updates, seed)
    with json_only(as_json):
        from worldrl import api

        found = api.study_true_dynamics(env_id, configs, out)
    _report(found.path, found.record, as_json)


def _report(path: Path, record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({"run": path, **record})
        return
    for name, row in record["criteria"].items():
        values = ", ".join(f"{value:.4g}" for value in row["found"])
        print(f"{'met' if row['met'] else 'not met':<8} {name}: {values} ({row['expected']})")
    print(f"page     {path / 'index.html'}")
