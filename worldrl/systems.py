"""What runs build that is not learned: environments to score and learn in, and simulators."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from worldrl.config.schema import FinetuneConfig, TrainConfig
from worldrl.data.dataset import Dataset
from worldrl.errors import ConfigError, EnvironmentSetupError
from worldrl.imagination.simulator import Stepper, simulator_stepper
from worldrl.training.systems import Systems
from worldrl.training.train import Scorer
from worldrl.types import Policy

if TYPE_CHECKING:
    import gymnasium

    from worldrl.envs import Scoring
    from worldrl.evaluation.result import Result


def systems() -> Systems:
    """What runs build."""
    return Systems(scorer, environments, simulator)


def environments(settings: FinetuneConfig, recorded: str | None) -> Callable[[], gymnasium.Env]:
    """What builds the environments that policies are fine-tuned in."""
    factory = online_scoring(settings, recorded).factory
    factory().close()  # says now, not after hours, what is missing
    return factory


def online_scoring(settings: FinetuneConfig, recorded: str | None) -> Scoring:
    """The environment to fine-tune and to score in.

    Raises:
        EnvironmentSetupError: none is named, it cannot be built, or it is another one than the
            data's and ``settings`` do not allow that.
    """
    if recorded is None and settings.env_id is None:
        raise EnvironmentSetupError(
            "the data does not name the environment that recorded it. Say where to go on: "
            "env_id=Hopper-v5, for example."
        )
    scoring = scoring_of(recorded, settings.env_id, True)
    if scoring.other_environment and not settings.allow_other_environment:
        raise EnvironmentSetupError(
            f"the data was recorded in '{scoring.recorded_env_id}', and '{scoring.env_id}' is "
            "another environment. Set allow_other_environment=true to fine-tune and score there; "
            "results are marked."
        )
    return scoring


def scorer(settings: TrainConfig | FinetuneConfig, recorded: str | None) -> Scorer:
    """Scores policies during training as ``settings.evaluation`` says."""
    evaluation = settings.evaluation
    if isinstance(settings, FinetuneConfig):
        scoring = online_scoring(settings, recorded)
    else:
        own = settings.evaluation
        scoring = scoring_of(recorded, own.env_id, own.allow_other_environment)
    scoring.factory().close()  # says now, not after hours, what is missing

    def score(
        policy: Policy, population: int, action_low: Any, action_high: Any, device: Any
    ) -> dict[str, Any]:
        bounds = (action_low, action_high)
        result = score_policy(
            policy, population, bounds, scoring, evaluation.episodes, evaluation.seed, device
        )
        return result.to_json()

    return score


def simulator(settings: TrainConfig, dataset: Dataset) -> Stepper:
    """Steps the simulator of ``settings.imagination``, from states as the data shows them.

    Raises:
        EnvironmentSetupError: it cannot be built, or its state cannot be set.
    """
    from worldrl.envs import make_altered

    own, recorded = settings.imagination, dataset.metadata.env_id
    assert own.kind == "simulator"
    if own.env_id is None and recorded is None:
        raise ConfigError(
            "the data does not name an environment, so there is no simulator to imagine in. Set "
            "imagination.env_id"
        )
    altered_by = own.gravity, own.friction, own.damping
    if own.env_id in (None, recorded) and all(one == 1 for one in altered_by):
        print(
            f"worldrl: warning: the simulator is {recorded} itself, so this run learns in the real "
            "system. Set imagination.gravity, friction or damping, or imagination.env_id, for one "
            "that is not exact",
            file=sys.stderr,
        )
    # It need not be the one that recorded the data: the learner holds it against the data.
    build = scoring_of(recorded, own.env_id, allow_other=True).factory
    altered = partial(make_altered, build, *altered_by)
    rows = dataset.transitions()
    return simulator_stepper(altered, rows.observation, rows.action)


def scoring_of(recorded: str | None, requested: str | None, allow_other: bool) -> Scoring:
    """The environment that policies of some data are scored in, see
    :func:`worldrl.envs.scoring_environment`."""
    from worldrl.envs import scoring_environment

    return scoring_environment(recorded, requested, allow_other)


def score_policy(
    policy: Policy,
    population: int,
    bounds: tuple[NDArray[Any], NDArray[Any]],
    scoring: Scoring,
    episodes: int,
    seed: int,
    device: str | torch.device,
) -> Result:
    """Play deterministic episodes with every member."""
    from worldrl.envs import reference_scores
    from worldrl.evaluation.result import evaluation_result
    from worldrl.evaluation.returns import evaluate_returns

    played = evaluate_returns(
        scoring.factory,
        policy,
        episodes,
        seed,
        population,
        action_low=bounds[0],
        action_high=bounds[1],
        device=device,
    )
    return evaluation_result(
        played,
        env_id=scoring.env_id,
        seed=seed,
        recorded_env_id=scoring.recorded_env_id,
        reference=reference_scores(scoring.env_id),
    )
