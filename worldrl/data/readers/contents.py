"""What a file of flat rows holds, before it is checked, and the dataset made of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from worldrl.data.dataset import Dataset, Metadata
from worldrl.data.episodes import assemble
from worldrl.data.readers.files import resolved_env_id
from worldrl.data.validation import Names, check_length, checked_rows, flags
from worldrl.errors import DataError


class Contents(NamedTuple):
    """Unchecked arrays and notes of one file."""

    arrays: dict[str, NDArray[Any]]
    """Under the names of :meth:`worldrl.data.Dataset.from_arrays`, ``next_known``,
    ``action_known``."""
    names: Names
    """What the file calls them."""
    sha256: str
    env_id: str | None = None
    behaviour: str | None = None
    action_low: Any = None
    action_high: Any = None


def label_hint(key: str) -> str:
    """How a message ends where a file lacks its actions; nothing for other keys."""
    if key != "actions":
        return ""
    return (
        "; trajectories without actions can be given them with `worldrl data label`, learned from "
        "others that have them"
    )


def dataset_of(contents: Contents, env_id: str | None, max_episode_steps: int | None) -> Dataset:
    """The dataset in a file whose rows all have their actions.

    Raises:
        DataError: the rows are not a dataset, or the file says that actions are missing.
    """
    arrays, names = contents.arrays, contents.names
    rows = checked_rows(
        arrays["observations"],
        arrays["actions"],
        arrays["rewards"],
        arrays["terminated"],
        arrays.get("truncated"),
        arrays.get("next_observations"),
        names,
        arrays.get("next_known"),
    )
    if "action_known" in arrays:
        known = flags(arrays["action_known"], names.action_known, names)
        check_length(known, len(rows.rewards), names.action_known, names)
        if not known.all():
            raise DataError(
                f"{names.source}: '{names.action_known}' says that {int((~known).sum())} of "
                f"{len(known)} rows lack their action, the first is row {int(known.argmin())}"
                f"{label_hint('actions')}"
            )
    return assemble(
        rows,
        metadata_of(contents, env_id),
        bounds=(contents.action_low, contents.action_high),
        max_episode_steps=max_episode_steps,
    )


def metadata_of(contents: Contents, env_id: str | None) -> Metadata:
    """What the file says about itself; ``env_id`` replaces its environment."""
    name, warnings = resolved_env_id(contents.env_id, env_id)
    return Metadata(
        contents.names.source,
        contents.sha256,
        name,
        behaviour=contents.behaviour,
        warnings=warnings,
    )
