"""Settings of ``worldrl data select``."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

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
