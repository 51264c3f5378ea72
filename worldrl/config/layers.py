"""Layers of settings laid over each other key by key, each value with where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from worldrl.config import yaml_subset
from worldrl.config.fields import (
    Group,
    Path,
    accepts,
    as_text,
    group_of,
    is_whole,
    walk,
)
from worldrl.config.schema import FinetuneConfig, PretrainConfig, TrainConfig
from worldrl.errors import ConfigError, suggestion

Root: TypeAlias = type[PretrainConfig] | type[TrainConfig] | type[FinetuneConfig]


ROOTS: dict[str, Root] = {
    "pretrain": PretrainConfig,
    "train": TrainConfig,
    "finetune": FinetuneConfig,
}
_SHORTHANDS: dict[Path, str] = {("dataset",): "source", ("model",): "source"}
"""``dataset=X`` is short for ``dataset.source=X``; of other groups it is short for their kind."""
_RESERVED = ("stage", "recipe", "tasks")


class Typed(str):
    """Text from a command line: read as the setting wants it."""


class Entry(NamedTuple):
    """A setting, and which layer stated it."""

    value: Any
    origin: str


Gathered: TypeAlias = dict[Path, Entry]


class _Place(NamedTuple):
    """Where in the schema a mapping of a layer belongs."""

    settings: type[BaseModel]
    path: Path
    kind: str
    origin: str


def merge(root: type[BaseModel], layer: Mapping[str, Any], origin: str, into: Gathered) -> None:
    """Lay one layer over what is gathered, checking every key against the schema."""
    for key in layer:
        if key in _RESERVED:
            raise ConfigError(
                f"{origin}: '{key}' cannot be set here: the command is the stage and its first "
                "argument is the recipe"
            )
    _merge_group(root, _Place(root, (), "", origin), layer, into)


def _merge_group(
    root: type[BaseModel], at: _Place, layer: Mapping[str, Any], into: Gathered
) -> None:
    for key, value in layer.items():
        path = (*at.path, key)
        field = at.settings.model_fields.get(key)
        if field is None:
            raise ConfigError(_unknown_key(root, at, path, value))
        group = group_of(field)
        if group is None:
            into[path] = Entry(_read(field, value, path, at.origin), at.origin)
            continue
        inner = _as_mapping(path, value, group.classes[group.default], at.origin)
        kind = _choose_kind(group, path, inner, at.origin, into) if group.has_kinds else ""
        rest = {name: item for name, item in inner.items() if name != "kind" or not kind}
        _merge_group(root, _Place(group.classes[kind], path, kind, at.origin), rest, into)


def _choose_kind(
    group: Group, path: Path, layer: Mapping[str, Any], origin: str, into: Gathered
) -> str:
    """The kind that a layer leaves a group with; a new one drops what the old one was told."""
    current = into.get((*path, "kind"), Entry(group.default, "")).value
    kind = layer.get("kind", current)
    if not isinstance(kind, str) or kind not in group.classes:
        near = suggestion(kind, group.classes) if isinstance(kind, str) else ""
        raise ConfigError(
            f"{origin}: {dotted(path)}.kind is {short(kind)}{near}, and must be one of "
            f"{', '.join(group.classes)}"
        )
    if kind != current:
        for old in [known for known in into if known[: len(path)] == path]:
            del into[old]
    into[(*path, "kind")] = Entry(str(kind), origin)
    return str(kind)


def _as_mapping(
    path: Path, value: Any, settings: type[BaseModel], origin: str
) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if path in shorthands() and isinstance(value, str):
        return {shorthands()[path]: value}
    names = ", ".join(f"{dotted(path)}.{name}" for name in settings.model_fields)
    raise ConfigError(
        f"{origin}: {dotted(path)} is a group of settings and cannot be {short(value)}; "
        f"set one of {names}"
    )


def _read(field: FieldInfo, value: Any, path: Path, origin: str) -> Any:
    """A value as the schema wants it; pydantic then judges it."""
    if isinstance(value, Typed):
        if accepts(field, str):
            empty = value in ("null", "~") and accepts(field, type(None))
            return None if empty else str(value)
        value = yaml_subset.parse(value, f"{origin}: {dotted(path)}={short(value)}")
    if accepts(field, tuple):
        if isinstance(value, str) and "," in value:
            value = [yaml_subset.parse(item, origin) for item in value.split(",")]
        if isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            value = value if accepts(field, float) or accepts(field, int) else (value,)
    if is_whole(field):
        value = tuple(map(_whole, value)) if isinstance(value, tuple) else _whole(value)
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, int) and abs(item) >= 2**63:
            raise ConfigError(f"{origin}: {dotted(path)} is beyond 64 bits")
    return value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def nest(gathered: Gathered) -> dict[str, Any]:
    """What is gathered as mappings in mappings."""
    return nest_values({path: entry.value for path, entry in gathered.items()})


def nest_values(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """Values by path as mappings in mappings."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        level = nested
        for name in path[:-1]:
            level = level.setdefault(name, {})
            if not isinstance(level, dict):
                raise ConfigError(f"'{dotted(path)}': '{name}' is given as a single value too")
        if isinstance(level.get(path[-1]), dict):
            raise ConfigError(f"'{dotted(path)}' is given as a single value and as a group")
        level[path[-1]] = value
    return nested


def _unknown_key(root: type[BaseModel], at: _Place, path: Path, value: Any) -> str:
    """What is wrong with a key, what may have been meant, and what stands at its level."""
    while isinstance(value, Mapping) and len(value) == 1:
        (name, value), *_ = value.items()
        path = (*path, str(name))
    parent = path[: len(at.path)]
    names = [name for name in at.settings.model_fields if parent or name not in _RESERVED]
    every = list(walk(root))
    same_end = [full for full in every if full[-len(path) :] == path]
    if path in every:
        hint = f": it belongs to another kind of {dotted(parent)}"
    elif near := suggestion(path[len(parent)], names):
        hint = near.replace("'", f"'{dotted((*parent, ''))}", 1)
    elif same_end or (same_end := [full for full in every if full[-1] == path[-1]]):
        hint = f" (did you mean '{dotted(same_end[0])}'?)"
    else:
        hint = suggestion(dotted(path), [dotted(full) for full in every])
    where = f" in {dotted(parent)}" if parent else ""
    kind = f" of kind {at.kind}" if at.kind else ""
    return (
        f"{at.origin}: there is no setting '{dotted(path)}'{hint}; valid{where}{kind}: "
        f"{', '.join(names)}"
    )


def dotted(path: Path) -> str:
    """As it is typed."""
    return ".".join(path)


def short(value: object) -> str:
    """A value for a message."""
    if isinstance(value, str):
        text = repr(str(value))
    elif isinstance(value, bool | int | float | tuple | list) or value is None:
        text = as_text(value)
    else:
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@cache
def shorthands() -> dict[Path, str]:
    """Groups that can be given as a single value, and the setting that it is of."""
    every = (path for root in ROOTS.values() for path in walk(root))
    return {path[:-1]: "kind" for path in every if path[-1] == "kind"} | _SHORTHANDS
