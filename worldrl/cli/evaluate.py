"""``worldrl evaluate``: score a trained policy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worldrl.cli.output import json_only, print_json
from worldrl.errors import RunError

if TYPE_CHECKING:
    from worldrl.evaluation.result import Result


def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="A run directory of worldrl train.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes a member.")] = 10,
    env_id: Annotated[
        str | None,
        typer.Option(help="Score in this environment instead of the data's; marked if it differs."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the episodes' starts.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Score the last policy of RUN_DIR, every member, and add the result to its eval.jsonl.

    The environment is the one that recorded the data; another version is refused unless --env-id
    or the run's evaluation settings ask for it.
    """
    with json_only(as_json):
        from worldrl import api

        result = api.evaluate(run_dir, episodes, env_id, seed)
        print(result.protocol())
        try:
            _append(run_dir, result)
        except RunError as error:  # a shared run may be read-only; the score is not lost for that
            print(f"worldrl: warning: the result is not recorded: {error}", file=sys.stderr)
    if as_json:
        print_json({"run": run_dir, **result.to_json()})


def _append(run_dir: Path, result: Result) -> None:
    """One line, in one write, so that a run in progress may append as well."""
    from worldrl.training.files import writing
    from worldrl.training.run_directory import RunDirectory

    path = RunDirectory.open(run_dir).eval_file
    row = {
        "stage": "train" if result.environment_steps is None else "finetune",
        "step": max(result.steps or (0,)),
        "command": "evaluate",
        **result.to_json(),
    }
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")
