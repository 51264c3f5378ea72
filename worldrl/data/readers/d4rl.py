"""``d4rl:NAME``: D4RL's published files, fetched once and kept.

Addresses are those of ``d4rl/infos.py`` (Fu et al. 2020, arXiv 2004.07219). No hashes are
published for them, so the hash of the first file seen is recorded beside it and held to later.
"""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from worldrl.data.dataset import Dataset
from worldrl.data.download import Report, cache_folder, download
from worldrl.data.readers import hdf5
from worldrl.data.readers.files import file_sha256
from worldrl.errors import DataError, suggestion
from worldrl.tasks import parse

#: Time limits of D4RL's environments by robot, for files that mark no timeouts.
TIME_LIMITS = {
    "maze2d-open": 150,
    "maze2d-umaze": 300,
    "maze2d-medium": 600,
    "maze2d-large": 800,
    "maze2d-eval-umaze": 300,
    "maze2d-eval-medium": 600,
    "maze2d-eval-large": 800,
    "antmaze-umaze": 700,
    "antmaze-medium": 1000,
    "antmaze-large": 1000,
    "halfcheetah": 1000,
    "hopper": 1000,
    "walker2d": 1000,
    "ant": 1000,
    "pen": 100,
    "door": 200,
    "hammer": 200,
    "relocate": 200,
    "kitchen": 280,
}

_log = logging.getLogger(__name__)


def read(location: str, *, env_id: str | None, max_episode_steps: int | None) -> Dataset:
    """Read the D4RL dataset called ``location``, downloading it the first time.

    Raises:
        DataError: the name is unknown, the file cannot be fetched, or it is not the file that was
            first seen under that name.
    """
    url = addresses().get(location)
    if url is None:
        raise DataError(
            f"d4rl:{location}: D4RL has no dataset of that name"
            f"{suggestion(location, addresses())}; names look like halfcheetah-medium-v2"
        )
    path = cache_folder() / "d4rl" / f"{location}.hdf5"
    if not path.exists():
        _log.info("downloading %s to %s", url, path)
        with _progress(location) as report:
            download(url, path, report)
    notice = hold_to_first_hash(path, url)
    task = parse(location)
    limit = max_episode_steps or (None if task is None else TIME_LIMITS.get(task.robot))
    dataset = hdf5.read(str(path), env_id=env_id, max_episode_steps=limit)
    metadata = replace(
        dataset.metadata,
        source=f"d4rl:{location}",
        env_id=dataset.metadata.env_id or location,
        warnings=(*notice, *dataset.metadata.warnings),
    )
    return replace(dataset, metadata=metadata)


@cache
def addresses() -> dict[str, str]:
    """Dataset name to address."""
    table = (files("worldrl.data") / "d4rl_urls.csv").read_text("utf-8")
    return {row["name"]: row["url"] for row in csv.DictReader(table.splitlines())}


def hold_to_first_hash(path: Path, url: str) -> tuple[str, ...]:
    """Record the file's sha256 the first time; later refuse another. Returns what to tell."""
    record = path.with_name(path.name + ".sha256")
    found = file_sha256(path)
    if not record.exists():
        record.write_text(f"{found}  {path.name}\n", "utf-8")
        return (
            f"first use of {path}: D4RL publishes no hashes, so this file's sha256 {found} was "
            f"recorded in {record.name} and later uses are held to it",
        )
    words = record.read_text("utf-8").split()
    if not words or words[0] != found:
        raise DataError(
            f"{path} has the sha256 {found}, but {words[0] if words else 'nothing'} was recorded "
            f"in {record} when it was first used; the file was changed or damaged. Delete both "
            f"files to fetch {url} again, or only {record.name} to accept the file as it is"
        )
    return ()


@contextmanager
def _progress(name: str) -> Iterator[Report | None]:
    """A bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        *Progress.get_default_columns()[:2],
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda have, total: bar.update(task, completed=have, total=total)
