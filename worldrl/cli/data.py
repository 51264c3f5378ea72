"""``worldrl data``: inspect, import, export, collect, label, select and join datasets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worldrl.cli.label import label
from worldrl.cli.output import json_only, print_json, print_table
from worldrl.cli.select import select
from worldrl.errors import DataError

if TYPE_CHECKING:
    from worldrl.data import Dataset
    from worldrl.data.collect import ActingPolicy, Bounds

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

Source = Annotated[
    str, typer.Argument(metavar="PATH_OR_URI", help="A .hdf5 or .npz file, d4rl:NAME, minari:ID.")
]
Out = Annotated[Path, typer.Option(metavar="FILE", help="A .hdf5 or .npz file to write.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
EnvId = Annotated[
    str | None, typer.Option("--env-id", help="The environment, where the source does not say.")
]
MaxEpisodeSteps = Annotated[
    int | None,
    typer.Option("--max-episode-steps", min=1, help="Cuts episodes of files without timeouts."),
]


@app.command("info")
def info(
    source: Source,
    simulator: Annotated[
        str | None,
        typer.Option(metavar="ENV_ID", help="Replay logged steps in this environment and compare."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="PATH_OR_URI", help="A replay dataset to measure coverage against."),
    ] = None,
    env_id: EnvId = None,
    max_episode_steps: MaxEpisodeSteps = None,
    as_json: AsJson = False,
) -> None:
    """Check a dataset and print its sizes, returns, quality (TQ) and coverage (SACo).

    TQ is 0 at the random policy and 1 at the expert of D4RL's reference scores, and null for
    environments without them. SACo needs --reference.
    """
    with json_only(as_json):
        found = _info(source, simulator, reference, env_id, max_episode_steps)
    _print(found, as_json)


@app.command("import")
def import_(
    source: Source,
    out: Out,
    env_id: EnvId = None,
    max_episode_steps: MaxEpisodeSteps = None,
    as_json: AsJson = False,
) -> None:
    """Validate a dataset of any known format and keep it as a file of worldrl's own."""
    _convert(source, out, env_id, max_episode_steps, as_json)


@app.command("export")
def export(source: Source, out: Out, as_json: AsJson = False) -> None:
    """Write a dataset for other programs: .hdf5 in D4RL's layout, or .npz."""
    _convert(source, out, None, None, as_json)


@app.command("collect")
def collect(
    env_id: Annotated[str, typer.Argument(metavar="ENV_ID", help="A gymnasium environment.")],
    steps: Annotated[int, typer.Option(min=1, help="Transitions to record.")],
    out: Out,
    policy: Annotated[
        str,
        typer.Option(
            metavar="random|RUN|ACTOR.npz", help="Who acts: a run's first member or an actor."
        ),
    ] = "random",
    noise: Annotated[
        float,
        typer.Option(min=0, help="Deviation of action noise, in units of half the action range."),
    ] = 0.0,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Sample an actor file's Gaussian, not its mean.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Record episodes from an environment."""
    with json_only(as_json):
        _check_out(out)
        if out.exists():
            raise DataError(f"--out {out} exists, and nothing recorded is replaced; name another")
        dataset = _collect(env_id, steps, policy, noise, stochastic, seed)
        found = _write(dataset, out)
    _print(found, as_json)


app.command("label")(label)
app.command("select")(select)


@app.command("join")
def join(
    sources: Annotated[
        list[str], typer.Argument(metavar="PATH_OR_URI...", help="At least two datasets.")
    ],
    out: Out,
    env_id: EnvId = None,
    as_json: AsJson = False,
) -> None:
    """Write the episodes of several datasets of one kind of system into one file.

    infos/source holds the number of each row's dataset, metadata/join what they are. For a
    sequence of tasks, join the next task's data with the selections that stand for earlier ones.
    """
    if len(sources) < 2:
        raise DataError("name at least two datasets to join")
    with json_only(as_json):
        from worldrl import api

        found = {"out": str(out), **asdict(api.join(sources, out, env_id))}
    _print(found, as_json)


def _info(
    source: str,
    simulator: str | None,
    reference: str | None,
    env_id: str | None,
    max_episode_steps: int | None,
) -> dict[str, Any]:
    from worldrl.data import load
    from worldrl.data.measures import coverage, summary, trajectory_quality
    from worldrl.data.simulator import check_agreement
    from worldrl.envs import make, reference_scores

    dataset = load(source, env_id=env_id, max_episode_steps=max_episode_steps)
    scores = reference_scores(dataset.metadata.env_id)
    found = asdict(summary(dataset))
    found["tq"] = trajectory_quality(dataset, *scores) if scores else None
    covered = coverage(dataset, load(reference)) if reference is not None else None
    found["saco"] = covered.saco if covered else None
    found["lsaco"] = covered.lsaco if covered else None
    found["saco_variant"] = covered.variant if covered else None
    if simulator is not None:
        agreement = check_agreement(dataset, partial(make, simulator))
        found["simulator"] = {"env_id": simulator, **asdict(agreement)}
    return found


def _convert(
    source: str, out: Path, env_id: str | None, max_episode_steps: int | None, as_json: bool
) -> None:
    from worldrl.data import load

    with json_only(as_json):
        _check_out(out)
        found = _write(load(source, env_id=env_id, max_episode_steps=max_episode_steps), out)
    _print(found, as_json)


def _write(dataset: Dataset, out: Path) -> dict[str, Any]:
    """Write the file, read it back, and say what is in it."""
    from worldrl.data import load
    from worldrl.data.export import export
    from worldrl.data.measures import summary

    export(dataset, out)
    return {"out": str(out), **asdict(summary(load(str(out))))}


def _check_out(out: Path) -> None:
    """Before the work, not after it."""
    from worldrl.data.readers import SUFFIXES

    if out.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"--out {out}: the suffix '{out.suffix}' names no dataset format; use "
            f"{', '.join(SUFFIXES)}"
        )


