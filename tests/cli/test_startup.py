"""Help, recipes and wrong settings answer before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "torch", "lightning", "gymnasium", "h5py", "optuna", "mujoco", "minari", "ale_py", "scipy",
    "tensorboard", "numpy",
}  # fmt: skip

PROBE = """
import sys
from worldrl.cli.main import main
code = main(sys.argv[1:])
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print("loaded", *loaded, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["doctor", "--help"], 0),
        (["data", "--help"], 0),
        (["data", "label", "--help"], 0),
        (["data", "label", "x.hdf5", "--with", "y", "--out", "z.hdf5", "--hidden", "a"], 2),
        (["pretrain", "--help"], 0),
        (["train", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["resume", "--help"], 0),
        (["study", "--help"], 0),
        (["study", "edge-of-reach", "--help"], 0),
        (["study", "edge-of-reach", "--seeds", "0"], 2),
        (["study", "true-dynamics", "Hopper-v5", "dataset=x", "seed=1"], 2),
        (["config", "--help"], 0),
        (["config", "list"], 0),
        (["config", "show", "mopo"], 0),
        (["config", "explain"], 0),
        (["config", "explain", "learner.critc"], 2),
        (["config", "show", "ensemble", "--json"], 0),
        (["config", "show", "mopo", "dataset=d4rl:hopper-medium-v2", "learner.init=edac"], 0),
        (["config", "show", "mopo", "learner.hiden=3"], 2),
        (["train"], 2),
        (["train", "mopp"], 2),
        (["train", "mopo"], 2),
        (["train", "mopo", "dataset=x", "seed=a"], 2),
        (["train", "mopo", "dataset=x", "device=gpu"], 2),
        (["train", "mopo", "dataset=x", "termination.task=hoper"], 2),
        (["pretrain", "ensemble", "dataset=x", "modell.hidden=3"], 2),
        (["no-such-command"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_answers_without_heavy_imports(arguments: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    loaded = done.stderr.strip().splitlines()[-1].split()
    assert loaded[0] == "loaded"
    assert not HEAVY & set(loaded)
    assert "Traceback" not in done.stderr
