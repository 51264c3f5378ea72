"""Asked to stop: finish the step, save, and leave with the exit code that says so."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Final

#: EX_TEMPFAIL: a scheduler that sees it may start ``worldrl resume`` later.
TERMINATED: Final = 75
INTERRUPTED: Final = 130

_ON_INTERRUPT = (
    b"\nworldrl: finishing the step and saving a checkpoint; press Ctrl-C again to stop at once "
    b"without saving\n"
)


class StopRequests:
    """Turns SIGTERM and the first SIGINT into a flag that the loop polls; a context manager.

    A second SIGINT raises KeyboardInterrupt. Handlers are put back on leaving. Outside the main
    thread, where Python allows no handlers, nothing is changed and nothing is ever requested.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._interrupts = 0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Should the loop save and leave?"""
        return self.exit_code is not None

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                previous = signal.signal(number, self._handle)
                # None: set outside Python, and cannot be put back; the default is the nearest.
                self._previous[number] = signal.SIG_DFL if previous is None else previous
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
            os.write(2, _ON_INTERRUPT)  # print is not safe inside a handler
        if self.exit_code is None:
            self.exit_code = TERMINATED if number == signal.SIGTERM else INTERRUPTED
