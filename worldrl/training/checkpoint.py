"""Checkpoints that are whole or not there, as safetensors and JSON.

A checkpoint ``checkpoints/<name>/`` holds ``model.safetensors`` (what evaluation needs),
``state.safetensors`` (what only resuming needs: optimisers, targets, snapshots) and ``state.json``
(counters and decisions, and a manifest of the two tensor files). It is written under a hidden name,
synced and renamed; then the relative link ``checkpoints/last`` is re-pointed. Loading reads
numbers and JSON: it never executes anything that a checkpoint holds.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldrl.errors import RunError
from worldrl.training.files import (
    TEMPORARY,
    DamagedError,
    free_bytes,
    read_json,
    replace_link,
    replace_text,
    size,
    sync_directory,
    sync_file,
    temporary_name,
)
from worldrl.training.run_directory import RunDirectory

SCHEMA_VERSION = 1
LAST = "last"


class Checkpoint(NamedTuple):
    """What a run needs to go on as if nothing had happened."""

    model: dict[str, Tensor]
    state: dict[str, Tensor]
    plain: dict[str, Any]
    """JSON-able; tuples come back as lists."""


class SavedModel(NamedTuple):
    """A stand-alone model: its tensors and the facts that are needed to build it."""

    tensors: dict[str, Tensor]
    plain: dict[str, Any]


def save(
    run: RunDirectory,
    name: str,
    model: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    *,
    keep: int,
) -> Path:
    """Write ``checkpoints/<name>``, point ``last`` at it, and drop the oldest ones.

    At every moment, whatever kills the process, ``last`` leads to a whole checkpoint. One that
    exists under the same name is replaced.

    Args:
        run: a run that this process has locked.
        model, state: flat names to tensors; they may be on any device, share
            storage, and be non-contiguous.
        plain: JSON-able; str keys.
        keep: how many checkpoints stay, this one included.

    Returns:
        The folder of the checkpoint.

    Raises:
        RunError: it cannot be written; the previous checkpoint is intact.
    """
    if not name or name == LAST or name.startswith(".") or "/" in name:
        raise ValueError(f"not a name for a checkpoint: {name!r}")
    folder = run.checkpoints / name
    try:
        _clear_temporary(run.checkpoints)
        _mend_last(run)
        sequence = 1 + max((order for order, _ in _by_age(run.checkpoints)), default=0)
        _write_folder(
            folder,
            {"model": model, "state": state},
            "state.json",
            {"name": name, "sequence": sequence, "plain": plain},
        )
        replace_link(run.checkpoints / LAST, name)
        _prune(run.checkpoints, keep, name)
        _clear_temporary(run.checkpoints)
    except OSError as error:
        needed = _bytes_needed(model) + _bytes_needed(state)
        raise RunError(
            f"{_failure(folder, needed, error)} {_intact(run, name)} Free some space (or set "
            f"keep_checkpoints lower), then go on with `worldrl resume {run.path}`."
        ) from error
    return folder


def load(path: Path, device: torch.device | str = "cpu", state: bool = True) -> Checkpoint:
    """Read a checkpoint folder, or the link to one, and verify it.

    Args:
        state: read the training state too; without it, it is empty.

    Raises:
        RunError: a file is missing or damaged; the message names it and the newest whole
            checkpoint beside it. Or it was written by a newer worldrl.
    """
    if path.is_symlink():
        path = path.parent / os.readlink(path)
    try:
        parts = ("model", "state") if state else ("model",)
        tensors, record = _read_folder(path, parts, "state.json", device)
    except DamagedError as error:
        raise DamagedError(f"{error}{_advice(path)}") from error
    return Checkpoint(tensors["model"], tensors.get("state", {}), record["plain"])


def last_checkpoint(run: RunDirectory) -> Path | None:
    """The checkpoint to go on from; None where the run has not written one yet."""
    link = run.checkpoints / LAST
    if link.is_symlink() and link.is_dir():
        return run.checkpoints / os.readlink(link)
    # Killed before the first link was made, or copied by a tool that drops or follows links.
    copied = link if link.is_dir() else None
    return next((folder for _, folder in _by_age(run.checkpoints)), copied)


def located(path: Path) -> tuple[RunDirectory, Path | None]:
    """A run with its last checkpoint, or with the one that the path names.

    Raises:
        RunError: there is no run.
    """
    folder = path.resolve()
    if folder.parent.name == "checkpoints":
        return RunDirectory.open(folder.parents[1]), folder
    run = RunDirectory.open(path)
    return run, last_checkpoint(run)


def save_model(path: Path, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Write a folder of ``model.safetensors`` and ``model.json``, or replace it.

    Raises:
        RunError: it cannot be written; a folder that was there is intact.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_temporary(path.parent, path.name)
        _write_folder(path, {"model": tensors}, "model.json", {"plain": plain})
    except OSError as error:
        raise RunError(
            f"{_failure(path, _bytes_needed(tensors), error)} What was there before is intact. "
            "Free some space, then try again."
        ) from error


def load_model(path: Path, device: torch.device | str = "cpu") -> SavedModel:
    """Read what :func:`save_model` wrote, and verify it.

    Raises:
        RunError: a file is missing, damaged, or written by a newer worldrl.
    """
    tensors, record = _read_folder(path, ("model",), "model.json", device)
    return SavedModel(tensors["model"], record["plain"])


# --- folders of tensors -----------------------------------------------------------------------


def _write_folder(
    folder: Path,
    groups: Mapping[str, Mapping[str, Tensor]],
    manifest_name: str,
    record: Mapping[str, Any],
) -> None:
    """Write ``<group>.safetensors`` for every group and a manifest, then rename into place."""
    _require_json(record, manifest_name)
    needed = sum(_bytes_needed(tensors) for tensors in groups.values())
    free = free_bytes(folder.parent)
    if free is not None and free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    temporary = temporary_name(folder)
    try:
        temporary.mkdir()
        files = {}
        for group, tensors in groups.items():
            file = temporary / f"{group}.safetensors"
            owned = _owned(tensors)
            _save_tensors(owned, file)
            sync_file(file)
            files[file.name] = {
                "bytes": file.stat().st_size,
                "sha256": _sha256(file),
                "tensors": _describe(owned),
            }
        manifest = {"schema_version": SCHEMA_VERSION, **record, "files": files}
        replace_text(temporary / manifest_name, json.dumps(manifest, indent=1) + "\n")
        sync_directory(temporary)
        _move_into_place(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _move_into_place(temporary: Path, folder: Path) -> None:
    if folder.exists():
        link = folder.parent / LAST
        if link.is_symlink() and os.readlink(link) == folder.name:
            # `last` must not dangle while the folder is exchanged: it leads to a clone meanwhile.
            clone = folder.with_name(f".{folder.name}.previous{TEMPORARY}{os.getpid()}")
            shutil.copytree(folder, clone, copy_function=_link_or_copy)
            sync_directory(clone)
            replace_link(link, clone.name)
        _remove(folder)
    os.rename(temporary, folder)
    sync_directory(folder.parent)


def _read_folder(
    folder: Path, groups: Collection[str], manifest_name: str, device: torch.device | str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    record = read_json(folder / manifest_name, SCHEMA_VERSION)
    try:
        files = {group: record["files"][f"{group}.safetensors"] for group in groups}
        expected = {group: (file["sha256"], file["tensors"]) for group, file in files.items()}
        record["plain"]
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{folder / manifest_name} is damaged: it holds no {error}.") from error
    tensors = {}
    for group, (sha256, described) in expected.items():
        file = folder / f"{group}.safetensors"
        try:
            found = _sha256(file)
        except OSError as error:
            raise DamagedError(f"{file} cannot be read: {error.strerror}.") from error
        if found != sha256:
            raise DamagedError(f"{file} is damaged: its sha256 is not the one that was recorded.")
        try:
            loaded = load_file(file)
        except (OSError, SafetensorError) as error:
            raise DamagedError(f"{file} is damaged: {error}.") from error
        if _describe(loaded) != described:
            raise DamagedError(f"{file} does not hold the tensors that {manifest_name} lists.")
        # Copied out of the mapped file: an aligned tensor is multiplied by the same kernels,
        # to the same bits, as the one that was saved.
        tensors[group] = {name: tensor.to(device, copy=True) for name, tensor in loaded.items()}
    return tensors, record


def _save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    try:
        save_file(tensors, file)
    except SafetensorError as error:
        # safetensors reports a full disk as its own error; what tells it apart is in the text.
        raise OSError(0, str(error)) from error


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU copies that are contiguous and share no storage, as safetensors asks for."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _describe(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in sorted(tensors.items())
    }


def _bytes_needed(tensors: Mapping[str, Tensor]) -> int:
    """The size of the file, up to the exact length of its header."""
    payload = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return payload + 4096 + sum(100 + len(name) for name in tensors)


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _require_json(value: Any, where: str) -> None:
    """Refuse what JSON would silently change: keys that are not str, objects, arrays."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; JSON keys are str")
            _require_json(item, f"{where}/{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _require_json(item, f"{where}/{index}")
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        raise TypeError(f"{where} is a {type(value).__name__}; JSON cannot hold it")


# --- the checkpoints folder -------------------------------------------------------------------


def _by_age(checkpoints: Path) -> Iterator[tuple[int, Path]]:
    """``(sequence, folder)`` of every checkpoint, newest first; one without a readable record
    counts as the oldest."""
    found = []
    for folder in checkpoints.iterdir() if checkpoints.is_dir() else ():
        if folder.name.startswith(".") or folder.is_symlink() or not folder.is_dir():
            continue
        if folder.name != LAST:
            found.append((_sequence(folder), folder))
    return iter(sorted(found, key=lambda item: (item[0], item[1].name), reverse=True))


def _sequence(folder: Path) -> int:
    with suppress(RunError):
        sequence = read_json(folder / "state.json", SCHEMA_VERSION).get("sequence")
        if isinstance(sequence, int):
            return sequence
    return 0


def _prune(checkpoints: Path, keep: int, newest: str) -> None:
    for _, folder in list(_by_age(checkpoints))[max(keep, 1) :]:
        if folder.name != newest:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder so that no half of it is ever seen under its own name."""
    hidden = folder.with_name(f".{folder.name}.removed{TEMPORARY}{os.getpid()}")
    os.rename(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _clear_temporary(folder: Path, name: str = "") -> None:
    """Remove what a killed process left behind (of ``name`` alone, where it is given)."""
    link = folder / LAST
    current = os.readlink(link) if link.is_symlink() else None
    for path in folder.glob(f".{glob.escape(name)}*{TEMPORARY}*"):
        if path.name == current:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _mend_last(run: RunDirectory) -> None:
    """Make ``last`` a link to what :func:`last_checkpoint` finds, as all that follows relies on."""
    link = run.checkpoints / LAST
    if link.is_symlink() and link.is_dir():
        return
    newest = last_checkpoint(run)
    if newest == link:  # a copy of `last` alone, by a tool that followed the link
        newest = link.rename(link.with_name(f"{LAST}-copied"))
    elif link.is_dir():  # a copy of everything; the same folder is there by its own name
        _remove(link)
    if newest is not None:
        replace_link(link, newest.name)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _failure(folder: Path, needed: int, error: OSError) -> str:
    free = free_bytes(folder.parent)
    space = "" if free is None else f" and {size(free)} are free"
    return (
        f"cannot write {folder}: {error.strerror or error}; it needs about {size(needed)}{space}."
    )


def _intact(run: RunDirectory, name: str) -> str:
    previous = last_checkpoint(run)
    if previous is None or previous.name == name:
        return "No earlier checkpoint of this run was touched."
    return f"The previous checkpoint, {run.checkpoints / previous.name}, is intact."


def _advice(path: Path) -> str:
    """The newest whole checkpoint beside a damaged one, and how to go on from it."""
    damaged = path.resolve()
    for _, folder in _by_age(damaged.parent):
        if folder == damaged:
            continue
        with suppress(RunError):
            _read_folder(folder, ("model", "state"), "state.json", "cpu")
            return (
                f" The newest whole checkpoint is {folder.name}; to go on from it: "
                f"`ln -sfn {folder.name} {damaged.parent / LAST}`, then "
                f"`worldrl resume {damaged.parent.parent}`."
            )
    return " There is no other whole checkpoint beside it: start the run again."
