"""From a recipe and overrides to one checked configuration.

One precedence, the later wins: defaults of the schema < shipped recipe < its row for the task <
the user's file < its row for the task < ``a.b=c`` overrides. Choosing another ``kind`` of a group
(a learner, an imagination) starts that group from the new kind's defaults: what earlier layers
said about the old kind is dropped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, overload

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from worldrl.config import recipes, yaml_subset
from worldrl.config.fields import (
    Path,
    choices,
    example,
    expected,
    group_of,
)
from worldrl.config.layers import (
    ROOTS,
    Gathered,
    Root,
    Typed,
    dotted,
    merge,
    nest,
    nest_values,
    short,
    shorthands,
)
from worldrl.config.learners import SoftSettings
from worldrl.config.model import EnsembleSettings
from worldrl.config.schema import Config, FinetuneConfig, PretrainConfig, TrainConfig
from worldrl.config.termination import TerminationSettings
from worldrl.config.warm_start import refuse_other_networks, starting_from_run
from worldrl.errors import ConfigError, suggestion

OF_A_LEARNED_TEMPERATURE = (
    "target_entropy",
    "entropy_per_action",
    "max_temperature",
    "temperature_learning_rate",
)

Overrides: TypeAlias = Sequence[str] | Mapping[str, Any]
"""``["a.b=c", ...]`` as typed on a command line, or ``{"a.b": value}`` with Python values."""


_ARGUMENTS = "arguments"  # the origin of what stands on the command line
_DATASET_HELP = (
    "no dataset is given; say where the logged data is: dataset=FILE.hdf5, dataset=FILE.npz, "
    "dataset=d4rl:hopper-medium-v2 or dataset=minari:mujoco/hopper/medium-v0"
)


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
    _refuse_unread(config, gathered)
    return config


def load_saved(path: str) -> Config:
    """The configuration that a run keeps in its ``config.yaml``, whole as it is.

    Its ``recipe`` is a label: what recipes say today is not asked.

    Raises:
        ConfigError: the file was changed to something that is not a configuration.
    """
    file = recipes.read_file(path)
    stage = file.stage or ""
    gathered: Gathered = {}
    merge(_root(stage), file.settings, file.origin, gathered)
    return _checked(stage, gathered, file.base)


def _checked(stage: str, gathered: Gathered, base: str) -> Config:
    root = _root(stage)
    try:
        return root.model_validate({**nest(gathered), "recipe": base}, strict=True)
    except ValidationError as error:
        raise ConfigError(_explain(error, root, gathered)) from None


def _refuse_unread(config: Config, gathered: Gathered) -> None:
    """Refuse overrides that nothing reads; files and recipes may hold more than a run needs."""

    def typed(group: str, usual: BaseModel, names: Iterable[str] | None = None) -> list[str]:
        """Those of a group, or some of it, that are not what they are anyway."""
        return [
            dotted(path)
            for path, entry in gathered.items()
            if entry.origin == _ARGUMENTS
            and path[0] == group
            and (names is None or path[1] in names)
            and entry.value != getattr(usual, path[1])
        ]

    unread: list[tuple[list[str], str]] = []
    if isinstance(config, TrainConfig) and not config.uses_model:
        if config.acceptance.kind == "none":
            unread.append((typed("model", EnsembleSettings()), "nothing asks a world model"))
        if config.imagination.kind == "none":
            unread.append((typed("termination", TerminationSettings()), "nothing is imagined"))
    learner = None if isinstance(config, PretrainConfig) else config.learner
    if isinstance(learner, SoftSettings):
        usual = type(learner)()
        if learner.temperature == "fixed":
            found = typed("learner", usual, OF_A_LEARNED_TEMPERATURE)
            unread.append((found, "learner.temperature is fixed"))
        elif learner.target_entropy is not None:
            found = typed("learner", usual, ("entropy_per_action",))
            unread.append((found, "learner.target_entropy says it"))
    for names, why in unread:
        if names:
            raise ConfigError(
                f"{_ARGUMENTS}: {' and '.join(names)} would be unused: {why}. Leave it out"
            )


def _with_a_trained_model(gathered: Gathered) -> Gathered:
    """A run's model brings its own settings, and so does the dynamics reward that was learned
    beside it; no others can be asked of them."""
    source = gathered.get(("model", "source"))
    if source is None or not isinstance(source.value, str):  # the schema judges what it is
        return gathered
    file = os.path.join(source.value, "config.yaml")
    if not os.path.isfile(file):
        raise ConfigError(
            f"{source.origin}: model is {short(source.value)}, and there is no run (no {file}). "
            "Train one with `worldrl pretrain ensemble dataset=... --out RUN`, or leave model out "
            "and the model is trained first"
        )
    settings = recipes.read_file(file).settings
    given = {"model": {**settings.get("model", {}), "source": source.value}}
    gathered = _brought(gathered, given, ("model",), f"the model of {source.value}", file)
    chosen = gathered.get(("imagination", "filter", "kind"))
    own = settings.get("imagination", {}).get("filter", {})
    if chosen is not None and "reward" in own and own["kind"] == chosen.value:
        imagination = {"kind": "branched", "filter": {"kind": own["kind"], "reward": own["reward"]}}
        what = f"the dynamics reward of {source.value}"
        place = ("imagination", "filter", "reward")
        gathered = _brought(gathered, {"imagination": imagination}, place, what, file)
    return gathered


def _brought(
    gathered: Gathered, given: Mapping[str, Any], place: Path, what: str, file: str
) -> Gathered:
    """With the settings of a group that something trained already brings.

    Raises:
        ConfigError: others were asked of it.
    """

    def inside(path: Path) -> bool:
        return path[: len(place)] == place

    trained: Gathered = {}
    merge(TrainConfig, given, f"file {file}", trained)
    trained = {path: entry for path, entry in trained.items() if inside(path)}
    for path, entry in gathered.items():
        stated = path != ("model", "source") and not recipes.is_shipped(entry.origin)
        if not inside(path) or not stated:
            continue
        if path not in trained or trained[path].value != entry.value:
            raise ConfigError(
                f"{entry.origin}: {dotted(path)} is {short(entry.value)}, and {what} is trained "
                "already"
                + (f", with {short(trained[path].value)}" if path in trained else "")
                + f". Leave {dotted(path)} out, or train another one without model=..."
            )
    return {path: entry for path, entry in gathered.items() if not inside(path)} | trained


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


def _gather(stage: str, recipe: str, overrides: Overrides) -> tuple[Gathered, str]:
    """Every setting that some layer states, the last statement of each, and the base recipe."""
    root = _root(stage)
    chain = recipes.read(stage, recipe)
    typed = _override_layer(overrides)
    if stage == "finetune":
        chain = starting_from_run(chain, typed)
    task = _task(_source([part.settings for part in chain] + [typed]))
    gathered: Gathered = {}
    for part in chain:
        merge(root, part.settings, part.origin, gathered)
        name = task if task in part.tasks else recipes.OTHER
        if name in part.tasks:
            row = part.tasks[name]
            origin = f"{part.origin}, row {name}"
            if not isinstance(row, Mapping):
                raise ConfigError(f"{origin}: expected a mapping of settings, got {short(row)}")
            merge(root, row, origin, gathered)
    merge(root, typed, _ARGUMENTS, gathered)
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


def _drop_pessimism_of_recipes(gathered: Gathered) -> None:
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
    if stage not in ROOTS:
        raise ConfigError(
            f"unknown stage '{stage}'{suggestion(stage, ROOTS)}; known: {', '.join(ROOTS)}"
        )
    return ROOTS[stage]


def _override_layer(overrides: Overrides) -> dict[str, Any]:
    """Overrides as a nested mapping; of a key given twice the last counts."""
    if isinstance(overrides, Mapping):
        pairs: Iterable[tuple[str, Any]] = overrides.items()
    else:
        pairs = [_split(argument) for argument in overrides]
    flat: dict[Path, Any] = {}
    for key, value in pairs:
        path = tuple(key.split("."))
        if path in shorthands() and not isinstance(value, Mapping):
            path = (*path, shorthands()[path])
            if hasattr(value, "transitions"):
                raise ConfigError(
                    f"{key} is a Dataset in memory, and a run reads a file, so that it can be "
                    "resumed: worldrl.data.export.export(dataset, Path('mine.npz')), then "
                    "dataset=mine.npz"
                )
        flat[path] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return nest_values(flat)


def _split(argument: str) -> tuple[str, Any]:
    key, equals, text = argument.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"'{argument}' is no setting: settings are written key=value, for example "
            "num_updates=100000 or learner.discount=0.99"
        )
    return key, Typed(text)


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


def _explain(error: ValidationError, root: type[BaseModel], gathered: Gathered) -> str:
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
            sentences[path] = f"{dotted(path)}: {reason}" if path else reason
        elif field is not None and path in gathered:
            entry = gathered[path]
            near = suggestion(str(entry.value), choices(field))
            sentences[path] = (
                f"{entry.origin}: {dotted(path)} is {short(entry.value)}{near}, and must be "
                f"{expected(field)}; for example {dotted(path)}={example(field)}"
            )
        else:
            sentences[path] = f"{dotted(path)}: {finding['msg']}"
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
