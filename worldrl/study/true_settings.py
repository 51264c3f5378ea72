"""Settings of the true-dynamics study's arms: the recipe mbpo, sized for minutes."""

from __future__ import annotations

from collections.abc import Sequence

from worldrl.config.loader import load_config
from worldrl.config.schema import TrainConfig
from worldrl.errors import ConfigError

#: What the study has in place of the recipe's numbers. Networks are without normalisation and
#: rates are those of Sims et al. 2024 (arXiv 2402.12527); rollouts are fewer than theirs.
DEFAULTS = (
    "imagination.horizon=5",
    "imagination.batch_size=1000",
    "imagination.every=500",
    "imagination.clip_range=null",
    "learner.layer_norm=false",
    "learner.target_rate=0.005",
    "learner.actor_learning_rate=3e-4",
    "learner.critic_learning_rate=3e-4",
    "learner.temperature_learning_rate=3e-4",
    "learner.initial_temperature=1.0",
    "learner.entropy_per_action=-1.0",
    "learner.actor_schedule=constant",
    "evaluation.episodes=5",
)
#: What makes an arm.
ARMS: dict[str, tuple[str, ...]] = {
    "base": ("learner.num_critics=2",),
    "ravl": ("learner.num_critics=10", "learner.diversity=1.0", "learner.init=edac"),
}
#: Settings that the command line has options for, or that the study decides.
DECIDED = {
    "population": "use --seeds",
    "seed": "use --seed",
    "num_updates": "use --updates",
    "learner.num_critics": "it tells the arms apart",
    "learner.init": "it tells the arms apart",
    "guard": "guards would stop what the study is to show",
    "acceptance": "all policies are scored",
    "eval_every": "the study measures at ten times of its own",
    "log_every": "the study measures at ten times of its own",
    "checkpoint_every": "a study keeps none",
    "keep_checkpoints": "a study keeps none",
    "tensorboard": "a study writes a page of its own",
    "evaluation.env_id": "it is ENV_ID",
    "model": "the simulator is the model",
}


def arm_configs(
    env_id: str, overrides: Sequence[str], seeds: int, updates: int, seed: int
) -> dict[str, TrainConfig]:
    """One configuration an arm.

    Raises:
        ConfigError: a setting is wrong, or one that the study decides.
    """
    given = {override.partition("=")[0] for override in overrides}
    for key, why in DECIDED.items():
        if found := [name for name in given if name == key or name.startswith(f"{key}.")]:
            raise ConfigError(f"{found[0]} cannot be set here: {why}")
    common = [default for default in DEFAULTS if default.partition("=")[0] not in given]
    common += overrides
    common += [f"num_updates={updates}", f"population={seeds}", f"seed={seed}"]
    common += ["guard.enabled=false", f"evaluation.env_id={env_id}"]
    common += ["evaluation.allow_other_environment=true"]
    configs: dict[str, TrainConfig] = {}
    for name, own in ARMS.items():
        config = load_config("train", "mbpo", [*common, *own])
        assert isinstance(config, TrainConfig)
        if config.learner.kind != "sac" or config.imagination.kind != "branched":
            raise ConfigError(
                "the study's arms are SAC on branched rollouts: leave learner.kind and "
                "imagination.kind as they are"
            )
        if config.learner.encoder.kind != "none":
            raise ConfigError(
                f"learner.encoder is {config.learner.encoder.kind}, which asks a learned model, "
                "and here the simulator is the model: leave it out"
            )
        configs[name] = config
    return configs
