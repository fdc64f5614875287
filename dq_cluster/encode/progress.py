"""The progress of a run: a bar on a terminal, a line from time to time elsewhere, and metrics."""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from dq_cluster.encode.ledger import Receipt
from dq_cluster.encode.plan import Plan
from dq_cluster.images.skipped import skipped_text
from dq_cluster.images.units import Unit
from dq_cluster.observe import metrics

_LINE_EVERY = 10.0  # seconds, where there is no terminal


def planning(uri: str, units: Iterable[Unit]) -> Iterator[Unit]:
    """Pass `units` on, and say on standard error how far their listing is."""
    print(f"planning {uri}", file=sys.stderr, flush=True)
    spoke = time.monotonic()
    for number, unit in enumerate(units):
        if time.monotonic() - spoke >= _LINE_EVERY:
            spoke = time.monotonic()
            print(f"planning: {number:,} so far, at {unit.path}", file=sys.stderr, flush=True)
        yield unit


def say_planned(plan: Plan) -> None:
    """Say on standard error what is in a plan, and what was left out of it."""
    rows = f", {plan.rows:,} rows" if plan.rows is not None else ""
    left_out = skipped_text(plan.skipped, plan.unread)
    text = f"planned {plan.files or plan.units:,} files{rows}{'; ' if left_out else ''}{left_out}"
    print(text, file=sys.stderr, flush=True)


class RunProgress:
    """Counts fragments; use as a context. All output goes to standard error."""

    def __init__(self, name: str, fragments: int, done: int) -> None:
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
        metrics.ENCODE_FRAGMENTS.set(fragments)
        metrics.ENCODE_FRAGMENTS_DONE.set(done)

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
        metrics.ENCODE_IMAGES.inc(receipt.rows)
        metrics.ENCODE_REJECTS.inc(receipt.rejected)
        metrics.ENCODE_FRAGMENTS_DONE.set(self._done)
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
