"""One quiet line a stage, on standard error: how far, how fast, how long still, and what matters.

On a terminal the line is redrawn in place; elsewhere a plain line is printed about every ten
seconds and at the end.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

REDRAW_SECONDS = 0.2
PLAIN_SECONDS = 10.0
RATE_WINDOW_SECONDS = 30.0


class Progress:
    """Progress of one stage; a context manager.

    It keeps no thread of its own, which would take time from the training: the line moves when
    :meth:`update` is called.
    """

    def __init__(
        self, stage: str, total: int | None, unit: str, quiet: bool = False, start: int = 0
    ) -> None:
        """
        Args:
            total: steps of the stage; None where early stopping decides.
            unit: what a step is, in the plural: ``updates``.
            start: the step that the stage goes on from, so that the rate counts only new ones.
        """
        self.stage, self.total, self.unit, self.quiet = stage, total, unit, quiet
        self._step = start
        self._numbers: dict[str, float] = {}
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        now = time.monotonic()
        self._started = (now, self._step)
        self._history = deque([self._started])
        self._drawn = now
        if not self.quiet and sys.stderr.isatty():
            self._bar = self._open_bar()
            self._draw()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.quiet:
            return
        self._draw(elapsed=time.monotonic() - self._started[0])
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(self, step: int, numbers: Mapping[str, float] | None = None) -> None:
        """Say that ``step`` steps are done.

        Args:
            numbers: the two or three that matter now; those shown before stay.
        """
        self._step = step
        if numbers:
            self._numbers.update(numbers)
        now = time.monotonic()
        if len(self._history) > 1 and now - self._history[-2][0] < REDRAW_SECONDS:
            self._history.pop()  # bounds the history, however often this is called
        self._history.append((now, step))
        while len(self._history) > 2 and now - self._history[0][0] > RATE_WINDOW_SECONDS:
            self._history.popleft()
        interval = PLAIN_SECONDS if self._bar is None else REDRAW_SECONDS
        if not self.quiet and now - self._drawn >= interval:
            self._drawn = now
            self._draw()

    def _draw(self, elapsed: float | None = None) -> None:
        # The last half minute tells the time left; when the stage is over, all of it counts.
        before, first = self._started if elapsed is not None else self._history[0]
        after, last = self._history[-1]
        rate = (last - first) / (after - before) if after > before and last > first else None
        line = format_line(
            self.stage, self._step, self.total, self.unit, rate, self._numbers, elapsed
        )
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
            return
        self._bar.update(self._bar.task_ids[0], completed=self._step, description=line)
        self._bar.refresh()

    def _open_bar(self) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        console = Console(stderr=True)
        text = TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis"),
        )
        # On a narrow terminal the numbers need all of the line.
        columns = (BarColumn(bar_width=20), text) if console.width >= 120 else (text,)
        bar = Bar(
            *columns,
            console=console,
            auto_refresh=False,
            redirect_stdout=False,  # standard output belongs to --json
        )
        bar.add_task("", total=self.total, completed=self._step)
        bar.start()
        return bar


def format_line(
    stage: str,
    step: int,
    total: int | None,
    unit: str,
    rate: float | None,
    numbers: Mapping[str, float],
    elapsed: float | None = None,
) -> str:
    """``train  20,000/300,000 updates  152/s  30:42 left  critic_loss 0.31``.

    Args:
        rate: steps a second, where it is known.
        elapsed: seconds the stage took; given when it is over, in place of the time left.
    """
    parts = [stage, f"{step:,}/{total:,} {unit}" if total is not None else f"{step:,} {unit}"]
    if rate is not None:
        parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
        if total is not None and elapsed is None:
            parts.append(f"{format_seconds((total - step) / rate)} left")
    if elapsed is not None:
        parts.append(f"in {format_seconds(elapsed)}")
    parts += [f"{name} {value:.4g}" for name, value in numbers.items()]
    return "  ".join(parts)


def format_seconds(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
