"""A sample of a source: some of its units, chosen at random. Pure."""

import hashlib
import heapq
from collections.abc import Iterable

from dq_cluster.images.units import Unit

# Where a file tells its rows only when it is read (tars).
_BYTES_PER_IMAGE = 100_000


def sample_units(units: Iterable[Unit], rows: int) -> list[Unit]:
    """Units that hold at least `rows` rows together, in their order; all if there are fewer.

    A hash of path and place decides, so the same listing gives the same sample. Memory is of the
    sample, not of the listing. Units whose rows are not known are taken for rows of 100 kB.
    """
    chosen: list[tuple[int, int, Unit]] = []  # a heap: the largest hash goes first
    held = 0
    for number, unit in enumerate(units):
        heapq.heappush(chosen, (-_hash(unit), number, unit))
        held += _rows(unit)
        while held - _rows(chosen[0][2]) >= rows:
            held -= _rows(heapq.heappop(chosen)[2])
    return [unit for _, _, unit in sorted(chosen, key=lambda entry: entry[1])]


def _hash(unit: Unit) -> int:
    text = f"{unit.path}\0{unit.start}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _rows(unit: Unit) -> int:
    return unit.rows or max(1, (unit.size or 0) // _BYTES_PER_IMAGE)
