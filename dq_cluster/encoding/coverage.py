"""What a run covers: its plan compared with the files at the source now.

A run is planned once, so what is added later is not in it. Both lists come in the order of the
paths and are compared as streams.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from dq_cluster.encoding.plan import Plan, PlanReader
from dq_cluster.errors import DqError
from dq_cluster.fragments.ledger import Receipt
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.files import map_ahead
from dq_cluster.images.skipped import most_frequent
from dq_cluster.images.sources import open_source
from dq_cluster.images.units import Unit
from dq_cluster.storage import FileInfo, Storage

# Half a minute of listing on object storage.
MOST_FILES = 200_000


@dataclass
class Difference:
    """Files: new ones are at the source and not in the plan, gone ones the other way round;
    changed ones are in both, with another size or stamp. compared: of those at the source;
    whole: whether these are all."""

    new: int = 0
    changed: int = 0
    gone: int = 0
    compared: int = 0
    whole: bool = True


def compare(
    planned: Iterable[Unit],
    present: Iterable[FileInfo],
    holds: Callable[[FileInfo], bool],
    limit: int = MOST_FILES,
) -> Difference:
    """Compare two lists in the order of their paths, up to `limit` files that are present.

    holds: whether a file that was not planned is input; asked concurrently.
    """
    difference = Difference()
    difference.new = sum(map_ahead(holds, _not_planned(iter(planned), present, difference, limit)))
    return difference


def _not_planned(
    planned: Iterator[Unit], present: Iterable[FileInfo], difference: Difference, limit: int
) -> Iterator[FileInfo]:
    unit = next(planned, None)
    for info in present:
        if difference.compared == limit:
            difference.whole = False
            return
        difference.compared += 1
        while unit is not None and unit.path < info.path:
            difference.gone += 1
            unit = next(planned, None)
        if unit is None or unit.path != info.path:
            yield info
            continue
        stamped = unit.stamp is not None
        difference.changed += stamped and (unit.size, unit.stamp) != (info.size, info.stamp)
        unit = next(planned, None)
    difference.gone += (unit is not None) + sum(1 for _ in planned)


def look_again(
    storage: Storage, plan: Plan, settings: SourceSettings, advice: str
) -> Difference | None:
    """Compare the stored plan of a run with its source, and say the difference on standard error.

    advice: how to take in what is new. None where the source cannot be listed any more, which
    is no fault of a run that is complete.
    """
    print(f"comparing {settings.uri} with what was planned", file=sys.stderr, flush=True)
    try:
        source = open_source(settings)
        files = _files(PlanReader(storage, plan), plan.fragments)
        difference = compare(files, source.listing(), source.holds)
    except DqError as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return None
    print(_text(plan, difference), file=sys.stderr)
    if difference.new or difference.changed:
        print(advice, file=sys.stderr)
    return difference


def summary(
    plan: Plan, receipts: Iterable[Receipt], difference: Difference | None
) -> dict[str, dict[str, int] | int]:
    """What the run left out, for its result: `not_covered` (files), `skipped` by kind."""
    skipped = Counter(plan.skipped)
    for receipt in receipts:
        skipped.update(receipt.skipped)
    missing = {"not_covered": difference.new} if difference else {}
    return {**missing, "skipped": most_frequent(skipped)}


def _text(plan: Plan, difference: Difference) -> str:
    when = f" {plan.planned:%Y-%m-%d %H:%M} UTC" if plan.planned else " earlier"
    files = f" with {plan.files:,} files" if plan.files is not None else ""
    counts = {
        "files there now that are not in it": difference.new,
        "changed since": difference.changed,
        "gone since": difference.gone,
    }
    parts = [f"{label}: {count:,}" for label, count in counts.items() if count]
    parts = parts or ["nothing was added or changed since"]
    bound = "" if difference.whole else f" (compared: the first {difference.compared:,} files)"
    return f"planned{when}{files}: {', '.join(parts)}{bound}"


def _files(reader: PlanReader, fragments: int) -> Iterator[Unit]:
    """One unit of each planned file."""
    last = None
    for number in range(fragments):
        for unit in reader.fragment(number):
            if unit.path != last:
                yield unit
                last = unit.path
