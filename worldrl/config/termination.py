"""Settings of where imagined episodes end."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import (
    model_validator,
)

from worldrl.config.base import Settings

TerminationTask = Literal[
    "never",
    "halfcheetah",
    "hopper",
    "walker2d",
    "ant",
    "humanoid",
    "swimmer",
    "humanoidstandup",
    "reacher",
    "pusher",
    "invertedpendulum",
    "inverteddoublependulum",
    "pendulum",
    "cartpole",
    "maze2d",
    "antmaze-umaze",
    "antmaze-medium",
    "antmaze-large",
    "adroit-pen",
    "adroit-door",
    "adroit-hammer",
    "adroit-relocate",
    "kitchen",
    "neorl-halfcheetah",
    "neorl-hopper",
    "neorl-walker2d",
]
"""The rules of worldrl.imagination.termination."""


class TerminationSettings(Settings):
    """Where imagined episodes end."""

    kind: Literal["auto", "formula", "learned", "never"] = "auto"
    """auto: the formula of a known task; else never where the data holds no terminal row; else
    learned."""
    task: TerminationTask | None = None
    """Whose rule holds; None derives it from the environment id."""

    @model_validator(mode="after")
    def _task_is_used(self) -> Self:
        if self.task is not None and self.kind in ("learned", "never"):
            raise ValueError(
                f"task is {self.task} and kind is {self.kind}, which uses no formula. Leave one out"
            )
        return self
