"""What every setting means: the docstrings of the schema, read from its source."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from pydantic import BaseModel

from worldrl.config.fields import Path, as_text, expected, group_of
from worldrl.config.schema import FinetuneConfig, TrainConfig
from worldrl.errors import ConfigError, suggestion

_LABELS = ("stage", "recipe")


class Setting(NamedTuple):
    """One setting as a user meets it."""

    key: str
    kind: str
    """Of the group it belongs to; empty where the group has no kinds."""
    default: str
    values: str
    meaning: str


def explain(prefix: str = "") -> list[Setting]:
    """The settings whose keys are ``prefix`` or begin with it; all without one.

    Raises:
        ConfigError: no setting is called so.
    """
    # A group that several learners have is explained once, and so is what both stages have.
    every = list(dict.fromkeys([*_settings(TrainConfig), *_settings(FinetuneConfig)]))
    found = [one for one in every if f"{one.key}.".startswith(f"{prefix}.") or not prefix]
    if not found:
        names = {".".join(one.key.split(".")[:depth]) for one in every for depth in (1, 2, 3)}
        raise ConfigError(
            f"there is no setting '{prefix}'{suggestion(prefix, sorted(names))}; "
            "`worldrl config explain` lists all of them"
        )
    return found


def _settings(settings: type[BaseModel], prefix: Path = (), kind: str = "") -> Iterator[Setting]:
    meanings = _meanings(settings)
    for name, field in settings.model_fields.items():
        path = (*prefix, name)
        group = group_of(field)
        if group is not None:
            if group.has_kinds:
                key, names = ".".join((*path, "kind")), ", ".join(group.classes)
                yield Setting(key, "", group.default, f"one of {names}", "")
            for own, member in group.classes.items():
                found = _settings(member, path, own or kind)
                yield from (one for one in found if not own or one.key != key)
        elif name not in _LABELS:
            default = "(required)" if field.is_required() else as_text(field.default)
            meaning = meanings.get(name, "")
            yield Setting(".".join(path), kind, default, expected(field), meaning)


def _meanings(settings: type[BaseModel]) -> dict[str, str]:
    """The string under each field, of base classes too."""
    found: dict[str, str] = {}
    for one in reversed(settings.__mro__):
        if not one.__module__.startswith("worldrl."):
            continue
        (parsed,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(parsed, ast.ClassDef)
        for field, text in pairwise(parsed.body):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found
