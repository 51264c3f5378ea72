"""How ``pretrain``, ``train`` and ``resume`` run and report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from worldrl.cli.output import json_only, print_json, print_table

if TYPE_CHECKING:
    from worldrl.training.run import RunResult


Recipe: TypeAlias = Annotated[str, typer.Argument(help="A shipped name or a YAML path.")]
Overrides: TypeAlias = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change.")
]
Out: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="RUN_DIR", help="Where the run is written.")
]
AsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object.")
]


def finish(work: Callable[[], RunResult], as_json: bool) -> None:
    """Do the work, print its result, and exit with its code (75: stopped, can be resumed)."""
    with json_only(as_json):
        result = work()
    if as_json:
        print_json(
            {
                "run": result.run,
                "steps": result.steps,
                "seconds": result.seconds,
                "metrics": result.metrics,
                "status": result.status,
            }
        )
    else:
        print_table(
            {
                "status": result.status,
                "run": result.run,
                "steps": result.steps,
                "seconds": round(result.seconds, 1),
                **result.metrics,
            }
        )
    if result.status == "interrupted":
        said = f"stopped and saved; go on with: worldrl resume {result.run}"
        print(f"worldrl: {said}", file=sys.stderr)
    if result.exit_code:
        raise typer.Exit(result.exit_code)
