"""The record of what a run ran on can be shared, and the numerical settings hold."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

from worldrl.training import environment


def test_the_record_says_what_matters_and_nothing_private() -> None:
    record = environment.environment_record("cpu")
    text = json.dumps(record)
    assert record["versions"]["python"] == platform.python_version()
    assert record["versions"]["torch"]
    assert record["versions"]["worldrl"]
    assert record["cpu"]["threads"] >= 1
    assert record["device"]["type"] == "cpu"
    assert record["device"]["name"]
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    if len(platform.node()) > 3:
        assert platform.node() not in text
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text


def test_the_revision_of_a_checkout(tmp_path: Path) -> None:
    assert environment.git_revision(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert environment.git_revision(tmp_path) is None  # nothing committed
    (tmp_path / "worldrl").mkdir()
    for name in "worldrl/code.py", "record.json":
        (tmp_path / name).write_text("1")
        subprocess.run([*git, "add", name], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    clean = environment.git_revision(tmp_path)
    assert clean is not None
    assert len(clean["revision"]) == 40
    assert clean["modified"] is False
    (tmp_path / "record.json").write_text("2")
    assert environment.git_revision(tmp_path) == clean
    (tmp_path / "worldrl/code.py").write_text("2")
    changed = environment.git_revision(tmp_path)
    assert changed is not None
    assert changed["modified"] is True
    # Inside another project's checkout, as a virtual environment often is.
    (tmp_path / "site-packages").mkdir()
    assert environment.git_revision(tmp_path / "site-packages") is None


def in_a_fresh_process(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_determinism_is_set_and_told() -> None:
    in_a_fresh_process("""
        import json, torch
        from worldrl.training.environment import set_determinism
        held = set_determinism(2)
        assert json.loads(json.dumps(held._asdict())) == {
            "threads": 2, "deterministic_algorithms": True,
            "matmul_precision": "highest", "flush_denormal": True,
        }
        assert torch.get_num_threads() == 2
        assert set_determinism(None) == held
        assert set_determinism(None, "cuda").deterministic_algorithms is False
        small = torch.full((1 << 20,), 1e-39)
        assert (small * 1.0).view(torch.int32).count_nonzero() == 0
    """)


def test_denormals_are_flushed_in_every_thread_or_in_none() -> None:
    in_a_fresh_process("""
        import torch
        from worldrl.training.environment import set_determinism
        small = torch.full((1 << 20,), 1e-39)
        torch.set_num_threads(2)
        small * 1.0  # starts a worker that does not flush
        assert set_determinism(2).flush_denormal is False
        assert (small * 1.0).view(torch.int32).count_nonzero() == small.numel()
    """)


def test_settings_are_restored_after_a_run() -> None:
    in_a_fresh_process("""
        import torch
        from worldrl.training.environment import set_determinism, settings_restored
        before = torch.get_num_threads()
        small = torch.full((64,), 1e-39)
        with settings_restored():
            assert set_determinism(before + 1).flush_denormal
            assert torch.get_num_threads() == before + 1
            assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == before
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert (small * 1.0).view(torch.int32).count_nonzero() == 64
    """)


def test_a_run_that_began_without_flushing_goes_on_so() -> None:
    in_a_fresh_process("""
        import torch
        from worldrl.training.environment import set_determinism
        assert set_determinism(2, flush_denormal=False).flush_denormal is False
        small = torch.full((1 << 20,), 1e-39)
        assert (small * 1.0).view(torch.int32).count_nonzero() == small.numel()
    """)
