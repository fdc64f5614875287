"""Shards: the consecutive files of a version, cut into parts of about equal size."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dq_cluster.errors import InputError
from dq_cluster.index.manifest import FileEntry


@dataclass(frozen=True)
class Shard:
    """Consecutive files of a manifest; `base` is the ordinal of their first row."""

    base: int
    files: tuple[FileEntry, ...]

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def own(self, ordinals: np.ndarray) -> np.ndarray:
        """The rows, counted from `base`, of those `ordinals` (n,) that lie in this shard."""
        rows = ordinals - self.base
        return rows[(rows >= 0) & (rows < self.rows)]


def plan_shards(files: Sequence[FileEntry], count: int) -> tuple[Shard, ...]:
    """Cut `files` into `count` shards, each boundary as near to its share of rows as files allow.

    Every shard gets at least one file while there are enough; with fewer files than shards the
    last shards are empty. A function of the manifest only, so every process agrees on it.
    """
    if count < 1:
        raise InputError(f"an index is served from at least 1 shard, not {count}")
    ends = np.concatenate([[0], np.cumsum([file.rows for file in files], dtype=np.int64)])
    cuts = [0]
    for shard in range(1, count):
        nearest = int(np.abs(ends - ends[-1] * shard / count).argmin())
        last = max(len(files) - (count - shard), cuts[-1])
        cuts.append(min(max(nearest, cuts[-1] + 1), last))
    if len(files) < count:
        cuts = [min(shard, len(files)) for shard in range(count)]
    cuts.append(len(files))
    return tuple(
        Shard(int(ends[start]), tuple(files[start:stop]))
        for start, stop in itertools.pairwise(cuts)
    )
