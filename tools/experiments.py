"""What tools/records can run: experiments, cells of the table of methods, studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

import worldrl

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
EPISODES = 10

#: Records of these prefixes get tables of their own.
CHOICE = "choice-"
METHODS = "methods/"
STUDIES = "studies/"
OFFLINE = "offline/"


def load_experiments() -> dict[str, Any]:
    """Those of tools/experiments.yaml, and the cells of tools/methods.yaml."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "tools" / "experiments.yaml").read_text())
    return found | cells(load_methods())


def cells(methods: dict[str, Any]) -> dict[str, Any]:
    """Every recipe on every dataset, in the order of the file, as experiments."""
    found = {}
    for recipe, own in methods["recipes"].items():
        own = dict(own or {})
        own_model = own.pop("own_model", False)
        kind = worldrl.load_config("train", recipe, {"dataset": "x"}).imagination.kind
        for name, data in methods["datasets"].items():
            shared = kind not in ("none", "simulator") and not own_model
            found[f"{METHODS}{name}-{recipe}"] = {
                "recipe": recipe,
                "dataset": data["file"],
                "overrides": {**methods["common"], **data["budget"], **own},
                **({"model": {"name": name, "settings": methods["model"]}} if shared else {}),
            }
    return found


def load_studies() -> dict[str, Any]:
    """Those of tools/studies.yaml."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "tools" / "studies.yaml").read_text())
    return found


def load_methods() -> dict[str, Any]:
    """The table of methods: tools/methods.yaml."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "tools" / "methods.yaml").read_text())
    return found
