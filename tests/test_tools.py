"""The scripts of tools/ at least start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.mark.parametrize("name", ["bench", "bench_baselines", "make_datasets", "records"])
def test_scripts_explain_themselves(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(TOOLS / f"{name}.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
