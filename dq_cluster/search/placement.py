"""Which shard has which segments: a function of the manifest only, so every process agrees."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dq_cluster.errors import InputError
from dq_cluster.index.manifest import FileEntry, Manifest
from dq_cluster.search.segments import Segment, cut


class Places:
    """Rows of a shard, counted through its segments, and their ordinals in the version.

    sizes (n,): rows of each segment; bases (n,): the ordinal of its first row, ascending.
    """

    def __init__(self, sizes: Sequence[int], bases: Sequence[int]) -> None:
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self.bases = np.asarray(bases, np.int64)

    @property
    def rows(self) -> int:
        return int(self.starts[-1])

    def ordinals(self, rows: np.ndarray) -> np.ndarray:
        """The ordinals of `rows`, of any shape."""
        segments = self.starts.searchsorted(rows, side="right") - 1
        return rows + (self.bases - self.starts[:-1])[segments]

    def rows_of(self, ordinals: np.ndarray) -> np.ndarray:
        """The rows of `ordinals`, of any shape, all of which lie in this shard."""
        segments = self.bases.searchsorted(ordinals, side="right") - 1
        return ordinals + (self.starts[:-1] - self.bases)[segments]

    def own(self, ordinals: np.ndarray) -> np.ndarray:
        """The rows of those `ordinals` (n,), ascending, that lie in this shard."""
        if not len(self.bases):
            return ordinals[:0]
        segments = self.bases.searchsorted(ordinals, side="right") - 1
        ends = self.bases + np.diff(self.starts)
        return self.rows_of(ordinals[(segments >= 0) & (ordinals < ends[segments])])


class Layout(NamedTuple):
    """A version in so many shards: what a replica loads its part of, and a query is asked of."""

    version: int
    shards: int


@dataclass(frozen=True)
class Shard:
    """Segments of a version, in its order, and the ordinal of the first row of each."""

    segments: tuple[Segment, ...]
    bases: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        return tuple(file for segment in self.segments for file in segment.files)

    @property
    def places(self) -> Places:
        return Places([segment.rows for segment in self.segments], self.bases)


def plan_shards(manifest: Manifest, count: int) -> tuple[Shard, ...]:
    """Deal the segments of a version out to `count` shards. Raises InputError for none.

    See `place`. With fewer segments than shards some are empty.
    """
    if count < 1:
        raise InputError(f"an index is served from at least 1 shard, not {count}")
    segments = cut(manifest)
    bases = np.cumsum([0, *(segment.rows for segment in segments)]).tolist()
    parts: list[list[int]] = [[] for _ in range(count)]
    for number, shard in enumerate(place(segments, count)):
        parts[shard].append(number)
    return tuple(
        Shard(tuple(segments[n] for n in part), tuple(bases[n] for n in part)) for part in parts
    )


def place(segments: Sequence[Segment], count: int) -> list[int]:
    """The shard of each segment. Equally many rows in each, as far as segments allow.

    Starts from one shard and adds the others one by one. Each takes its share of the segments and
    no segment moves between older shards, so one more shard moves as little as possible. A hash
    chooses (Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm", 2014), except
    where a shard would exceed its share of the rows so far (Mirrokni, Thorup, Zadimoghaddam,
    "Consistent Hashing with Bounded Loads", 2018). Only the segments before count as "so far":
    what is appended later moves none of them.
    """
    homes = [0] * len(segments)
    hashes = [_hash(segment) for segment in segments]
    for new in range(1, count):
        loads, seen = [0] * (new + 1), 0
        for number, segment in enumerate(segments):
            seen += segment.rows
            first, other = homes[number], new
            if _mixed(hashes[number], new) * (new + 1) < 1 << 64:
                first, other = other, first
            over = (loads[first] + segment.rows) * (new + 1) > seen
            if over and (loads[other], other) < (loads[first], first):
                first = other
            homes[number] = first
            loads[first] += segment.rows
    return homes


def owners(shards: Sequence[Shard], ordinals: np.ndarray) -> np.ndarray:
    """The numbers (n,) of the shards that have the rows `ordinals` (n,)."""
    # A segment without rows has none of them.
    places = [
        (base, number)
        for number, shard in enumerate(shards)
        for base, segment in zip(shard.bases, shard.segments, strict=True)
        if segment.rows
    ]
    bases, numbers = np.array(sorted(places), np.int64).T
    return numbers[bases.searchsorted(ordinals, side="right") - 1]


def _hash(segment: Segment) -> int:
    digest = hashlib.blake2b("\n".join(segment.name).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _mixed(value: int, by: int) -> int:
    """Another 64-bit hash for each `by` (the finalizer of SplitMix64; Steele et al., 2014)."""
    mask = (1 << 64) - 1
    value = (value + by * 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)
