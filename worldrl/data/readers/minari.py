"""``minari:ID``: datasets of the Minari library, from its own folder or its servers.

Only the stored episodes are read. The environment that a dataset names is never built.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
from numpy.typing import NDArray

from worldrl.data.dataset import Dataset, Metadata
from worldrl.data.episodes import assemble
from worldrl.data.readers.files import one_line, resolved_env_id
from worldrl.data.validation import Names, checked_rows
from worldrl.errors import DataError

_log = logging.getLogger(__name__)


def read(location: str, *, env_id: str | None, max_episode_steps: int | None) -> Dataset:
    """Read the Minari dataset with the id ``location``; it is downloaded if it is not there.

    Observations made of several parts are joined in the order of their names. Minari marks every
    episode's end, so ``max_episode_steps`` changes nothing.

    Raises:
        DataError: no such dataset, it cannot be fetched, it reaches into other files, or its
            observations or actions are neither arrays nor joined from arrays.
    """
    source = f"minari:{location}"
    stored = _open(location, source)
    try:
        episodes = [episode for episode in stored.iterate_episodes() if len(episode.rewards)]
    except Exception as error:  # damage below surfaces as whatever h5py or pyarrow raise
        raise DataError(f"{source} cannot be read: {one_line(error)}; fetch it again") from None
    if not episodes:
        raise DataError(f"{source} holds no transitions")
    observations = [_joined(e.observations, source, "observations") for e in episodes]
    actions = [_joined(e.actions, source, "actions") for e in episodes]
    for episode, o, a in zip(episodes, observations, actions, strict=True):
        if len(o) != len(episode.rewards) + 1 or len(a) != len(episode.rewards):
            raise DataError(
                f"{source}: episode {episode.id} has {len(o)} observations, {len(a)} actions and "
                f"{len(episode.rewards)} rewards; T rewards need T + 1 observations and T actions"
            )
    rows = checked_rows(
        _rows(source, (o[:-1] for o in observations)),
        _rows(source, actions),
        np.concatenate([e.rewards for e in episodes]),
        np.concatenate([_ends(e.terminations) for e in episodes]),
        np.concatenate([_ends(~_ends(e.terminations)) for e in episodes]),
        _rows(source, (o[1:] for o in observations)),
        Names(source),
        np.ones(sum(len(e.rewards) for e in episodes), bool),
    )
    name, warnings = resolved_env_id(stored.spec.env_spec and stored.spec.env_spec.id, env_id)
    behaviour = stored.storage.metadata.get("algorithm_name")
    metadata = Metadata(
        source, "", name, behaviour=str(behaviour) if behaviour else None, warnings=warnings
    )
    space = stored.spec.action_space
    bounds = getattr(space, "low", None), getattr(space, "high", None)
    finite = all(b is not None and np.isfinite(b).all() for b in bounds)
    return assemble(rows, metadata, bounds=bounds if finite else (None, None))


def _open(location: str, source: str) -> Any:
    try:
        path = minari.storage.get_dataset_path(location) / "data"
        if not path.exists():
            _log.info("downloading %s", source)
            minari.download_dataset(location)
    except Exception as error:  # the servers' own libraries raise what they like
        raise DataError(
            f"{source} is not in Minari's folder and cannot be downloaded: {one_line(error)}. "
            "`minari list remote` lists ids, which look like D4RL/door/human-v2; without a "
            f"network, put the dataset's folder at {_folder(location)}"
        ) from None
    _refuse_links(path, source)
    try:
        return minari.load_dataset(location)
    except Exception as error:
        raise DataError(
            f"{source} at {path.parent} cannot be opened: {one_line(error)}; it may be damaged or "
            "need another version of Minari; delete that folder to fetch it again"
        ) from None


def _folder(location: str) -> str:
    try:
        return str(minari.storage.get_dataset_path(location))
    except (TypeError, ValueError):
        return "the folder named by MINARI_DATASETS_PATH"


def _refuse_links(path: Path, source: str) -> None:
    for file in sorted(path.glob("*.hdf5")):
        try:
            with h5py.File(file, "r") as opened:
                found = opened.visititems_links(_external) or opened.visititems(_stored_elsewhere)
        except Exception as error:  # h5py reports damage with any type
            raise DataError(f"{file} cannot be read as HDF5: {one_line(error)}") from None
        if found is not None:
            raise DataError(
                f"{source}: {found}; that is not followed, because a dataset must not reach into "
                "other files"
            )


def _external(name: str, link: object) -> str | None:
    return f"'{name}' links to {link.filename}" if isinstance(link, h5py.ExternalLink) else None


def _stored_elsewhere(name: str, item: object) -> str | None:
    if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
        return f"the values of '{name}' are stored in another file"
    return None


def _joined(values: Any, source: str, what: str) -> NDArray[Any]:
    """``(T, ...)`` from one array, or ``(T, sum of sizes)`` from a dictionary of them."""
    if isinstance(values, dict):
        parts = [_joined(values[key], source, f"{what}/{key}") for key in sorted(values)]
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    if isinstance(values, np.ndarray):
        return values
    raise DataError(
        f"{source}: '{what}' is a {type(values).__name__}; only arrays and dictionaries of arrays "
        "can be read"
    )


def _rows(source: str, parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    try:
        return np.concatenate(list(parts))
    except ValueError as error:
        raise DataError(f"{source}: episodes of unlike shapes: {one_line(error)}") from None


def _ends(terminations: NDArray[Any]) -> NDArray[np.bool_]:
    """Only an episode's last flag ends it."""
    flags = np.zeros(len(terminations), bool)
    flags[-1] = bool(terminations[-1])
    return flags
