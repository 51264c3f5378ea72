"""``worldrl resume``: continue a run from its last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worldrl.cli.stage import finish


def resume(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Continue the run in RUN_DIR from its last checkpoint; a finished run is left as it is."""
    from worldrl import api

    finish(lambda: api.resume(run_dir), as_json)
