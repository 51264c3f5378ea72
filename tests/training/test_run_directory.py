"""The run directory: made once, locked by one process, read by any, its records checked."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from worldrl.config.schema import DatasetSettings, PretrainConfig, TrainConfig
from worldrl.errors import RunError
from worldrl.strict_json import finite
from worldrl.training.files import size, write_json
from worldrl.training.lock import Lock
from worldrl.training.run_directory import (
    DatasetRecord,
    RunDirectory,
    Status,
    run_name,
)

CONFIG = TrainConfig(dataset=DatasetSettings(source="some/where/hopper.hdf5"), num_updates=123)


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("config", [CONFIG, PretrainConfig(dataset=CONFIG.dataset, seed=4)])
def test_create_and_open(tmp_path: Path, config: TrainConfig | PretrainConfig) -> None:
    path = tmp_path / "new" / "run"
    with RunDirectory.create(path, config) as run:
        assert run.path == path
        assert run.read_config() == config
    assert RunDirectory.open(path).read_config() == config
    with RunDirectory.open(path, exclusive=True) as run:
        assert run.checkpoints.is_dir()
    # A way to run the same again: the file is a recipe.
    assert run.config_file.read_text().startswith(f"stage: {config.stage}")


def test_created_in_an_empty_directory(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, CONFIG).close()
    assert RunDirectory.open(tmp_path).read_config() == CONFIG


def test_an_occupied_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"already holds files.*worldrl resume "):
        RunDirectory.create(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match="is not a directory"):
        RunDirectory.create(tmp_path / "thesis.tex", CONFIG)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        RunDirectory.create(tmp_path / "file" / "run", CONFIG)


def test_create_that_failed_can_be_tried_again(tmp_path: Path, monkeypatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("worldrl.training.run_directory.replace_text", full)
        with pytest.raises(RunError, match="No space left on device"):
            RunDirectory.create(tmp_path / "run", CONFIG)
    RunDirectory.create(tmp_path / "run", CONFIG).close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no run directory at"),
        (lambda path: path.write_text(""), "is a file"),
        (lambda path: path.mkdir(), "holds no config.yaml"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "run")
    with pytest.raises(RunError, match=re.escape(message)):
        RunDirectory.open(tmp_path / "run", exclusive=True)


@pytest.mark.parametrize(
    ("source", "recipe", "expected"),
    [
        ("d4rl:hopper-medium-v2", "mopo", "mopo-hopper-medium-v2"),
        ("/data/My Robot.2.hdf5", "", "train-My-Robot.2"),
        ("minari:mujoco/hopper/medium-v0", "mopo", "mopo-mujoco-hopper-medium-v0"),
        ("../..", "mopo", "mopo-data"),
        ("C:\\data\\log.npz", "mopo", "mopo-data-log"),
    ],
)
def test_names_say_what_ran(
    tmp_path: Path, monkeypatch, source: str, recipe: str, expected: str
) -> None:
    config = TrainConfig(dataset=DatasetSettings(source=source), recipe=recipe)
    assert re.fullmatch(re.escape(expected) + r"-\d{8}-\d{6}-[0-9a-f]{6}", run_name(config))
    monkeypatch.chdir(tmp_path)
    with RunDirectory.create(None, config) as one, RunDirectory.create(None, config) as other:
        assert one.path != other.path
        assert one.path.parent == Path("runs")


def test_opening_needs_no_torch(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, CONFIG).close()
    script = """
        import sys
        from worldrl.training import environment, metrics, progress, signals
        from worldrl.training.run_directory import RunDirectory
        RunDirectory.open(sys.argv[1]).read_config()
        print([name for name in ("torch", "lightning", "rich", "gymnasium") if name in sys.modules])
    """
    out, error = python(script, tmp_path).communicate(timeout=60)
    assert out.strip() == "[]", error


# --- one process at a time ------------------------------------------------------------------------

HOLD = """
    import sys
    from worldrl.training.run_directory import RunDirectory
    run = RunDirectory.open(sys.argv[1], exclusive=True)
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, CONFIG).close()
    holder = python(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(RunError, match=rf"in use by another process \(pid {holder.pid} since \d"):
        RunDirectory.open(tmp_path, exclusive=True)
    assert RunError.exit_code == 2
    assert RunDirectory.open(tmp_path).read_config() == CONFIG  # reading needs no lock
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=60)
    RunDirectory.open(tmp_path, exclusive=True).close()


def test_one_process_locks_once_and_can_lock_again(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, CONFIG)
    with pytest.raises(RunError, match="in use by"):
        RunDirectory.open(tmp_path, exclusive=True)
    run.close()
    run.close()
    RunDirectory.open(tmp_path, exclusive=True).close()


