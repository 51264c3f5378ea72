"""Requests to stop become a flag, and the handlers that were there come back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from worldrl.training.signals import StopRequests


def test_sigterm_asks_to_stop_with_75() -> None:
    with StopRequests() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # a scheduler that repeats itself changes nothing
        assert stop.requested
        assert stop.exit_code == 75


def test_the_first_ctrl_c_asks_and_the_second_interrupts(capfd) -> None:
    with StopRequests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        assert stop.exit_code == 130
        assert "Ctrl-C again" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_first_request_gives_the_exit_code() -> None:
    with StopRequests() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # the first Ctrl-C: no interrupt yet
        assert stop.exit_code == 75


@pytest.mark.parametrize("fails", [False, True])
def test_handlers_come_back(fails: bool) -> None:
    def mine(number: int, frame: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, mine)
    try:
        interrupt = signal.getsignal(signal.SIGINT)
        try:
            with StopRequests():
                assert signal.getsignal(signal.SIGTERM) is not mine
                if fails:
                    raise RuntimeError
        except RuntimeError:
            assert fails
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with StopRequests() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
