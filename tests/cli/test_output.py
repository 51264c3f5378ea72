from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from worldrl.cli.output import json_only, print_json, print_table


def test_json_is_one_line_and_strict(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(
        {
            "path": Path("runs/x"),
            "nan": float("nan"),
            "nested": {"inf": [float("inf"), 1.5]},
            "numpy": np.float32(0.5),
            "array": np.array([1.0, np.nan]),
            "tensor": torch.tensor([[1.0, 2.0]]),
            "text": "two\nlines",
            "none": None,
        }
    )
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    assert json.loads(text) == {
        "path": "runs/x",
        "nan": None,
        "nested": {"inf": [None, 1.5]},
        "numpy": 0.5,
        "array": [1.0, None],
        "tensor": [[1.0, 2.0]],
        "text": "two\nlines",
        "none": None,
    }


def test_what_is_printed_meanwhile_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with json_only(True):
        print("progress")
    with json_only(False):
        print("answer")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("answer\n", "progress\n")


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table({"steps": 1000, "return": -150.123456789, "run": Path("runs/x")})
    assert capsys.readouterr().out == "steps   1000\nreturn  -150.123\nrun     runs/x\n"
    print_table({"loss": [0.123456789, 2.0], "one": [1.5]})
    assert capsys.readouterr().out == "loss  0.123457, 2\none   1.5\n"
    print_table({})
    assert capsys.readouterr().out == ""
