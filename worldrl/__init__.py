"""worldrl: learn a world from logged data, train policies inside it."""

from pathlib import Path as _Path
from typing import Any as _Any

# In a checkout, models/, planners/ and configs/ stand beside this folder; wheels place them inside.
if (_Path(__file__).parents[1] / "pyproject.toml").is_file():
    __path__.append(str(_Path(__file__).parents[1]))

__version__ = "0.1.0"
__all__ = [
    "evaluate",
    "evaluate_offline",
    "finetune",
    "join",
    "label",
    "load_config",
    "load_dataset",
    "load_policy",
    "pretrain",
    "resume",
    "select",
    "study_edge_of_reach",
    "study_true_dynamics",
    "train",
]


def __getattr__(name: str) -> _Any:
    """The API of :mod:`worldrl.api`, which imports torch, when it is asked for."""
    if name in __all__:
        import worldrl.api

        return getattr(worldrl.api, name)
    raise AttributeError(f"module 'worldrl' has no attribute '{name}'")
