"""Re-ranking: the second, longer codes of a shard, read for the candidates of a search only.

The idea is that of Jégou, Tavenard, Douze, Amsaleg, "Searching in one billion vectors: re-rank
with source coding" (ICASSP 2011), which faiss calls IndexRefine. Here the second code is of the
embedding itself, so its score has the same definition as the first one's.
"""

import mmap
from collections.abc import Iterator
from functools import partial

import numpy as np

from dq_cluster.index.ahead import read_ahead, readers
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import open_code_file, read_second_codes
from dq_cluster.index.manifest import FileEntry, Manifest
from dq_cluster.index.models import read_card, read_tensors
from dq_cluster.search.exact import Centroids, ExactScores
from dq_cluster.search.merge import MISSING
from dq_cluster.search.placement import Shard, plan_shards
from dq_cluster.storage.scratch import scratch_file


class Refiner:
    """Second codes (rows, refine_m) uint8 of a shard, by ordinal; deleted rows keep their place."""

    def __init__(self, codes: np.ndarray, centroids: Centroids, base: int = 0) -> None:
        self._codes, self._centroids, self._base = codes, centroids, base

    @classmethod
    def load(cls, index: Index, manifest: Manifest, shard: Shard | None = None) -> "Refiner | None":
        """Copy the second codes of `shard` (by default of the version) to an unnamed local file.

        The file lies in the folder for temporary files (TMPDIR) and goes with the process. None
        where the version has no second codes. Raises StorageError where the disk has no room.
        """
        geometry = manifest.geometry.refine
        if geometry is None:
            return None
        shard = shard or plan_shards(manifest.files, 1)[0]
        codes = np.empty((0, geometry.code_size), np.uint8)
        if shard.rows:
            with scratch_file(shard.rows * geometry.code_size) as local:
                read = partial(_codes, index, manifest)
                for block in read_ahead(read, shard.files, readers(shard.files)):
                    local.write(block)
                local.flush()
                mapped = mmap.mmap(local.fileno(), 0, access=mmap.ACCESS_READ)
            # Candidates lie anywhere: reading ahead would read what nobody asked for.
            mapped.madvise(mmap.MADV_RANDOM)
            codes = np.frombuffer(mapped, np.uint8).reshape(-1, geometry.code_size)
        tensors = read_tensors(index.storage, read_card(index.storage, manifest.model))
        return cls(codes, Centroids(tensors["refine_codebooks"], geometry), shard.base)

    def embedding(self, ordinal: int) -> np.ndarray:
        """What the second code of a row stands for: (dim,) float32."""
        return self._centroids.of(self._codes[ordinal - self._base]).astype(np.float32)

    def scores(self, embeddings: np.ndarray, ordinals: np.ndarray) -> np.ndarray:
        """Exact scores (n, c) float32 of the rows `ordinals` (n, c); -inf for missing ones.

        embeddings (n, dim) are what was searched for.
        """
        missing = ordinals == MISSING
        if missing.all():
            return np.full(ordinals.shape, -np.inf, np.float32)
        rows = np.where(missing, 0, ordinals - self._base)
        queries = np.ascontiguousarray(embeddings, np.float32)
        scores = ExactScores(queries, self._centroids).of(self._codes, rows)
        return np.where(missing, np.float32(-np.inf), scores)


def _codes(index: Index, manifest: Manifest, entry: FileEntry) -> Iterator[bytes]:
    """The second codes of a code file, some rows at a time."""
    local = index.storage.local(entry.path)
    with open_code_file(
        index.storage, entry, model=manifest.model, geometry=manifest.geometry
    ) as file:
        for codes in read_second_codes(file, manifest.geometry, local):
            yield codes.tobytes()