@pytest.mark.parametrize("closes", ["closes", "forgets"])
def test_a_forked_worker_that_outlives_its_parent_holds_no_lock(tmp_path: Path, closes) -> None:
    RunDirectory.create(tmp_path, CONFIG).close()
    script = """
        import os, sys
        from worldrl.training.run_directory import RunDirectory
        run = RunDirectory.open(sys.argv[1], exclusive=True)
        worker = os.fork()
        if worker == 0:
            if sys.argv[2] == "closes":
                run.close()  # must not let go of the parent's lock either
            print("forked", flush=True)
            os.read(0, 1)
            os._exit(0)
        os.waitpid(worker, 0)
    """
    parent = python(script, tmp_path, closes)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "forked\n"
    with pytest.raises(RunError, match=rf"pid {parent.pid}"):
        RunDirectory.open(tmp_path, exclusive=True)
    parent.send_signal(signal.SIGKILL)
    parent.wait(timeout=60)
    try:
        RunDirectory.open(tmp_path, exclusive=True).close()
    finally:
        parent.communicate(timeout=60)  # ends the worker, which waits for this end of file


def test_two_that_create_at_once(tmp_path: Path) -> None:
    script = """
        import sys
        from worldrl.config.schema import DatasetSettings, TrainConfig
        from worldrl.errors import RunError
        from worldrl.training.run_directory import RunDirectory
        config = TrainConfig(dataset=DatasetSettings(source="x.hdf5"))
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            run = RunDirectory.create(sys.argv[1], config)
            print("created", flush=True)
        except RunError as error:
            print("refused", flush=True)
        sys.stdin.read()
    """
    processes = [python(script, tmp_path / "run") for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.stdout.readline().strip() for process in processes if process.stdout]
    for process in processes:
        process.communicate(timeout=60)
    assert sorted(results) == ["created", "refused", "refused"]


def test_a_run_made_between_the_check_and_the_lock_is_kept(tmp_path: Path, monkeypatch) -> None:
    acquire = Lock.acquire

    def other_process_was_first(directory: Path) -> Lock:
        (directory / "config.yaml").write_text("theirs")
        return acquire(directory)

    monkeypatch.setattr(Lock, "acquire", other_process_was_first)
    with pytest.raises(RunError, match="already holds files"):
        RunDirectory.create(tmp_path, CONFIG)
    assert (tmp_path / "config.yaml").read_text() == "theirs"


# --- records --------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", CONFIG)


def test_records_round_trip(run: RunDirectory) -> None:
    status = Status("finished", "train", 10, 10, 1.5, {"return_mean": [1.0, float("nan")]})
    run.write_status(status)
    read = run.read_status()
    assert read == Status("finished", "train", 10, 10, 1.5, {"return_mean": [1.0, None]})
    record = DatasetRecord("d4rl:hopper-medium-v2", "0" * 64, {"transitions": 3})
    run.write_dataset(record)
    assert run.read_dataset() == record
    run.write_environment({"versions": {"torch": "2.11"}})
    assert run.read_environment()["versions"] == {"torch": "2.11"}
    assert not [path for path in run.path.iterdir() if ".tmp-" in path.name]


@pytest.mark.parametrize("name", ["status", "dataset", "environment"])
def test_newer_damaged_and_missing_records(run: RunDirectory, name: str) -> None:
    read = getattr(run, f"read_{name}")
    file = run.path / f"{name}.json"
    with pytest.raises(RunError, match=f"{name}.json is missing"):
        read()
    file.write_text(json.dumps({"schema_version": 2}))
    with pytest.raises(RunError, match=r"newer worldrl.*Upgrade"):
        read()
    for text in ("", "{", "[1]", "\x00" * 10, '{"schema_version": 0}'):
        file.write_text(text)
        with pytest.raises(RunError, match=rf"{name}\.json is damaged"):
            read()
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match=rf"{name}\.json cannot be read"):
        read()


@pytest.mark.parametrize("name", ["status", "dataset"])
def test_records_without_their_keys(run: RunDirectory, name: str) -> None:
    (run.path / f"{name}.json").write_text('{"schema_version": 1}')
    with pytest.raises(RunError, match="damaged: it holds no"):
        getattr(run, f"read_{name}")()


def test_an_unknown_state(run: RunDirectory) -> None:
    run.write_status(Status("running", "train", 0, None, 0.0))
    text = run.status_file.read_text()
    run.status_file.write_text(text.replace('"running"', '"dreaming"'))
    with pytest.raises(RunError, match="unknown state 'dreaming'"):
        run.read_status()


def test_a_newer_run_is_refused_before_anything_is_touched(run: RunDirectory) -> None:
    run.status_file.write_text('{"schema_version": 99}')
    run.close()
    run.checkpoints.rmdir()
    with pytest.raises(RunError, match="newer worldrl"):
        RunDirectory.open(run.path, exclusive=True)
    assert not run.checkpoints.exists()
    with pytest.raises(RunError, match="newer worldrl"):  # and the lock is free again
        RunDirectory.open(run.path, exclusive=True)


def test_a_failed_write_keeps_the_old_record(run: RunDirectory, monkeypatch) -> None:
    run.write_status(Status("running", "train", 1, 2, 0.0))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"status\.json: No space left on device \(.* free"):
        run.write_status(Status("running", "train", 2, 2, 0.0))
    assert run.read_status().step == 1
    assert not [path for path in run.path.iterdir() if ".tmp-" in path.name]


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": float("inf"), "b": (1, {"c": float("nan")})})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1, {"c": None}]}
    assert finite({1: True}) == {"1": True}


def test_sizes_for_people() -> None:
    assert [size(count) for count in (0, 999, 1000, 12_345_678, 10**13)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "12.3 MB",
        "10.0 TB",
    ]
