"""Policy learners: each improves a policy from batches, wherever they came from."""

from collections.abc import Callable
from typing import Any, TypeAlias

from worldrl.registry import Registry
from worldrl.types import Learner

#: ``(settings of its kind, observation_size, action_size, num_updates) -> Learner``
LearnerFactory: TypeAlias = Callable[[Any, int, int, int], Learner]

LEARNERS: Registry[LearnerFactory] = Registry(
    "learner",
    {
        "sac": "worldrl.learners.sac:SAC",
        "cql": "worldrl.learners.cql:CQL",
        "mobile": "worldrl.learners.mobile:MOBILE",
        "bc": "worldrl.learners.bc:BehaviourCloning",
        "iql": "worldrl.learners.iql:IQL",
        "td3bc": "worldrl.learners.td3bc:td3bc",
        "prdc": "worldrl.learners.prdc:prdc",
        "rebrac": "worldrl.learners.rebrac:rebrac",
        "h2o": "worldrl.learners.h2o:H2O",
    },
)
