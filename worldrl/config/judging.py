"""Settings of judging policies without the real system, and of keeping those that are judged better
(Uni-O4: Lei et al. 2023, arXiv 2311.03351)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from worldrl.config.base import Settings
from worldrl.config.imagination import Measure
from worldrl.config.learners import Discount


class JudgeSettings(Settings):
    """How a policy is judged: it walks in every world of a model, and critics that were fitted to
    the data value its way."""

    horizon: PositiveInt = 100
    """Steps of a walk at most."""
    num_starts: PositiveInt = 512
    """Logged observations that walks start from."""
    penalty: Measure = "ensemble_std"
    """What tells that a walk leaves the data."""
    values: str | None = None
    """A run of the learner iql on the same data, a member a world of the model: its critics judge.
    Trained there first where there is none; None: in the folder of the run."""
    value_updates: PositiveInt = 20_000
    """Of critics that are trained first."""
    expectile: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Of those; 0.5 values the policy that the data was recorded with (SARSA)."""
    discount: Discount = 0.99
    """Of those."""


class NoAcceptance(Settings):
    """A run's policy is its last one."""

    kind: Literal["none"] = "none"


class JudgedAcceptance(JudgeSettings):
    """A run's policy is the last one that was judged better than the one accepted before."""

    kind: Literal["ope"] = "ope"
    every: PositiveInt = 5_000
    """Updates between candidates; the last update's policy is one as well."""


Acceptance = Annotated[NoAcceptance | JudgedAcceptance, Field(discriminator="kind")]
