"""Checkpoints: whole or not there, whatever happens; damage is noticed; names and pruning."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from worldrl.errors import RunError
from worldrl.training import checkpoint, files
from worldrl.training.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "run")


def make_run(path: Path) -> RunDirectory:
    path.mkdir()
    (path / "config.yaml").write_text("")
    (path / "checkpoints").mkdir()
    return RunDirectory.open(path)


def tensors(value: float, rows: int = 8) -> dict[str, Tensor]:
    return {"actor/weight": torch.full((rows, 4), value), "actor/bias": torch.full((4,), value)}


def save(run: RunDirectory, step: int, name: str | None = None, keep: int = 2) -> Path:
    value = float(step)
    return checkpoint.save(
        run, name or str(step), tensors(value), tensors(value), {"step": step}, keep=keep
    )


def bits(tensor: Tensor) -> list[int]:
    """Every byte, so that NaN equals itself and -0.0 is not 0.0."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).tolist()


def names(run: RunDirectory) -> set[str]:
    return {path.name for path in run.checkpoints.iterdir()}


def last(run: RunDirectory) -> checkpoint.Checkpoint:
    path = checkpoint.last_checkpoint(run)
    assert path is not None
    return checkpoint.load(path)


def test_round_trip_is_exact(run: RunDirectory) -> None:
    base = torch.randn(5, 7, dtype=torch.float64)
    model = {
        "transposed": base.T,
        "row": base[2],
        "same storage": base,
        "expanded": torch.ones(1).expand(3, 2),
        "denormal and not finite": torch.tensor([1e-42, math.inf, -math.inf, math.nan]),
    }
    state = {
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "minus zero": torch.tensor(-0.0),
        "bfloat16": base.bfloat16(),
        "bool": base > 0,
        "bytes": torch.arange(5, dtype=torch.uint8),
        "needs grad": torch.ones(2, requires_grad=True),
    }
    plain = {"step": 7, "best": math.inf, "tenth": 0.1, "names": ["a", None], "deep": {"x": True}}
    checkpoint.save(run, "7", model, state, plain, keep=1)
    loaded = last(run)
    for saved, found in ((model, loaded.model), (state, loaded.state)):
        assert set(found) == set(saved)
        for name, tensor in saved.items():
            assert found[name].dtype == tensor.dtype
            assert found[name].shape == tensor.shape
            assert bits(found[name]) == bits(tensor)
    assert loaded.plain == plain


def test_loaded_tensors_own_aligned_memory(run: RunDirectory) -> None:
    folder = save(run, 1)
    loaded = checkpoint.load(folder)
    shutil.rmtree(folder)
    for tensor in loaded.model.values():
        assert tensor.data_ptr() % 64 == 0
        tensor.add_(1)  # would fault in a mapped file


def test_last_is_relative_so_a_run_can_be_moved(run: RunDirectory, tmp_path: Path) -> None:
    save(run, 1)
    assert os.readlink(run.checkpoints / "last") == "1"
    moved = run.path.rename(tmp_path / "elsewhere")
    assert last(RunDirectory.open(moved)).plain == {"step": 1}
    assert checkpoint.load(moved / "checkpoints" / "last").plain == {"step": 1}


def test_a_copy_without_links_still_resumes(run: RunDirectory, tmp_path: Path) -> None:
    save(run, 1)
    save(run, 2)
    copy = RunDirectory.open(shutil.copytree(run.path, tmp_path / "copy"))  # `last` is a folder
    assert not (copy.checkpoints / "last").is_symlink()
    assert last(copy).plain == {"step": 2}
    save(copy, 3)
    assert os.readlink(copy.checkpoints / "last") == "3"
    (copy.checkpoints / "last").unlink()
    assert last(copy).plain == {"step": 3}


def test_a_copy_of_last_alone_still_resumes(run: RunDirectory) -> None:
    folder = save(run, 1)
    (run.checkpoints / "last").unlink()
    folder.rename(run.checkpoints / "last")
    assert last(run).plain == {"step": 1}
    save(run, 2)
    assert last(run).plain == {"step": 2}
    assert checkpoint.load(run.checkpoints / "last-copied").plain == {"step": 1}


