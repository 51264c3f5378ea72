"""What the schema says about one setting: its group, its kinds, the values it takes."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Path = tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """A field that holds settings of its own: one class, or one class a kind."""

    classes: Mapping[str, type[BaseModel]]
    """By kind; a group that has no kinds stands under the empty string."""
    default: str
    """The kind taken where nothing chooses one."""

    @property
    def has_kinds(self) -> bool:
        return "" not in self.classes


def group_of(field: FieldInfo) -> Group | None:
    """The group that a field holds, or None for a single value."""
    classes = tuple(
        part
        for part in _alternatives(field.annotation)
        if isinstance(part, type) and issubclass(part, BaseModel)
    )
    if not classes:
        return None
    kinds = [_kind(part) for part in classes]
    default = _kind(type(field.default)) if isinstance(field.default, classes) else kinds[0]
    return Group(dict(zip(kinds, classes, strict=True)), default)


def walk(settings: type[BaseModel], prefix: Path = ()) -> Iterator[Path]:
    """The full key of every setting, in the order of the schema, of every kind."""
    for name, field in settings.model_fields.items():
        group = group_of(field)
        if group is None:
            yield (*prefix, name)
            continue
        seen: set[Path] = set()
        for member in group.classes.values():
            for path in walk(member, (*prefix, name)):
                if path not in seen:
                    seen.add(path)
                    yield path


def expected(field: FieldInfo) -> str:
    """The values that a field takes, in words."""
    return _describe(field.annotation, field.metadata)


def choices(field: FieldInfo) -> list[str]:
    """The names that a field chooses from; empty where it takes other values."""
    return [
        str(value)
        for part in _leaves(field.annotation)
        if get_origin(part) is Literal
        for value in get_args(part)
    ]


def example(field: FieldInfo) -> str:
    """A value that a field takes, as it is written on the command line."""
    if field.default is not None and not field.is_required():
        return as_text(field.default)
    return _example(field.annotation)


def as_text(value: object) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return f"[{','.join(as_text(item) for item in value)}]"
    return str(value)


def accepts(field: FieldInfo, kind: type) -> bool:
    """Whether a value of exactly this type is one of the field's alternatives."""
    return any(part is kind or get_origin(part) is kind for part in _alternatives(field.annotation))


def is_whole(field: FieldInfo) -> bool:
    """Whether the numbers of a field are all whole: ``1e6`` then means 1000000."""
    leaves = set(_leaves(field.annotation))
    return int in leaves and float not in leaves


def _kind(settings: type[BaseModel]) -> str:
    field = settings.model_fields.get("kind")
    values = get_args(field.annotation) if field is not None else ()
    return values[0] if len(values) == 1 else ""


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, and of unions in it, without ``Annotated`` around them."""
    annotation = _bare(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(one for part in get_args(annotation) for one in _alternatives(part))
    return (annotation,)


def _bare(annotation: Any) -> Any:
    return annotation.__origin__ if hasattr(annotation, "__metadata__") else annotation


def _leaves(annotation: Any) -> Iterator[Any]:
    for part in _alternatives(annotation):
        if get_origin(part) is tuple:
            yield from _leaves(get_args(part)[0])
        else:
            yield part


def _describe(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    if hasattr(annotation, "__metadata__"):
        return _describe(annotation.__origin__, (*annotation.__metadata__, *metadata))
    metadata = [inner for item in metadata for inner in (getattr(item, "metadata", None) or [item])]
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_describe(part, metadata) for part in get_args(annotation))
    if annotation in (None, types.NoneType):
        return "null"
    if get_origin(annotation) is Literal:
        values = get_args(annotation)
        if len(values) == 1:
            return f"'{values[0]}'"
        return f"one of {', '.join(str(value) for value in values)}"
    if get_origin(annotation) is tuple:
        length = (
            "a list"
            if not any(isinstance(item, MinLen) for item in metadata)
            else "a non-empty list"
        )
        return f"{length}, every item {_describe(get_args(annotation)[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    bounds = [text for item in metadata if (text := _bound(item))] if annotation is not str else []
    return " ".join([words.get(annotation, str(annotation)), " and ".join(bounds)]).strip()


def _bound(item: object) -> str:
    match item:
        case Gt(gt=limit):
            return f"above {limit}"
        case Ge(ge=limit):
            return f"of at least {limit}"
        case Lt(lt=limit):
            return f"below {limit}"
        case Le(le=limit):
            return f"of at most {limit}"
    return ""


def _example(annotation: Any) -> str:
    first = next(_leaves(annotation))
    if get_origin(first) is Literal:
        return str(get_args(first)[0])
    return {int: "10", float: "0.5", bool: "true"}.get(first, "NAME")
