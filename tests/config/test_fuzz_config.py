"""Whatever a user writes, the answer is a configuration or one paragraph that explains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from worldrl.config.fields import walk
from worldrl.config.loader import dump_config, load_config
from worldrl.config.schema import TrainConfig
from worldrl.errors import ConfigError

KEYS = [".".join(path) for path in walk(TrainConfig)]
WORDS = [
    "dataset",
    "model",
    "imagination",
    "learner",
    "tasks",
    "recipe",
    "stage",
    "kind",
    "penalty",
]
key = st.sampled_from(KEYS) | st.sampled_from(WORDS) | st.text(max_size=12)
value = (
    st.sampled_from(
        ["", "null", "true", "1", "-1", "0.5", "1e-3", "[1,2]", "{a: 1}", "1,2", "auto"]
    )
    | st.sampled_from(["branched", "none", "sac", "bc", "mopo", ".inf", ".nan", "*a", "&a", "!!x"])
    | st.text(max_size=12)
)
leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary()
tree = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(key, inner, max_size=3),
    max_leaves=8,
)


def check(stage: str, recipe: str, overrides: list[str] | dict[str, Any], file: Path) -> None:
    try:
        config = load_config(stage, recipe, overrides)
    except ConfigError as error:
        assert 0 < len(str(error)) < 5_000  # noqa: PT017 (either outcome is right)
    else:
        file.write_text(dump_config(config), encoding="utf-8")
        assert load_config(stage, str(file)) == config


@given(st.sampled_from(["train", "pretrain"]), st.lists(st.tuples(key, value), max_size=4))
def test_overrides(tmp_path_factory: Any, stage: str, pairs: list[tuple[str, str]]) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    check(stage, "", ["dataset=x", *(f"{name}={text}" for name, text in pairs)], file)


@given(st.lists(st.text(max_size=12), max_size=3), st.text(max_size=12))
def test_arguments(tmp_path_factory: Any, arguments: list[str], recipe: str) -> None:
    check("train", recipe, arguments, tmp_path_factory.getbasetemp() / "fuzz.yaml")


@given(st.dictionaries(key, tree, max_size=4))
def test_python_values(tmp_path_factory: Any, values: dict[str, Any]) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    check("train", "mopo", {"dataset": "x", **values}, file)


@given(st.text() | st.lists(st.tuples(key, value)).map(lambda p: "\n".join(map(": ".join, p))))
def test_files(tmp_path_factory: Any, text: str) -> None:
    recipe = tmp_path_factory.getbasetemp() / "recipe.yaml"
    recipe.write_bytes(text.encode("utf-8", "surrogatepass"))
    check("train", str(recipe), ["dataset=x"], tmp_path_factory.getbasetemp() / "fuzz.yaml")


@given(st.binary())
@settings(max_examples=50)
def test_bytes(tmp_path_factory: Any, data: bytes) -> None:
    recipe = tmp_path_factory.getbasetemp() / "recipe.yaml"
    recipe.write_bytes(data)
    check("train", str(recipe), ["dataset=x"], tmp_path_factory.getbasetemp() / "fuzz.yaml")
