"""``worldrl evaluate``: score a trained policy."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worldrl.cli.output import json_only, print_json
from worldrl.config.judging import JudgeSettings
from worldrl.errors import ConfigError, RunError

if TYPE_CHECKING:
    from worldrl.evaluation.result import Result

EPISODES = 10
_DEFAULT = JudgeSettings()


def evaluate(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR...",
            help="A run directory of worldrl train, or one of its checkpoints; several with "
            "--offline.",
        ),
    ],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes a member.")] = EPISODES,
    env_id: Annotated[
        str | None,
        typer.Option(
            help="Score in this environment instead of the data's; marked if it differs. With "
            "--offline: play there too, and compare."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the episodes' starts.")] = 0,
    offline: Annotated[
        bool, typer.Option("--offline", help="Judge in a world model, without the real system.")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Whose worlds judge, instead of those learned in."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="PATH_OR_URI", help="The data, instead of the run's.")
    ] = None,
    values: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="A run of iql on that data whose critics judge, or where to train one; without "
            "it they are kept beside the worlds.",
        ),
    ] = None,
    value_updates: Annotated[
        int, typer.Option(min=1, help="Of critics that are trained.")
    ] = _DEFAULT.value_updates,
    expectile: Annotated[
        float, typer.Option(help="Of those; 0.5: SARSA, the recorded policy's own values.")
    ] = _DEFAULT.expectile,
    horizon: Annotated[int, typer.Option(min=1, help="Steps of a walk.")] = _DEFAULT.horizon,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Score the last policy of RUN_DIR, every member, and add the result to its eval.jsonl.

    The environment is the one that recorded the data; another version is refused unless --env-id
    or the run's evaluation settings ask for it.

    With --offline nothing is played: policies walk in the worlds of all seeds of a model, from
    logged starts, and critics that were fitted to the data value their way. These estimates are no
    scores, and are printed alone. With --env-id as well, they are compared with true returns.
    """
    if offline:
        given = None if values is None else str(values)
        if not 0 < expectile < 1:
            raise ConfigError(f"--expectile {expectile:g}: give a number above 0 and below 1")
        playing = {"--episodes": (episodes, EPISODES), "--seed": (seed, 0)}
        if env_id is None and (unused := _changed(playing)):
            raise ConfigError(
                f"{unused} would be unused: nothing is played without --env-id; add it"
            )
        settings = JudgeSettings(
            values=given, value_updates=value_updates, expectile=expectile, horizon=horizon
        )
        with json_only(as_json):
            from worldrl import api

            estimates = api.evaluate_offline(
                run_dirs, model, dataset, settings, env_id, episodes, seed
            )
            print(estimates.protocol())
        if as_json:
            print_json(estimates.to_json())
        return
    if len(run_dirs) > 1:
        raise ConfigError("several runs are judged with --offline; score one at a time")
    judging = {
        "--model": (model, None),
        "--dataset": (dataset, None),
        "--values": (values, None),
        "--value-updates": (value_updates, _DEFAULT.value_updates),
        "--expectile": (expectile, _DEFAULT.expectile),
        "--horizon": (horizon, _DEFAULT.horizon),
    }
    if unused := _changed(judging):
        raise ConfigError(f"{unused} would be unused without --offline; add it")
    (run_dir,) = run_dirs
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


def _changed(options: Mapping[str, tuple[Any, Any]]) -> str:
    """The options whose value is not the default."""
    return " and ".join(name for name, (given, default) in options.items() if given != default)


def _append(run_dir: Path, result: Result) -> None:
    """One line, in one write, so that a run in progress may append as well."""
    from worldrl.training.checkpoint import located
    from worldrl.training.files import writing

    path = located(run_dir)[0].eval_file
    row = {
        "stage": "train" if result.environment_steps is None else "finetune",
        "step": max(result.steps or (0,)),
        "command": "evaluate",
        **result.to_json(),
    }
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")
