"""Policy learners: each improves a policy from batches, wherever they came from."""

from worldrl.registry import Registry
from worldrl.types import Learner

#: ``kind -> function (settings, observation_size, action_size, num_updates) -> Learner``
LEARNERS: Registry[type[Learner]] = Registry(
    "learner",
    {
        "sac": "worldrl.learners.sac:SAC",
        "bc": "worldrl.learners.bc:BehaviourCloning",
    },
)
