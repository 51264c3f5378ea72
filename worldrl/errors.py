"""Errors that a user can act on: what is wrong, where, why, and what to do.

The command line prints them as one paragraph, without a traceback, and exits with ``exit_code``.
Anything else that escapes is a defect of worldrl and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WorldRLError(Exception):
    """Base of every error worldrl raises on purpose."""

    exit_code = 2


class ConfigError(WorldRLError):
    """A setting, recipe or command-line argument is wrong."""


class DataError(WorldRLError):
    """A dataset cannot be read, or holds what a dataset must not hold."""


class ModelError(WorldRLError):
    """A learned model does not fit what it is asked to do."""


class RunError(WorldRLError):
    """A run directory is missing, damaged, locked or of another schema."""


class EnvironmentSetupError(WorldRLError):
    """An evaluation environment cannot be built or does not fit the policy or the dataset."""


def suggestion(name: str, choices: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest choice, or an empty string."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
