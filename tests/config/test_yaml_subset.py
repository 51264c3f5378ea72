from __future__ import annotations

import math
import string
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from worldrl.config import yaml_subset
from worldrl.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-2.5e+2", -250.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("42", 42),
        ("-7", -7),
        ("300_000", 300_000),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("[1, 2.5, x]", [1, 2.5, "x"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_reads_scalars_as_people_mean_them(text: str, value: object) -> None:
    read = yaml_subset.parse(text, "text")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "010", "1:30", "2024-01-01", "0x10"])
def test_the_traps_of_yaml_1_1_stay_text(text: str) -> None:
    assert yaml_subset.parse(text, "text") == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "line 3.*'a' stands here twice"),
        ("a: {b: 1, b: 2}", "'b' stands here twice"),
        ("a: !!python/object/apply:os.system ['true']", "tags .* are not supported"),
        ("a: !!binary aGk=", "tags .* are not supported"),
        ("a: &x 1\nb: *x", "anchors and aliases"),
        ("&x [*x]", "anchors and aliases"),
        ("1: a", "keys must be plain text"),
        ("? [1]\n: a", "keys must be plain text"),
        ("a: [1", "line 1"),
        ("--- 1\n--- 2", "line 2"),
        ("a: \x00", "not readable as YAML"),
        ("9" * 5000, "not readable as YAML"),
        ("[" * 3000, "nested too deeply|line 1"),
    ],
)
def test_refuses_with_the_place(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)^recipe r.*({says})"):
        yaml_subset.parse(text, "recipe r")


NAMES = st.text(string.ascii_lowercase + "_", min_size=1, max_size=8)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from(
        ["1e-3", "yes", "null", "010", "1:30", "2024-01-01", "*x", "a: b", "#", "-", "="]
    )
)
TREES = st.dictionaries(
    NAMES,
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    ),
    max_size=5,
)


@given(TREES)
def test_dump_reads_back_equal(tree: dict[str, Any]) -> None:
    text = yaml_subset.dump(tree)
    assert yaml_subset.parse(text, "text") == tree


@given(TREES)
def test_other_readers_read_dumped_text_as_text(tree: dict[str, Any]) -> None:
    """What we quote is enough for YAML 1.1 too: no text turns into a date or a boolean there."""
    assert _texts(yaml.safe_load(yaml_subset.dump(tree))) == _texts(tree)


def test_numbers_beyond_the_range_are_infinite_not_errors() -> None:
    assert math.isinf(yaml_subset.parse("1e999", "text"))


def _texts(tree: object) -> list[str]:
    if isinstance(tree, dict):
        return [text for value in tree.values() for text in _texts(value)]
    if isinstance(tree, list):
        return [text for value in tree for text in _texts(value)]
    return [tree] if isinstance(tree, str) else []
