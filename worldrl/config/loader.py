"""From a recipe and overrides to one checked configuration.

One precedence, the later wins: defaults of the schema < shipped recipe < its row for the task <
the user's file < its row for the task < ``a.b=c`` overrides. Choosing another ``kind`` of a group
(a learner, an imagination) starts that group from the new kind's defaults: what earlier layers
said about the old kind is dropped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias, overload

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from worldrl.config import recipes, yaml_subset
from worldrl.config.fields import (
    Group,
    Path,
    accepts,
    as_text,
    choices,
    example,
    expected,
    group_of,
    is_whole,
    walk,
)
from worldrl.config.schema import Config, FinetuneConfig, PretrainConfig, TrainConfig
from worldrl.config.warm_start import refuse_other_networks, starting_from_run
from worldrl.errors import ConfigError, suggestion

SHORTHANDS: dict[Path, str] = {("dataset",): "source", ("model",): "source"}
"""``dataset=X`` is short for ``dataset.source=X``; of other groups it is short for their kind."""

Overrides: TypeAlias = Sequence[str] | Mapping[str, Any]
"""``["a.b=c", ...]`` as typed on a command line, or ``{"a.b": value}`` with Python values."""

Root: TypeAlias = type[PretrainConfig] | type[TrainConfig] | type[FinetuneConfig]

_ROOTS: dict[str, Root] = {
    "pretrain": PretrainConfig,
    "train": TrainConfig,
    "finetune": FinetuneConfig,
}
_ARGUMENTS = "arguments"  # the origin of what stands on the command line
_RESERVED = ("stage", "recipe", "tasks")
_DATASET_HELP = (
    "no dataset is given; say where the logged data is: dataset=FILE.hdf5, dataset=FILE.npz, "
    "dataset=d4rl:hopper-medium-v2 or dataset=minari:mujoco/hopper/medium-v0"
)


class _Typed(str):
    """Text from a command line: read as the setting wants it."""


class _Entry(NamedTuple):
    value: Any
    origin: str


_Gathered: TypeAlias = dict[Path, _Entry]


class _Place(NamedTuple):
    """Where in the schema a mapping of a layer belongs."""

    settings: type[BaseModel]
    path: Path
    kind: str
    origin: str


@overload
def load_config(
    stage: Literal["pretrain"], recipe: str = "", overrides: Overrides = ()
) -> PretrainConfig: ...
@overload
def load_config(
    stage: Literal["train"], recipe: str = "", overrides: Overrides = ()
) -> TrainConfig: ...
@overload
def load_config(
    stage: Literal["finetune"], recipe: str = "", overrides: Overrides = ()
) -> FinetuneConfig: ...
@overload
def load_config(stage: str, recipe: str = "", overrides: Overrides = ()) -> Config: ...
def load_config(stage: str, recipe: str = "", overrides: Overrides = ()) -> Config:
    """The configuration of one run.

    Args:
        stage: ``pretrain``, ``train`` or ``finetune``.
        recipe: a shipped name, the path of a YAML file, or empty for the defaults alone.
        overrides: ``["a.b=c", ...]`` or ``{"a.b": value}``.

    Raises:
        ConfigError: an unknown recipe or key, or a value that a key does not take; the message
            names the key, the place that set it, and what would be right.
    """
    gathered, base = _gather(stage, recipe, overrides)
    if stage == "train":
        gathered = _with_a_trained_model(gathered)
    config = _checked(stage, gathered, base)
    if isinstance(config, FinetuneConfig):
        refuse_other_networks(config)
    return config


def load_saved(path: str) -> Config:
    """The configuration that a run keeps in its ``config.yaml``, whole as it is.

    Its ``recipe`` is a label: what recipes say today is not asked.

    Raises:
        ConfigError: the file was changed to something that is not a configuration.
    """
    file = recipes.read_file(path)
    stage = file.stage or ""
    gathered: _Gathered = {}
    _merge(_root(stage), file.settings, file.origin, gathered)
    return _checked(stage, gathered, file.base)


def _checked(stage: str, gathered: _Gathered, base: str) -> Config:
    root = _root(stage)
    try:
        return root.model_validate({**_nest(gathered), "recipe": base}, strict=True)
    except ValidationError as error:
        raise ConfigError(_explain(error, root, gathered)) from None


def _with_a_trained_model(gathered: _Gathered) -> _Gathered:
    """A model that is trained already brings its own settings; no others can be asked of it."""
    source = gathered.get(("model", "source"))
    if source is None or not isinstance(source.value, str):  # the schema judges what it is
        return gathered
    file = os.path.join(source.value, "config.yaml")
    if not os.path.isfile(file):
        raise ConfigError(
            f"{source.origin}: model is {_short(source.value)}, and there is no run (no {file}). "
            "Train one with `worldrl pretrain ensemble dataset=... --out RUN`, or leave model out "
            "and the model is trained first"
        )
    trained: _Gathered = {}
    settings = recipes.read_file(file).settings.get("model", {})
    _merge(TrainConfig, {"model": {**settings, "source": source.value}}, f"file {file}", trained)
    for path, entry in gathered.items():
        stated = path[0] == "model" and path != ("model", "source")
        if not stated or recipes.is_shipped(entry.origin):
            continue
        if path not in trained or trained[path].value != entry.value:
            raise ConfigError(
                f"{entry.origin}: {_dotted(path)} is {_short(entry.value)}, and the model of "
                f"{source.value} is trained already"
                + (f", with {_short(trained[path].value)}" if path in trained else "")
                + f". Leave {_dotted(path)} out, or train another model without model=..."
            )
    return {path: entry for path, entry in gathered.items() if path[0] != "model"} | trained


def dump_config(config: Config) -> str:
    """YAML that ``load_config(config.stage, path)`` reads back equal."""
    return yaml_subset.dump(_in_order(config.model_dump(mode="json")))


def _in_order(settings: dict[str, Any]) -> dict[str, Any]:
    """What a reader asks first comes first."""
    names = sorted(settings, key=lambda name: name not in ("stage", "recipe", "kind"))
    values = ((name, settings[name]) for name in names)
    return {name: _in_order(value) if isinstance(value, dict) else value for name, value in values}


def show_config(stage: str, recipe: str, overrides: Overrides = ()) -> str:
    """What would run, as YAML; ``dataset.source`` is null while no dataset is given.

    Raises:
        ConfigError: as :func:`load_config`, but for a missing dataset.
    """
    gathered, _ = _gather(stage, recipe, overrides)
    if ("dataset", "source") in gathered:
        return dump_config(load_config(stage, recipe, overrides))
    given = list(overrides) if not isinstance(overrides, Mapping) else overrides
    placeholder = "(required)"
    filled: Overrides = (
        {**given, "dataset.source": placeholder}
        if isinstance(given, Mapping)
        else [*given, f"dataset.source={placeholder}"]
    )
    shown = dump_config(load_config(stage, recipe, filled))
    return shown.replace(f"source: {placeholder}", "source: null  # required: dataset=...", 1)


def _gather(stage: str, recipe: str, overrides: Overrides) -> tuple[_Gathered, str]:
    """Every setting that some layer states, the last statement of each, and the base recipe."""
    root = _root(stage)
    chain = recipes.read(stage, recipe)
    typed = _override_layer(overrides)
    if stage == "finetune":
        chain = starting_from_run(chain, typed)
    task = _task(_source([part.settings for part in chain] + [typed]))
    gathered: _Gathered = {}
    for part in chain:
        _merge(root, part.settings, part.origin, gathered)
        name = task if task in part.tasks else recipes.OTHER
        if name in part.tasks:
            row = part.tasks[name]
            origin = f"{part.origin}, row {name}"
            if not isinstance(row, Mapping):
                raise ConfigError(f"{origin}: expected a mapping of settings, got {_short(row)}")
            _merge(root, row, origin, gathered)
    _merge(root, typed, _ARGUMENTS, gathered)
    _drop_pessimism_of_recipes(gathered)
    if recipe in recipes.shipped(stage):
        return gathered, recipe
    return gathered, chain[-1].base if chain else ""


#: What only the other kinds of a group use.
_VOID = {
    ("penalty", "none"): ("weight", "scale"),
    ("stop", "none"): ("measure", "quantile", "deviations", "factor", "cost"),
    **{("stop", kind): ("cost",) for kind in ("truncate", "drop", "terminal")},
}


def _drop_pessimism_of_recipes(gathered: _Gathered) -> None:
    """Without a penalty, what recipes say of its size is void; what users say is an error later.

    So it is with a stop.
    """
    for group in ("penalty", "stop"):
        kind = gathered.get(("imagination", group, "kind"))
        for name in _VOID.get((group, str(kind.value)), ()) if kind is not None else ():
            entry = gathered.get(("imagination", group, name))
            if entry is not None and recipes.is_shipped(entry.origin):
                del gathered["imagination", group, name]


def _root(stage: str) -> Root:
    if stage not in _ROOTS:
        raise ConfigError(
            f"unknown stage '{stage}'{suggestion(stage, _ROOTS)}; known: {', '.join(_ROOTS)}"
        )
    return _ROOTS[stage]


def _override_layer(overrides: Overrides) -> dict[str, Any]:
    """Overrides as a nested mapping; of a key given twice the last counts."""
    if isinstance(overrides, Mapping):
        pairs: Iterable[tuple[str, Any]] = overrides.items()
    else:
        pairs = [_split(argument) for argument in overrides]
    flat: dict[Path, Any] = {}
    for key, value in pairs:
        path = tuple(key.split("."))
        if path in _shorthands() and not isinstance(value, Mapping):
            path = (*path, _shorthands()[path])
            if hasattr(value, "transitions"):
                raise ConfigError(
                    f"{key} is a Dataset in memory, and a run reads a file, so that it can be "
                    "resumed: worldrl.data.export.export(dataset, Path('mine.npz')), then "
                    "dataset=mine.npz"
                )
        flat[path] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return _nest_values(flat)


@cache
def _shorthands() -> dict[Path, str]:
    """Groups that can be given as a single value, and the setting that it is of."""
    every = (path for root in _ROOTS.values() for path in walk(root))
    return {path[:-1]: "kind" for path in every if path[-1] == "kind"} | SHORTHANDS


def _split(argument: str) -> tuple[str, Any]:
    key, equals, text = argument.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"'{argument}' is no setting: settings are written key=value, for example "
            "num_updates=100000 or learner.discount=0.99"
        )
    return key, _Typed(text)


def _source(layers: list[Mapping[str, Any]]) -> object:
    """The dataset that the last layer to name one names."""
    for layer in reversed(layers):
        dataset = layer.get("dataset")
        source = dataset.get("source") if isinstance(dataset, Mapping) else dataset
        if source is not None:
            return source
    return None


def _task(source: object) -> str:
    """The D4RL name of a dataset: stated, or that of a file as D4RL calls it."""
    if not isinstance(source, str):
        return ""
    if source[:5] == "d4rl:":
        return source.removeprefix("d4rl:")
    name, suffix = os.path.splitext(os.path.basename(source))
    return name.replace("_", "-") if suffix in (".hdf5", ".h5") else ""


def _merge(root: type[BaseModel], layer: Mapping[str, Any], origin: str, into: _Gathered) -> None:
    """Lay one layer over what is gathered, checking every key against the schema."""
    for key in layer:
        if key in _RESERVED:
            raise ConfigError(
                f"{origin}: '{key}' cannot be set here: the command is the stage and its first "
                "argument is the recipe"
            )
    _merge_group(root, _Place(root, (), "", origin), layer, into)


def _merge_group(
    root: type[BaseModel], at: _Place, layer: Mapping[str, Any], into: _Gathered
) -> None:
    for key, value in layer.items():
        path = (*at.path, key)
        field = at.settings.model_fields.get(key)
        if field is None:
            raise ConfigError(_unknown_key(root, at, path, value))
        group = group_of(field)
        if group is None:
            into[path] = _Entry(_read(field, value, path, at.origin), at.origin)
            continue
        inner = _as_mapping(path, value, group.classes[group.default], at.origin)
        kind = _choose_kind(group, path, inner, at.origin, into) if group.has_kinds else ""
        rest = {name: item for name, item in inner.items() if name != "kind" or not kind}
        _merge_group(root, _Place(group.classes[kind], path, kind, at.origin), rest, into)


def _choose_kind(
    group: Group, path: Path, layer: Mapping[str, Any], origin: str, into: _Gathered
) -> str:
    """The kind that a layer leaves a group with; a new one drops what the old one was told."""
    current = into.get((*path, "kind"), _Entry(group.default, "")).value
    kind = layer.get("kind", current)
    if not isinstance(kind, str) or kind not in group.classes:
        near = suggestion(kind, group.classes) if isinstance(kind, str) else ""
        raise ConfigError(
            f"{origin}: {_dotted(path)}.kind is {_short(kind)}{near}, and must be one of "
            f"{', '.join(group.classes)}"
        )
    if kind != current:
        for old in [known for known in into if known[: len(path)] == path]:
            del into[old]
    into[(*path, "kind")] = _Entry(str(kind), origin)
    return str(kind)


def _as_mapping(
    path: Path, value: Any, settings: type[BaseModel], origin: str
) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if path in _shorthands() and isinstance(value, str):
        return {_shorthands()[path]: value}
    names = ", ".join(f"{_dotted(path)}.{name}" for name in settings.model_fields)
    raise ConfigError(
        f"{origin}: {_dotted(path)} is a group of settings and cannot be {_short(value)}; "
        f"set one of {names}"
    )


def _read(field: FieldInfo, value: Any, path: Path, origin: str) -> Any:
    """A value as the schema wants it; pydantic then judges it."""
    if isinstance(value, _Typed):
        if accepts(field, str):
            empty = value in ("null", "~") and accepts(field, type(None))
            return None if empty else str(value)
        value = yaml_subset.parse(value, f"{origin}: {_dotted(path)}={_short(value)}")
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
            raise ConfigError(f"{origin}: {_dotted(path)} is beyond 64 bits")
    return value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _nest(gathered: _Gathered) -> dict[str, Any]:
    return _nest_values({path: entry.value for path, entry in gathered.items()})


def _nest_values(flat: Mapping[Path, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        level = nested
        for name in path[:-1]:
            level = level.setdefault(name, {})
            if not isinstance(level, dict):
                raise ConfigError(f"'{_dotted(path)}': '{name}' is given as a single value too")
        if isinstance(level.get(path[-1]), dict):
            raise ConfigError(f"'{_dotted(path)}' is given as a single value and as a group")
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
        hint = f": it belongs to another kind of {_dotted(parent)}"
    elif near := suggestion(path[len(parent)], names):
        hint = near.replace("'", f"'{_dotted((*parent, ''))}", 1)
    elif same_end or (same_end := [full for full in every if full[-1] == path[-1]]):
        hint = f" (did you mean '{_dotted(same_end[0])}'?)"
    else:
        hint = suggestion(_dotted(path), [_dotted(full) for full in every])
    where = f" in {_dotted(parent)}" if parent else ""
    kind = f" of kind {at.kind}" if at.kind else ""
    return (
        f"{at.origin}: there is no setting '{_dotted(path)}'{hint}; valid{where}{kind}: "
        f"{', '.join(names)}"
    )


def _explain(error: ValidationError, root: type[BaseModel], gathered: _Gathered) -> str:
    """Pydantic's findings as sentences, one a setting."""
    sentences: dict[Path, str] = {}
    for finding in error.errors(include_url=False):
        path, field = _locate(root, finding["loc"])
        if path in sentences:
            continue
        if finding["type"] == "missing" and path in (("dataset",), ("dataset", "source")):
            sentences[path] = _DATASET_HELP
        elif finding["type"] in ("value_error", "assertion_error"):
            reason = str(finding["ctx"]["error"])
            sentences[path] = f"{_dotted(path)}: {reason}" if path else reason
        elif field is not None and path in gathered:
            entry = gathered[path]
            near = suggestion(str(entry.value), choices(field))
            sentences[path] = (
                f"{entry.origin}: {_dotted(path)} is {_short(entry.value)}{near}, and must be "
                f"{expected(field)}; for example {_dotted(path)}={example(field)}"
            )
        else:
            sentences[path] = f"{_dotted(path)}: {finding['msg']}"
    return ". ".join(sentences.values())


def _locate(
    root: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[Path, FieldInfo | None]:
    """The full key of a finding: pydantic adds kinds of unions and positions in lists."""
    path: Path = ()
    settings: type[BaseModel] | None = root
    field: FieldInfo | None = None
    classes: Mapping[str, type[BaseModel]] = {}
    for name in location:
        if settings is None and str(name) in classes:
            settings = classes[str(name)]
            continue
        if settings is None or name not in settings.model_fields:
            break
        field = settings.model_fields[str(name)]
        path = (*path, str(name))
        group = group_of(field)
        if group is None:
            break
        classes, field = group.classes, None
        settings = None if len(classes) > 1 else next(iter(classes.values()))
    return path, field


def _dotted(path: Path) -> str:
    return ".".join(path)


def _short(value: object) -> str:
    if isinstance(value, str):
        text = repr(str(value))
    elif isinstance(value, bool | int | float | tuple | list) or value is None:
        text = as_text(value)
    else:
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
