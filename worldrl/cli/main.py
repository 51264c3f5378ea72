"""The entry point: one table of commands, each imported only when it is the one asked for."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import typer

from worldrl import __version__
from worldrl.errors import WorldRLError


class Command(NamedTuple):
    """Where a command lives and what its line in the help says."""

    target: str
    summary: str


COMMANDS = {
    "doctor": Command("worldrl.cli.doctor:doctor", "Check this machine and this installation."),
    "data": Command("worldrl.cli.data:app", "Inspect, import, export, collect and label datasets."),
    "pretrain": Command("worldrl.cli.pretrain:pretrain", "Learn a world model from a dataset."),
    "train": Command("worldrl.cli.train:train", "Train a policy, in imagination or from the data."),
    "finetune": Command("worldrl.cli.finetune:finetune", "Go on online from an offline run."),
    "evaluate": Command("worldrl.cli.evaluate:evaluate", "Score a trained policy."),
    "resume": Command("worldrl.cli.resume:resume", "Continue a run that was stopped."),
    "study": Command("worldrl.cli.study:app", "Run an experiment that explains a method."),
    "config": Command("worldrl.cli.config:app", "List recipes and show what they would run."),
}


def build(selected: str | None) -> typer.Typer:
    """The application, with the selected command imported and the others known by name alone."""
    app = typer.Typer(
        name="worldrl",
        help="Learn a world from logged data, train policies inside it.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for name, command in COMMANDS.items():
        if name != selected:
            app.command(name, help=command.summary)(_not_imported)
            continue
        module, _, attribute = command.target.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name, help=command.summary)
        else:
            app.command(name)(found)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code of the process."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    selected = next((word for word in arguments if not word.startswith("-")), None)
    try:
        build(selected)(arguments, prog_name="worldrl")
    except SystemExit as end:
        if end.code == 2 and selected in ("pretrain", "train", "finetune"):
            print("Settings are written key=value: dataset=FILE num_updates=1000", file=sys.stderr)
        return _finish(end.code)
    except WorldRLError as error:
        print(f"worldrl: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return _reader_left()
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def _not_imported() -> None:
    raise AssertionError("only the selected command is ever invoked")


def _finish(code: str | int | None) -> int:
    """Flush while a closed pipe can still be handled."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _reader_left()
    return code if isinstance(code, int) else 0


def _reader_left() -> int:
    """The reader of our output has gone: end without a word, as ``head`` expects."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 141  # 128 + SIGPIPE, what a shell reports for such an end
