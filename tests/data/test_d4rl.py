import hashlib
import http.server
import threading
from dataclasses import dataclass, field

import h5py
import numpy as np
import pytest

from worldrl.data import load
from worldrl.data.download import cache_folder, download
from worldrl.data.readers import d4rl
from worldrl.errors import DataError


@dataclass
class Server:
    """What a local HTTP server serves and what it was asked."""

    content: bytes = b""
    tag: str = '"one"'
    breaks_after: list[int] = field(default_factory=list)  # bytes sent before each lost connection
    ranges: bool = True
    status: int = 200
    requests: list[tuple[str | None, int]] = field(default_factory=list)  # range asked, status
    address: str = ""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers["Range"]
            same = self.headers["If-Range"] in (None, state.tag)
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            partial = asked is not None and state.ranges and same
            status = 206 if partial else state.status
            if partial and start >= len(state.content):
                status = 416
            state.requests.append((asked, status))
            self.send_response(status)
            if status == 416:
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.end_headers()
                return
            body = state.content[start:] if partial else state.content
            if partial:
                end, size = len(state.content) - 1, len(state.content)
                self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
            self.send_header("ETag", state.tag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.breaks_after:
                body = body[: state.breaks_after.pop(0)]
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        state.address = f"http://127.0.0.1:{listening.server_port}/file.hdf5"
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield state
        listening.shutdown()
        thread.join()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLDRL_DATA_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hopper(server, cache, monkeypatch, tmp_path):
    """A tiny file served at the address of hopper-medium-v2."""
    with h5py.File(tmp_path / "made.hdf5", "w") as file:
        file["observations"] = np.random.default_rng(0).normal(size=(30, 11))
        file["actions"] = np.zeros((30, 3), np.float32)
        file["rewards"] = np.arange(30.0)
        file["terminals"] = np.arange(30) % 10 == 9
    server.content = (tmp_path / "made.hdf5").read_bytes()
    monkeypatch.setattr(d4rl, "addresses", lambda: {"hopper-medium-v2": server.address})
    return cache / "d4rl" / "hopper-medium-v2.hdf5"


def test_table_of_addresses():
    table = d4rl.addresses()
    assert len(table) >= 150
    assert table["halfcheetah-medium-v2"].endswith("gym_mujoco_v2/halfcheetah_medium-v2.hdf5")
    assert all(url.startswith("http") for url in table.values())


def test_unknown_name_is_suggested():
    with pytest.raises(DataError, match="did you mean 'hopper-medium-v2'"):
        load("d4rl:hoper-medium-v2")


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("WORLDRL_DATA_DIR", "/somewhere")
    assert str(cache_folder()) == "/somewhere"
    monkeypatch.delenv("WORLDRL_DATA_DIR")
    assert cache_folder().parts[-3:] == (".cache", "worldrl", "datasets")


def test_first_use_downloads_records_and_says_the_hash(server, hopper):
    digest = hashlib.sha256(server.content).hexdigest()
    first = load("d4rl:hopper-medium-v2")
    assert first.lengths.tolist() == [10, 10, 10]
    assert first.metadata.source == "d4rl:hopper-medium-v2"
    assert first.metadata.env_id == "hopper-medium-v2"
    assert first.metadata.sha256 == digest
    assert digest in first.metadata.warnings[0]
    record = hopper.with_name(hopper.name + ".sha256")
    assert record.read_text() == f"{digest}  {hopper.name}\n"
    assert {p.name for p in hopper.parent.iterdir()} == {
        hopper.name,
        record.name,
        f"{hopper.name}.lock",
    }
    second = load("d4rl:hopper-medium-v2")
    assert len(server.requests) == 1
    assert not [w for w in second.metadata.warnings if digest in w]


def test_later_uses_are_held_to_the_hash(server, hopper):
    load("d4rl:hopper-medium-v2")
    hopper.write_bytes(server.content + b" ")
    with pytest.raises(DataError, match=r"sha256.*was recorded.*changed or damaged"):
        load("d4rl:hopper-medium-v2")


def test_a_file_put_there_by_hand_is_used(server, hopper):
    hopper.parent.mkdir(parents=True)
    hopper.write_bytes(server.content)
    assert load("d4rl:hopper-medium-v2").num_transitions == 30
    assert server.requests == []


def test_offline_names_address_and_path(monkeypatch, cache):
    address = "http://127.0.0.1:9/gone.hdf5"  # nothing listens on the discard port
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(d4rl, "addresses", lambda: {"hopper-medium-v2": address})
    with pytest.raises(DataError) as caught:
        load("d4rl:hopper-medium-v2")
    assert address in str(caught.value)
    assert str(cache / "d4rl" / "hopper-medium-v2.hdf5") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_transfer_is_continued(server, tmp_path):
    server.content = np.random.default_rng(0).bytes(3_000_000)
    server.breaks_after = [1_000_000, 500_000]
    seen = []
    download(server.address, tmp_path / "file", lambda have, total: seen.append((have, total)))
    assert (tmp_path / "file").read_bytes() == server.content
    assert server.requests == [(None, 200), ("bytes=1000000-", 206), ("bytes=1500000-", 206)]
    assert seen[-1] == (3_000_000, 3_000_000)
    assert not list(tmp_path.glob("*.part*"))


def test_a_transfer_that_keeps_breaking_is_kept_and_continued_next_time(server, tmp_path):
    server.content = np.random.default_rng(0).bytes(100_000)
    server.breaks_after = [10_000] * 4
    with pytest.raises(DataError, match=r"lost after 40000 of 100000.*kept in .*file.part"):
        download(server.address, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    download(server.address, tmp_path / "file")
    assert server.requests[-1] == ("bytes=40000-", 206)
    assert (tmp_path / "file").read_bytes() == server.content


def test_a_file_that_changed_meanwhile_is_fetched_whole(server, tmp_path):
    server.content = b"old" * 1000
    server.breaks_after = [100] * 4
    with pytest.raises(DataError):
        download(server.address, tmp_path / "file")
    server.content, server.tag = b"new" * 2000, '"two"'
    download(server.address, tmp_path / "file")
    assert server.requests[-1] == ("bytes=400-", 200)
    assert (tmp_path / "file").read_bytes() == server.content


def test_a_server_without_ranges(server, tmp_path):
    server.content, server.ranges = b"abc" * 1000, False
    server.breaks_after = [100]
    download(server.address, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.content


def test_killed_between_the_last_byte_and_the_rename(server, tmp_path):
    server.content = b"abc" * 1000
    (tmp_path / "file.part").write_bytes(server.content)
    (tmp_path / "file.part.version").write_text(server.tag)
    download(server.address, tmp_path / "file")
    assert server.requests == [("bytes=3000-", 416)]
    assert (tmp_path / "file").read_bytes() == server.content


def test_a_part_of_unknown_version_is_not_trusted(server, tmp_path):
    server.content = b"abc" * 1000
    (tmp_path / "file.part").write_bytes(b"zzz")
    download(server.address, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.content


def test_refusals_are_not_retried(server, tmp_path):
    server.status = 404
    with pytest.raises(DataError, match="answered 404 Not Found"):
        download(server.address, tmp_path / "file")
    assert len(server.requests) == 1
    assert not (tmp_path / "file").exists()


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(DataError, match=r"cannot be written.*WORLDRL_DATA_DIR"):
        download(server.address, tmp_path / "taken" / "file")


def test_processes_wait_for_the_one_that_fetches(server, tmp_path):
    server.content = np.random.default_rng(0).bytes(5_000_000)
    threads = [
        threading.Thread(target=download, args=(server.address, tmp_path / "file"))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert (tmp_path / "file").read_bytes() == server.content


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("hopper-medium-v0", [999, 500]),
        ("pen-human-v0", [99] * 15),
        ("unknown-v0", [1500]),
        ("maze2d-eval-large-v1", [799, 700]),
        ("hopper-unheard-of-v0", [1500]),
    ],
)
def test_time_limits_of_files_without_timeouts(cache, monkeypatch, name, lengths):
    path = cache / "d4rl" / f"{name}.hdf5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["observations"] = np.random.default_rng(0).normal(size=(1501, 2))
        file["actions"] = np.zeros((1501, 3), np.float32)
        file["rewards"] = np.zeros(1501)
        file["terminals"] = np.arange(1501) == 1501
    monkeypatch.setattr(d4rl, "addresses", lambda: {name: "http://127.0.0.1:9/"})
    dataset = load(f"d4rl:{name}")
    assert dataset.lengths.tolist() == lengths
