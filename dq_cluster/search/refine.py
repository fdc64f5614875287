"""Re-ranking: the second, longer codes, read for the candidates of a search only.

The idea is that of Jégou, Tavenard, Douze, Amsaleg, "Searching in one billion vectors: re-rank
with source coding" (ICASSP 2011), which faiss calls IndexRefine. Here the second code is of the
embedding itself, so its score has the same definition as the first one's.
"""

import mmap
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from dq_cluster.index.ahead import read_ahead, readers
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import open_code_file, read_second_codes
from dq_cluster.index.manifest import FileEntry, Manifest
from dq_cluster.search.exact import Centroids, ExactScores
from dq_cluster.search.merge import MISSING
from dq_cluster.search.placement import Places
from dq_cluster.search.segments import Segment
from dq_cluster.search.stacked import Stacked
from dq_cluster.storage.scratch import scratch_file


def load_second_codes(index: Index, manifest: Manifest, segment: Segment) -> np.ndarray:
    """The second codes (rows, refine_m) uint8 of a segment, in an unnamed local file.

    The file lies in the folder for temporary files (TMPDIR), is mapped, and goes with the process.
    Raises StorageError where the disk has no room.
    """
    width = manifest.geometry.refine_m
    if not segment.rows:
        return np.empty((0, width), np.uint8)
    with scratch_file(segment.rows * width) as local:
        read = partial(_codes, index, manifest)
        for block in read_ahead(read, segment.files, readers(segment.files)):
            local.write(block)
        local.flush()
        mapped = mmap.mmap(local.fileno(), 0, access=mmap.ACCESS_READ)
    # Candidates lie anywhere: reading ahead would read what nobody asked for.
    mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, np.uint8).reshape(-1, width)


class Refiner:
    """Second codes (rows, refine_m) uint8 of the segments of a shard, deleted rows too."""

    def __init__(
        self, segments: Sequence[np.ndarray], centroids: Centroids, places: Places
    ) -> None:
        self._codes = Stacked(segments, centroids.geometry.code_size)
        self._centroids, self._places = centroids, places

    def embeddings(self, ordinals: np.ndarray) -> np.ndarray:
        """What the second codes of rows (n,) stand for: (n, dim) float32."""
        codes = self._codes[self._places.rows_of(ordinals)]
        return self._centroids.of(codes).astype(np.float32)

    def scores(self, embeddings: np.ndarray, ordinals: np.ndarray) -> np.ndarray:
        """Exact scores (n, c) float32 of the rows `ordinals` (n, c); -inf for missing ones.

        embeddings (n, dim) are what was searched for.
        """
        missing = ordinals == MISSING
        if missing.all():
            return np.full(ordinals.shape, -np.inf, np.float32)
        rows = np.where(missing, 0, self._places.rows_of(ordinals))
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
