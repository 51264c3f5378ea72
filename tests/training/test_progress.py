"""Progress: one line, on standard error, seldom, and nothing when quiet."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import textwrap

import pytest

from worldrl.training import progress
from worldrl.training.progress import Progress, format_line, format_seconds


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def test_a_line_about_every_ten_seconds_and_one_at_the_end(clock: Clock, capsys) -> None:
    with Progress("train", 3000, "updates") as bar:
        for step in range(100, 3001, 100):
            clock.now += 1.0
            bar.update(step, {"critic_loss": step / 1000})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "train  1,000/3,000 updates  100/s  0:20 left  critic_loss 1",
        "train  2,000/3,000 updates  100/s  0:10 left  critic_loss 2",
        "train  3,000/3,000 updates  100/s  0:00 left  critic_loss 3",
        "train  3,000/3,000 updates  100/s  in 0:30  critic_loss 3",
    ]


def test_quiet_prints_nothing(clock: Clock, capsys) -> None:
    with Progress("train", 10, "updates", quiet=True) as bar:
        clock.now += 60
        bar.update(10, {"loss": 1.0})
    assert capsys.readouterr() == ("", "")


def test_the_rate_follows_the_last_half_minute(clock: Clock, capsys) -> None:
    with Progress("train", 100_000, "updates") as bar:
        clock.now += 60  # compiling
        bar.update(10)
        for step in range(1, 41):
            clock.now += 1
            bar.update(10 + 100 * step)
        capsys.readouterr()
        clock.now += 10
        bar.update(10 + 100 * 50)
        assert "  100/s  15:50 left" in capsys.readouterr().err


def test_a_resumed_stage_counts_only_its_own_steps(clock: Clock, capsys) -> None:
    with Progress("train", 2000, "updates", start=1000) as bar:
        clock.now += 10
        bar.update(1100)
    assert "train  1,100/2,000 updates  10/s  1:30 left" in capsys.readouterr().err


def test_often_called_it_stays_small(clock: Clock) -> None:
    with Progress("train", None, "updates", quiet=True) as bar:
        for step in range(100_000):
            clock.now += 0.001
            bar.update(step)
        assert len(bar._history) < 400


def test_numbers_stay_until_they_change(clock: Clock, capsys) -> None:
    with Progress("pretrain", None, "epochs") as bar:
        bar.update(1, {"loss": 1.0, "return": -200.0})
        clock.now += 2
        bar.update(2, {"loss": 0.5})
    assert capsys.readouterr().err.splitlines() == [
        "pretrain  2 epochs  1/s  in 0:02  loss 0.5  return -200",
    ]


def test_it_says_how_far_it_came_when_interrupted(clock: Clock, capsys) -> None:
    def interrupted() -> None:
        with Progress("train", 10, "updates") as bar:
            clock.now += 1
            bar.update(5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "train  5/10 updates" in capsys.readouterr().err


def test_lines() -> None:
    line = format_line("train", 0, 10, "updates", None, {"loss": float("nan")})
    assert line == "train  0/10 updates  loss nan"
    assert format_line("train", 5, 10, "updates", 0.05, {}).endswith("0.05/s  1:40 left")
    assert [format_seconds(s) for s in (0.4, 59.6, 3599, 3600, 90_061)] == [
        *("0:00", "1:00", "59:59", "1:00:00", "25:01:01")
    ]


@pytest.mark.parametrize("columns", [60, 140])
def test_on_a_terminal_the_line_is_redrawn_and_stdout_left_alone(columns: int) -> None:
    script = """
        import time
        from worldrl.training.progress import Progress
        with Progress("train", 1000, "updates") as bar:
            for step in range(0, 1001, 100):
                time.sleep(0.05)
                bar.update(step, {"critic_loss": 0.1, "return [mean]": 2.5, "q_value": 123.4})
            print('{"json": 1}', flush=True)
    """
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm"},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(master)
    out, _ = process.communicate(timeout=60)
    text = shown.decode()
    assert process.returncode == 0, text
    assert out == b'{"json": 1}\n'
    assert "train  1,000/1,000 updates" in text
    assert text.count("train  ") > 2  # drawn again
    last = text[text.rindex("train  ") :]  # the first has no rate yet, and may fit
    assert ("return [mean] 2.5" in last) == (columns == 140)
    assert text.count("\n") <= 3  # in place: a line that does not fit is cut, not wrapped
