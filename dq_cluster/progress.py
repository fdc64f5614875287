"""How far something with a known end is: a bar on a terminal, elsewhere a line every 10 s."""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

LINE_EVERY = 10.0  # seconds, where there is no terminal


def bar() -> Progress:
    """A bar on standard error with a field `figures`; disabled where that is no terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


def duration(seconds: float) -> str:
    """`1:02:10`"""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Steps:
    """Counts up to `total` of a unit; use as a context. Output goes to standard error.

    scale: of one that is counted in the unit that is shown, 1e-6 for bytes shown as MB. May be
    called from several threads. What takes less than ten seconds says nothing outside a terminal.
    """

    def __init__(
        self,
        name: str,
        total: int,
        unit: str,
        *,
        scale: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._total, self._unit, self._scale = name, total, unit, scale
        self._clock, self._lock, self._done = clock, threading.Lock(), 0
        self._started = self._spoke = clock()
        self._bar = bar()
        self._task = self._bar.add_task(name, total=max(total, 1), figures="")

    def __enter__(self) -> "Steps":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, count: int = 1) -> None:
        with self._lock:
            self._done += count
            self._bar.update(self._task, completed=self._done, figures=self.figures())
            if self._bar.disable and self._clock() - self._spoke >= LINE_EVERY:
                self._spoke = self._clock()
                print(f"{self._name}: {self.figures()}", file=sys.stderr, flush=True)

    def figures(self) -> str:
        """`1,200/5,000 MB, 120 MB/s, 0:00:32 left`"""
        seconds = max(self._clock() - self._started, 1e-9)
        done, total = self._done * self._scale, self._total * self._scale
        text = f"{done:,.0f}/{total:,.0f} {self._unit}, {done / seconds:,.3g} {self._unit}/s"
        if 0 < self._done < self._total:
            text += f", {duration(seconds / self._done * (self._total - self._done))} left"
        return text
