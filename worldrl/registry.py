"""Names to implementations, imported only when asked for, so that listing names costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar, cast

from worldrl.errors import ConfigError, suggestion

T = TypeVar("T")


class Registry(Generic[T]):
    """A fixed table of ``name -> "package.module:attribute"``."""

    def __init__(self, noun: str, entries: Mapping[str, str]) -> None:
        self.noun = noun
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> T:
        """The implementation called ``name``.

        Raises:
            ConfigError: the name is unknown; the message lists the known ones.
        """
        if name not in self._entries:
            raise ConfigError(
                f"unknown {self.noun} '{name}'{suggestion(name, self._entries)}; "
                f"known: {', '.join(self._entries)}"
            )
        module, _, attribute = self._entries[name].partition(":")
        return cast(T, getattr(importlib.import_module(module), attribute))

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