def test_no_checkpoint_yet(run: RunDirectory) -> None:
    assert checkpoint.last_checkpoint(run) is None


def test_keeps_the_newest(run: RunDirectory) -> None:
    for step in (900, 1000, 1100, 1200):
        checkpoint.save(run, str(step), tensors(float(step)), {}, {}, keep=2)
    assert names(run) == {"1100", "1200", "last"}


def test_order_is_the_order_of_saving_not_of_names(run: RunDirectory) -> None:
    for step, name in enumerate(("pretrain-90", "pretrain-100", "train-5")):
        save(run, step, name)
        os.utime(run.checkpoints / name, (1000 - step, 1000 - step))  # a copy loses times
    assert names(run) == {"pretrain-100", "train-5", "last"}


def test_saving_a_name_again_replaces_it(run: RunDirectory) -> None:
    save(run, 1)
    save(run, 2)
    for step, name in ((20, "2"), (10, "1"), (11, "1")):  # what `last` points to, and what not
        save(run, step, name)
        assert last(run).plain == {"step": step}
        assert names(run) == {"1", "2", "last"}
    assert checkpoint.load(run.checkpoints / "2").plain == {"step": 20}


@pytest.mark.parametrize("name", ["", "last", ".hidden", "a/b", ".."])
def test_names_that_cannot_be_are_refused(run: RunDirectory, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        checkpoint.save(run, name, {}, {}, {}, keep=1)


@pytest.mark.parametrize("plain", [{"a": {1: 2}}, {"a": torch.ones(1)}, {"a": [{1, 2}]}])
def test_what_json_would_change_is_refused(run: RunDirectory, plain: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=r"state\.json/plain/a"):
        checkpoint.save(run, "1", {}, {}, plain, keep=1)
    assert names(run) == set()


# --- damage -------------------------------------------------------------------------------------


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def cut(file: Path, position: int) -> None:
    file.write_bytes(file.read_bytes()[:position])


@pytest.mark.parametrize("file", ["model.safetensors", "state.safetensors"])
@pytest.mark.parametrize(
    ("damage", "position"), [(flip, 3), (flip, 20), (flip, -1), (cut, 0), (cut, 5), (cut, -1)]
)
def test_damaged_tensors_are_noticed(run, file, damage, position) -> None:
    save(run, 1)
    damage(save(run, 2) / file, position)
    with pytest.raises(RunError, match=rf"2/{file} is damaged.*ln -sfn 1 ") as error:
        last(run)
    command = str(error.value).split("`")[1]
    assert subprocess.run(command, shell=True).returncode == 0
    assert last(run).plain == {"step": 1}


@pytest.mark.parametrize("file", ["model.safetensors", "state.safetensors", "state.json"])
def test_a_missing_file_is_noticed(run: RunDirectory, file: str) -> None:
    (save(run, 1) / file).unlink()
    with pytest.raises(RunError, match=rf"1/{file}.*no other whole checkpoint"):
        last(run)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "\x00\x00", "null", "{}", "[" * 100_000),
        *('{"schema_version": 1}', '{"schema_version": "1"}', '{"schema_version": true}'),
        '{"schema_version": 1, "files": 3}',
    ],
)
def test_a_damaged_record_is_noticed(run: RunDirectory, text: str) -> None:
    save(run, 1)
    (save(run, 2) / "state.json").write_text(text)
    with pytest.raises(RunError, match=r"2/state.json is damaged.*newest whole checkpoint is 1"):
        last(run)
    save(run, 3)  # and it does not stop the run that writes on
    assert names(run) == {"1", "3", "last"}


def test_wrong_tensors_are_noticed(run: RunDirectory) -> None:
    folder = save(run, 1)
    record = json.loads((folder / "state.json").read_text())
    record["files"]["model.safetensors"]["tensors"]["actor/bias"]["shape"] = [5]
    (folder / "state.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"does not hold the tensors that state\.json lists"):
        last(run)


def test_a_newer_schema_asks_for_an_upgrade(run: RunDirectory) -> None:
    folder = save(run, 1)
    record = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**record, "schema_version": 2}))
    with pytest.raises(RunError, match=r"newer worldrl.*pip install --upgrade"):
        last(run)