def _collect(
    env_id: str, steps: int, policy: str, noise: float, stochastic: bool, seed: int
) -> Dataset:
    from worldrl.data.collect import collect
    from worldrl.envs import make

    acting = _policy(policy, env_id, seed if stochastic else None)
    behaviour = Path(policy).name
    behaviour += " sampled" * stochastic + f" with noise {noise:g}" * (noise > 0)
    with _progress(f"collecting from {env_id}", steps) as report:
        return collect(
            partial(make, env_id),
            steps,
            policy=acting,
            noise=noise,
            seed=seed,
            behaviour=behaviour,
            report=report,
        )


def _policy(policy: str, env_id: str, seed: int | None) -> ActingPolicy | None:
    """None for the random policy."""
    path = Path(policy).expanduser()
    if path.suffix == ".npz":
        return _actor(path, env_id, seed)
    if seed is not None:
        raise DataError(f"--stochastic samples actor files (.npz), and --policy is {policy}")
    if policy == "random":
        return None
    if not path.is_dir():
        raise DataError(
            f"--policy {policy} is neither 'random', nor a run directory, nor an actor file that "
            "ends in .npz"
        )
    from worldrl.policy import load_policy

    loaded = load_policy(path)
    size, (low, _) = _spaces(path, env_id)
    if (loaded.observation_size, len(loaded.action_low)) != (size, len(low)):
        raise DataError(
            f"--policy {path}: the run's policy maps {loaded.observation_size} numbers to "
            f"{len(loaded.action_low)} actions, but {env_id} has {size} and {len(low)}"
        )
    return loaded


def _actor(path: Path, env_id: str, seed: int | None) -> ActingPolicy:
    from worldrl.data.actor import load_actor

    size, bounds = _spaces(path, env_id)
    return load_actor(path, size, *bounds, seed=seed)


def _spaces(path: Path, env_id: str) -> tuple[int, Bounds]:
    """Observation size and action bounds of the environment."""
    from worldrl.data.collect import action_bounds
    from worldrl.envs import make

    environment = make(env_id)
    try:
        bounds, shape = action_bounds(environment), environment.observation_space.shape
    finally:
        environment.close()
    if bounds is None or shape is None or len(shape) != 1:
        raise DataError(
            f"--policy {path}: it acts on vectors with bounded continuous actions, which {env_id} "
            "does not have"
        )
    return shape[0], bounds


@contextmanager
def _progress(description: str, total: int) -> Iterator[Callable[[int], None] | None]:
    """A bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, completed=done)


def _print(found: dict[str, Any], as_json: bool) -> None:
    for warning in found["warnings"]:
        print(f"worldrl: warning: {warning}", file=sys.stderr)
    if as_json:
        print_json(found)
        return
    nested = found.pop("simulator", {})
    found |= {f"simulator {key}": value for key, value in nested.items()}
    print_table({key: v for key, v in found.items() if v is not None and key != "warnings"})
