"""What planning a run says on standard error."""

import sys
import time
from collections.abc import Iterable, Iterator

from dq_cluster.encoding.plan import Plan
from dq_cluster.images.skipped import skipped_text
from dq_cluster.images.units import Unit
from dq_cluster.progress import LINE_EVERY


def planning(uri: str, units: Iterable[Unit]) -> Iterator[Unit]:
    """Pass `units` on, and say on standard error how far their listing is."""
    print(f"planning {uri}", file=sys.stderr, flush=True)
    spoke = time.monotonic()
    for number, unit in enumerate(units):
        if time.monotonic() - spoke >= LINE_EVERY:
            spoke = time.monotonic()
            print(f"planning: {number:,} so far, at {unit.path}", file=sys.stderr, flush=True)
        yield unit


def say_planned(plan: Plan) -> None:
    """Say on standard error what is in a plan, and what was left out of it."""
    rows = f", {plan.rows:,} rows" if plan.rows is not None else ""
    left_out = skipped_text(plan.skipped, plan.unread)
    text = f"planned {plan.files or plan.units:,} files{rows}{'; ' if left_out else ''}{left_out}"
    print(text, file=sys.stderr, flush=True)
