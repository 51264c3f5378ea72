from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from worldrl.cli import doctor
from worldrl.cli.main import main


def test_doctor_measures_this_machine() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("worldrl"), "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"] == (done.returncode == 0)
    assert found["versions"]["torch"]
    assert found["matmul_gflops"]["cpu"]["float32"] > 0.1
    assert found["matmul_gflops"]["cpu"]["bf16"] > 0.1
    assert found["threads"] >= 1
    assert found["disk_free"]["run_gb"] > 0
    assert set(found["checks"]) == {"torch", "mujoco", "ale", "minari"}
    assert found["verdict"].startswith("ready") == found["ok"]


def test_a_broken_simulator_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(env_id: str) -> None:
        raise OSError("libGL.so.1:\n cannot open")

    monkeypatch.setattr(doctor, "_step", broken)
    monkeypatch.setattr(doctor, "_matmul_speed", lambda device: {"float32": 1.0})
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "not ready: mujoco: OSError: libGL.so.1: cannot open" in out


def test_a_missing_package_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("worldrl", "no-such-package"))
    monkeypatch.setattr(doctor, "_step", lambda env_id: None)
    monkeypatch.setattr(doctor, "_matmul_speed", lambda device: {"float32": 1.0})
    found = doctor.examine()
    assert found["problems"] == ["no-such-package is not installed"]
    assert not found["ok"]


def test_little_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_step", lambda env_id: None)
    monkeypatch.setattr(doctor, "_matmul_speed", lambda device: {"float32": 1.0})
    monkeypatch.setattr(doctor, "_free_gb", lambda folder: 0.5)
    found = doctor.examine()
    assert found["ok"]
    assert found["verdict"].startswith("ready, but only 0.5 GB are free")