def test_a_pickle_is_never_opened(run: RunDirectory) -> None:
    file = save(run, 1) / "model.safetensors"
    torch.save({"actor/weight": torch.ones(1)}, file)
    with pytest.raises(RunError, match="damaged"):
        last(run)


# --- full disks -----------------------------------------------------------------------------------

FULL_DISK = """
    import resource, sys
    from pathlib import Path
    import torch
    from worldrl.errors import RunError
    from worldrl.training import checkpoint
    from worldrl.training.run_directory import RunDirectory

    mode, path = sys.argv[1], Path(sys.argv[2])
    path.mkdir(exist_ok=True)
    (path / "config.yaml").write_text("")
    run = RunDirectory.open(path, exclusive=True)
    checkpoint.save(run, "1", {"a": torch.ones(10)}, {}, {"step": 1}, keep=2)
    if mode == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    if mode == "disk":
        checkpoint.free_bytes = lambda path: None  # no check beforehand: meet the real error
    for big in ({"a": torch.ones(1_000_000)}, {}), ({}, {"a": torch.ones(1_000_000)}):
        try:
            checkpoint.save(run, "2", *big, {"step": 2}, keep=2)
        except RunError as error:
            print(error)
        else:
            sys.exit("written in spite of a full disk")
        names = sorted(path.name for path in run.checkpoints.iterdir())
        assert names == ["1", "last"], names
        assert checkpoint.load(run.checkpoints / "last").plain == {"step": 1}
    try:
        checkpoint.save_model(path / "model", {"a": torch.ones(1_000_000)}, {})
    except RunError as error:
        print(error)
    assert not (path / "model").exists()
    checkpoint.save(run, "3", {"a": torch.ones(10)}, {}, {"step": 3}, keep=2)
    assert checkpoint.load(run.checkpoints / "last").plain == {"step": 3}
"""


def full_disk(mode: str, path: Path, *before: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, "-c", textwrap.dedent(FULL_DISK), mode, str(path)]
    return subprocess.run([*before, *script], capture_output=True, text=True, timeout=120)


def test_a_file_size_limit_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    done = full_disk("limit", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines()[:2]:
        assert "File too large" in line
        assert "4.0 MB" in line
        assert "checkpoints/1, is intact" in line
        assert "worldrl resume" in line


@pytest.mark.parametrize("mode", ["checked", "disk"])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, mode: str) -> None:
    # In a mount namespace of its own: nothing to unmount, nothing that other processes see.
    inside = ["unshare", "--mount", "--map-root-user"]
    mount = f"mount -t tmpfs -o size=1m tmpfs '{tmp_path}'"
    try:
        possible = subprocess.run([*inside, "sh", "-c", mount], capture_output=True).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("this system does not let a test mount a small disk")
    done = full_disk(mode, tmp_path / "run", *inside, "sh", "-c", f'{mount} && exec "$@"', "sh")
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines()[:2]:
        assert "No space left on device" in line
        assert "4.0 MB" in line
        assert "checkpoints/1, is intact" in line
    assert len(done.stdout.splitlines()) == 3


def test_the_check_beforehand_writes_nothing(run: RunDirectory, monkeypatch) -> None:
    save(run, 1)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda path: 1234)
    monkeypatch.setattr(checkpoint, "save_file", lambda *_: pytest.fail("began to write"))
    with pytest.raises(RunError, match=r"needs about 8\.9 kB and 1\.2 kB are free"):
        save(run, 2)


# --- kills ----------------------------------------------------------------------------------------

