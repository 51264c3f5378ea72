"""Settings that may differ between the members of a population: one value, or a list of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, TypeVar, get_args

from annotated_types import MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

T = TypeVar("T", int, float)


class _MemberAxis:
    """Marks a setting whose list has one value a member."""


_MARK = _MemberAxis()

PerMember = Annotated[T | Annotated[tuple[T, ...], MinLen(1)], _MARK]
"""``PerMember[float]``: one number for all members, or a list with one for each."""


def per_member(value: T | tuple[T, ...], population: int) -> tuple[T, ...]:
    """One value for each of ``population`` members."""
    return value if isinstance(value, tuple) else (value,) * population


def may_differ(field: FieldInfo) -> bool:
    """Whether members may have their own values of a setting."""
    parts = [*field.metadata, field.annotation, *get_args(field.annotation)]
    return any(item is _MARK or _MARK in getattr(item, "__metadata__", ()) for item in parts)


def wrong_lengths(settings: BaseModel, population: int, prefix: str = "") -> Iterator[str]:
    """Settings whose list does not have one value a member, in words."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from wrong_lengths(value, population, f"{prefix}{name}.")
        elif may_differ(field) and isinstance(value, tuple) and len(value) != population:
            yield (
                f"{prefix}{name} lists {len(value)} values, and population is {population}: give "
                "one value for all members, or one for each"
            )
