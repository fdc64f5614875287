"""The progress of a run: a bar on a terminal, a line from time to time elsewhere, and metrics."""

import sys
import time
from collections import Counter
from types import TracebackType
from typing import NamedTuple

from prometheus_client import Counter as Total
from prometheus_client import Gauge
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from dq_cluster.fragments.ledger import Receipt

_LINE_EVERY = 10.0  # seconds, where there is no terminal


class Measured(NamedTuple):
    """The metrics of a workload: its fragments, those that are done, rows, and rejects if any."""

    fragments: Gauge
    done: Gauge
    rows: Total
    rejects: Total | None = None


class RunProgress:
    """Counts fragments; use as a context. All output goes to standard error."""

    def __init__(self, name: str, fragments: int, done: int, measured: Measured) -> None:
        self._name, self._fragments = name, fragments
        self._done, self._before = done, done
        self.rows = self.rejected = 0
        self.stages: Counter[str] = Counter()
        self._started = self._spoke = time.monotonic()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(name, total=fragments, completed=done, figures="")
        self._measured = measured
        measured.fragments.set(fragments)
        measured.done.set(done)

    def __enter__(self) -> "RunProgress":
        if self._before:
            self._say(f"continuing: {self._before:,} of {self._fragments:,} fragments are done")
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._say(self.figures())

    def add(self, receipt: Receipt) -> None:
        """One more fragment is committed."""
        self._done += 1
        self.rows += receipt.rows
        self.rejected += receipt.rejected
        self.stages.update(receipt.seconds)
        self._measured.rows.inc(receipt.rows)
        if self._measured.rejects is not None:
            self._measured.rejects.inc(receipt.rejected)
        self._measured.done.set(self._done)
        self._bar.update(self._task, completed=self._done, figures=self.figures())
        if self._bar.disable and time.monotonic() - self._spoke >= _LINE_EVERY:
            self._spoke = time.monotonic()
            self._say(self.figures())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def figures(self) -> str:
        """`12/80 fragments, 786,432 rows, 5,120 rows/s, 3 rejects, 1:02:10 left`"""
        here = self._done - self._before
        rate = (self.rows + self.rejected) / max(self.seconds, 1e-9)
        text = (
            f"{self._done:,}/{self._fragments:,} fragments, {self.rows:,} rows, "
            f"{rate:,.0f} rows/s, {self.rejected:,} rejects"
        )
        left = self._fragments - self._done
        if here and left:
            minutes, seconds = divmod(round(self.seconds / here * left), 60)
            text += f", {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
        return text

    def _say(self, text: str) -> None:
        print(f"{self._name}: {text}", file=sys.stderr, flush=True)
