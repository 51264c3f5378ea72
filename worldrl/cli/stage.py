"""How ``pretrain``, ``train`` and ``resume`` run and report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from worldrl.cli.output import json_only, print_json, print_table

if TYPE_CHECKING:
    from worldrl.training.run import RunResult


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
    if result.exit_code:
        raise typer.Exit(result.exit_code)
