"""Packing: an ordered stream of input units becomes fragments, and a fragment becomes lanes.

Pure functions; `encode.plan` keeps on storage what they decide.
"""

from collections.abc import Iterable, Iterator, Sequence

from dq_cluster.images.units import Unit


def pack(units: Iterable[Unit], target: int) -> Iterator[list[Unit]]:
    """Fragments of whole consecutive units with about `target` rows, never fewer but the last.

    A unit whose rows are not known is a fragment of its own.
    """
    fragment: list[Unit] = []
    rows = 0
    for unit in units:
        if unit.rows == 0 and fragment:
            yield fragment
            fragment, rows = [], 0
        fragment.append(unit)
        rows += unit.rows or target
        if rows >= target:
            yield fragment
            fragment, rows = [], 0
    if fragment:
        yield fragment


def divide(fragment: Sequence[Unit], parts: int) -> list[list[Unit]]:
    """Cut a fragment into at most `parts` consecutive lanes with equal rows.

    Units of many rows are cut where they must be; one whose rows are not known stays whole.
    Lanes in order hold the fragment's rows in order.
    """
    total = sum(unit.rows or 1 for unit in fragment)
    ends = [total * (part + 1) // parts for part in range(parts)]
    lanes: list[list[Unit]] = [[]]
    done = 0
    for unit in fragment:
        start, left = unit.start, unit.rows or 1
        while left:
            taken = min(left, ends[len(lanes) - 1] - done)
            if taken:
                lanes[-1].append(unit if unit.rows == 0 else unit._replace(start=start, rows=taken))
            start, left, done = start + taken, left - taken, done + taken
            if done == ends[len(lanes) - 1] and done < total:
                lanes.append([])
    return [lane for lane in lanes if lane]