KILLED = """
    import json, os, random, signal, sys, time
    from pathlib import Path
    import torch
    from worldrl.training import checkpoint
    from worldrl.training.run_directory import RunDirectory

    torch.set_num_threads(1)
    path, random = Path(sys.argv[2]), random.Random(0)
    path.mkdir()
    (path / "config.yaml").write_text("")

    def save(step, name, keep=2):
        run = RunDirectory.open(path, exclusive=True)
        value = {"a": torch.full((20_000,), float(step)), "b": torch.full((3,), float(step))}
        checkpoint.save(run, name, value, value, {"step": step}, keep=keep)
        run.close()

    def check():
        run = RunDirectory.open(path, exclusive=True)  # nobody holds the lock any more
        folder = checkpoint.last_checkpoint(run)
        seen = None
        folders = [run.checkpoints / name.name for name in run.checkpoints.iterdir()
                   if not name.name.startswith(".")]
        for entry in folders:
            found = checkpoint.load(entry)
            step = found.plain["step"]
            for group in (found.model, found.state):
                assert all(bool((tensor == step).all()) for tensor in group.values())
        if folder is not None:
            seen = checkpoint.load(folder).plain["step"]
            link = run.checkpoints / "last"
            assert not link.is_symlink() or link.exists(), "last dangles"
        run.close()
        return seen

    def child(work):
        process = os.fork()
        if process == 0:
            try:
                work()
            finally:
                os._exit(0)
        return process
"""

AT_RANDOM = """
    def forever(start):
        for step in range(start, 10**9):
            save(step, str(step // 2 % 4))  # new names, and each of them twice

    seen, kills = 0, 0
    while kills < 40 or seen < 10:  # however slow the disk is
        process = child(lambda: forever(seen + 1))
        time.sleep(0.02 + 0.1 * random.random())
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        kills += 1
        now = check() or 0
        assert now >= seen, (now, seen)
        seen = now
    print(json.dumps({"steps": seen}))
"""

EVERYWHERE = """
    EVENTS = {"open", "os.mkdir", "os.rename", "os.symlink", "os.link", "os.remove", "os.rmdir"}

    def die_at(count, work):
        def hook(event, arguments):
            nonlocal count
            if event in EVENTS:
                count -= 1
                if count < 0:
                    os._exit(9)
        sys.addaudithook(hook)
        work()

    points = 0
    steps = iter(range(1, 10**9))
    for name in ("a", "b", "b", "c", "b"):  # the first, another, the same, one that prunes, ...
        step = next(steps)
        for count in range(10**6):
            before = check()
            process = child(lambda: die_at(count, lambda: save(step, name, keep=1)))
            _, status = os.waitpid(process, 0)
            now = check()
            assert now in (before, step), (name, count, before, now, step)
            if os.waitstatus_to_exitcode(status) == 0:
                break
            points += 1
        assert check() == step
    left = {entry.name for entry in (path / "checkpoints").iterdir()}
    assert left == {"b", "last"}, left
    print(json.dumps({"points": points}))
"""


def killed(body: str, path: Path) -> dict[str, int]:
    script = textwrap.dedent(KILLED) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", script, "", str(path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_at_random_the_last_checkpoint_is_whole(tmp_path: Path) -> None:
    killed(AT_RANDOM, tmp_path / "run")


def test_killed_before_every_change_of_the_disk_the_last_is_whole(tmp_path: Path) -> None:
    assert killed(EVERYWHERE, tmp_path / "run")["points"] > 60


# --- stand-alone models ---------------------------------------------------------------------------


def test_saved_model_round_trip_and_replacement(tmp_path: Path) -> None:
    path = tmp_path / "a" / "model"
    for value in (1.0, 2.0):
        checkpoint.save_model(path, tensors(value), {"observation_size": 4, "value": value})
        saved = checkpoint.load_model(path)
        assert saved.plain == {"observation_size": 4, "value": value}
        assert torch.equal(saved.tensors["actor/bias"], torch.full((4,), value))
    assert sorted(entry.name for entry in path.iterdir()) == ["model.json", "model.safetensors"]
    assert [entry.name for entry in path.parent.iterdir()] == ["model"]
    flip(path / "model.safetensors", -1)
    with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
        checkpoint.load_model(path)


def test_saving_a_model_leaves_strangers_alone(tmp_path: Path) -> None:
    stranger = tmp_path / f".other{files.TEMPORARY}1"
    stranger.write_text("not ours")
    checkpoint.save_model(tmp_path / "model", tensors(1.0), {})
    assert stranger.read_text() == "not ours"


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"model\.json is missing"):
        checkpoint.load_model(tmp_path)
