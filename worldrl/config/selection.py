"""Settings of ``worldrl data select``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from worldrl.config.base import Settings


class SelectSettings(Settings):
    """Which rows stand for a dataset."""

    num: PositiveInt
    """Rows."""
    by: Literal["policy", "random", "return"] = "policy"
    """policy: nearest to where the run's policy goes in its world model (after OER: Gai et al.
    2023, arXiv 2305.13804). random: any. return: whole episodes, the best ones."""
    member: NonNegativeInt = 0
    """Of the run, whose policy it is."""
    horizon: PositiveInt = 200
    """Steps of the policy's walks at most, from logged starts of episodes."""
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _is_used(self) -> Self:
        walks = [name for name in ("member", "horizon") if _given(self, name)]
        unused = walks if self.by != "policy" else []
        unused += ["seed"] if self.by == "return" and _given(self, "seed") else []
        if unused:
            raise ValueError(
                f"{' and '.join(unused)} would be unused: by is {self.by}. Leave it out"
            )
        return self


def _given(settings: SelectSettings, name: str) -> bool:
    return bool(getattr(settings, name) != SelectSettings.model_fields[name].default)
