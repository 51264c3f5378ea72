"""Environments to score in, to go on learning in, and to imagine in as simulators; and reference
scores. Imported by the command line and ``worldrl.api`` alone."""

from worldrl.envs.build import make, make_altered
from worldrl.envs.reference import reference_scores
from worldrl.envs.scoring import Scoring, scoring_environment
from worldrl.tasks import parse

__all__ = [
    "Scoring",
    "make",
    "make_altered",
    "parse",
    "reference_scores",
    "scoring_environment",
]
