"""Which shard has which blocks: a function of the manifest only, so every process agrees."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dq_cluster.errors import InputError
from dq_cluster.index.manifest import FileEntry, Manifest
from dq_cluster.search.segments import Block, cut


class Places:
    """Rows of a shard, counted through its blocks, and their ordinals in the version.

    sizes (n,): rows of each block; bases (n,): the ordinal of its first row, ascending.
    """

    def __init__(self, sizes: Sequence[int], bases: Sequence[int]) -> None:
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self.bases = np.asarray(bases, np.int64)

    @property
    def rows(self) -> int:
        return int(self.starts[-1])

    def ordinals(self, rows: np.ndarray) -> np.ndarray:
        """The ordinals of `rows`, of any shape."""
        blocks = self.starts.searchsorted(rows, side="right") - 1
        return rows + (self.bases - self.starts[:-1])[blocks]

    def rows_of(self, ordinals: np.ndarray) -> np.ndarray:
        """The rows of `ordinals`, of any shape, all of which lie in this shard."""
        blocks = self.bases.searchsorted(ordinals, side="right") - 1
        return ordinals + (self.starts[:-1] - self.bases)[blocks]

    def own(self, ordinals: np.ndarray) -> np.ndarray:
        """The rows of those `ordinals` (n,), ascending, that lie in this shard."""
        if not len(self.bases):
            return ordinals[:0]
        blocks = self.bases.searchsorted(ordinals, side="right") - 1
        ends = self.bases + np.diff(self.starts)
        return self.rows_of(ordinals[(blocks >= 0) & (ordinals < ends[blocks])])


class Layout(NamedTuple):
    """A version in so many shards: what a replica loads its part of, and a query is asked of."""

    version: int
    shards: int


@dataclass(frozen=True)
class Shard:
    """Blocks of a version, in its order, and the ordinal of the first row of each."""

    blocks: tuple[Block, ...]
    bases: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(block.rows for block in self.blocks)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        return tuple(file for block in self.blocks for file in block.files)

    @property
    def places(self) -> Places:
        return Places([block.rows for block in self.blocks], self.bases)


def plan_shards(manifest: Manifest, count: int) -> tuple[Shard, ...]:
    """Deal the blocks of a version out to `count` shards. Raises InputError for none.

    See `place`. With fewer blocks than shards some are empty.
    """
    if count < 1:
        raise InputError(f"an index is served from at least 1 shard, not {count}")
    blocks = cut(manifest)
    bases = np.cumsum([0, *(block.rows for block in blocks)]).tolist()
    parts: list[list[int]] = [[] for _ in range(count)]
    for number, shard in enumerate(place(blocks, count)):
        parts[shard].append(number)
    return tuple(
        Shard(tuple(blocks[n] for n in part), tuple(bases[n] for n in part)) for part in parts
    )


def place(blocks: Sequence[Block], count: int) -> list[int]:
    """The shard of each block. Equally many rows in each, as far as blocks allow.

    Starts from one shard and adds the others one by one. Each takes its share of the blocks and
    no block moves between older shards, so one more shard moves as little as possible. A hash
    chooses (Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm", 2014), except
    where a shard would exceed its share of the rows so far (Mirrokni, Thorup, Zadimoghaddam,
    "Consistent Hashing with Bounded Loads", 2018). Only the blocks before count as "so far":
    what is appended later moves none of them.
    """
    homes = [0] * len(blocks)
    hashes = [_hash(block) for block in blocks]
    for new in range(1, count):
        loads, seen = [0] * (new + 1), 0
        for number, block in enumerate(blocks):
            seen += block.rows
            first, other = homes[number], new
            if _mixed(hashes[number], new) * (new + 1) < 1 << 64:
                first, other = other, first
            over = (loads[first] + block.rows) * (new + 1) > seen
            if over and (loads[other], other) < (loads[first], first):
                first = other
            homes[number] = first
            loads[first] += block.rows
    return homes


def owners(shards: Sequence[Shard], ordinals: np.ndarray) -> np.ndarray:
    """The numbers (n,) of the shards that have the rows `ordinals` (n,)."""
    # A block without rows has none of them.
    places = [
        (base, number)
        for number, shard in enumerate(shards)
        for base, block in zip(shard.bases, shard.blocks, strict=True)
        if block.rows
    ]
    bases, numbers = np.array(sorted(places), np.int64).T
    return numbers[bases.searchsorted(ordinals, side="right") - 1]


def _hash(block: Block) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for file in block.files:
        digest.update(f"{file.path} {file.sha256}\n".encode())
    return int.from_bytes(digest.digest(), "little")


def _mixed(value: int, by: int) -> int:
    """Another 64-bit hash for each `by` (the finalizer of SplitMix64; Steele et al., 2014)."""
    mask = (1 << 64) - 1
    value = (value + by * 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)
