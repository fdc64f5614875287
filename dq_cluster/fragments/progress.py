"""The progress of a run: a bar on a terminal, a line every ten seconds elsewhere, and metrics."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple

from prometheus_client import Counter as Total
from prometheus_client import Gauge

from dq_cluster.fragments.ledger import Receipt
from dq_cluster.progress import LINE_EVERY, bar, duration


class Measured(NamedTuple):
    """The metrics of a workload: its fragments, those that are done, rows, and rejects if any."""

    fragments: Gauge
    done: Gauge
    rows: Total
    rejects: Total | None = None


class Work(NamedTuple):
    """What was done so far of a fragment that is not committed; seconds by stage."""

    rows: int
    rejected: int
    seconds: Mapping[str, float]


class RunProgress:
    """Counts rows, those of open fragments too; use as a context. Output goes to standard error.

    fragments, rows: of the whole run, rows=None where nobody knows. done, done_rows: those that
    are committed already. lanes: how many work at each stage at once; with it the slowest stage is
    named. `working` may be called from another thread than the rest.
    """

    def __init__(
        self,
        name: str,
        fragments: int,
        done: int,
        measured: Measured,
        *,
        rows: int | None = None,
        done_rows: int = 0,
        lanes: Mapping[str, int] | None = None,
    ) -> None:
        self._name, self._fragments = name, fragments
        self._done, self._before = done, done
        self._all_rows, self._rows_before = rows, done_rows
        self._lanes = lanes or {}
        self.rows = self.rejected = 0
        self.stages: Counter[str] = Counter()
        self._open: dict[int, Work] = {}
        self._committed: set[int] = set()
        self._lock = threading.RLock()
        self._started = self._spoke = time.monotonic()
        self._bar = bar()
        self._task = self._bar.add_task(name, total=1.0, figures="")
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
        if self._done > self._before or kind is not None:
            self._say(self.figures())

    def working(self, work: Mapping[int, Work]) -> None:
        """What was done so far of the fragments in hand; a fragment's last account counts."""
        with self._lock:
            self._open.update((n, w) for n, w in work.items() if n not in self._committed)
            self._show()

    def add(self, receipt: Receipt) -> None:
        """One more fragment is committed."""
        with self._lock:
            self._open.pop(receipt.fragment, None)
            self._committed.add(receipt.fragment)
            self._done += 1
            self.rows += receipt.rows
            self.rejected += receipt.rejected
            self.stages.update(receipt.seconds)
            self._measured.rows.inc(receipt.rows)
            if self._measured.rejects is not None:
                self._measured.rejects.inc(receipt.rejected)
            self._measured.done.set(self._done)
            self._show()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def figures(self) -> str:
        """`786,432/8,000,000 rows, 12/80 fragments, 5,120 rows/s, 3 rejects, 1:02:10 left`"""
        with self._lock:
            rejected = self.rejected + sum(work.rejected for work in self._open.values())
            whole = f"/{self._all_rows:,}" if self._all_rows is not None else ""
            parts = [
                f"{self._rows_before + self._here:,}{whole} rows",
                f"{self._done:,}/{self._fragments:,} fragments",
                f"{self._here / max(self.seconds, 1e-9):,.0f} rows/s",
                f"{rejected:,} rejects",
            ]
            share, before = self._share, self._share_before
            if before < share < 1:
                left = self.seconds / (share - before) * (1 - share)
                parts.append(f"{duration(left)} left")
                parts += [f"the slowest stage is {stage}"] if (stage := self.slowest()) else []
            return ", ".join(parts)

    def slowest(self) -> str | None:
        """The stage whose lanes worked longest; None where that is not known."""
        totals = Counter(self.stages)
        for work in self._open.values():
            totals.update(work.seconds)
        busy = {stage: totals[stage] / lanes for stage, lanes in self._lanes.items()}
        return max(busy, key=lambda stage: busy[stage]) if any(busy.values()) else None

    @property
    def _here(self) -> int:
        """Rows that this process has seen done, rejects among them."""
        in_hand = sum(work.rows + work.rejected for work in self._open.values())
        return self.rows + self.rejected + in_hand

    @property
    def _share(self) -> float:
        """The share of the run that is done; by fragments where the rows are not known."""
        if self._all_rows:
            return min(1.0, (self._rows_before + self._here) / self._all_rows)
        return self._done / max(self._fragments, 1)

    @property
    def _share_before(self) -> float:
        if self._all_rows:
            return min(1.0, self._rows_before / self._all_rows)
        return self._before / max(self._fragments, 1)

    def _show(self) -> None:
        self._bar.update(self._task, completed=self._share, figures=self.figures())
        if self._bar.disable and time.monotonic() - self._spoke >= LINE_EVERY:
            self._spoke = time.monotonic()
            self._say(self.figures())

    def _say(self, text: str) -> None:
        print(f"{self._name}: {text}", file=sys.stderr, flush=True)
