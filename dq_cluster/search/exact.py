"""The score of a code: one definition, which no instruction set, batch size, or sharding changes.

It is the inner product of the query with what the code stands for, or minus the squared distance
to it, in double precision, rounded to float32. The dimensions of a sub-space are added up in
order, then the sub-spaces, by single IEEE operations: a matrix product would be faster, but its
order of addition is not defined.
"""

from collections.abc import Iterable
from functools import cached_property, reduce

import numpy as np

from dq_cluster.geometry import CodeGeometry
from dq_cluster.search.stacked import Stacked

_BLOCK = 1 << 20  # terms held at once


class Centroids:
    """The centroids of codebooks (m, ksub, dsub), laid out for scoring: (dsub, ksub, m) float64.

    `longest` is the length of the longest vector that a code can stand for.
    """

    def __init__(self, codebooks: np.ndarray, geometry: CodeGeometry) -> None:
        self.geometry = geometry
        self.by_dimension = np.ascontiguousarray(codebooks.transpose(2, 1, 0), np.float64)
        self.longest = np.sqrt(np.square(self.by_dimension).sum(0).max(0).sum())

    def of(self, codes: np.ndarray) -> np.ndarray:
        """The vectors (…, dim) float64 that packed codes (…, code_size) uint8 stand for."""
        m = self.geometry.m
        at = unpacked(codes, self.geometry) * m + np.arange(m)
        centroids = np.stack([centroid.take(at) for centroid in self.by_dimension], axis=-1)
        return centroids.reshape(*codes.shape[:-1], self.geometry.dim)


class ExactScores:
    """The scores of any codes for the queries (n, dim)."""

    def __init__(self, queries: np.ndarray, centroids: Centroids) -> None:
        self._centroids, self._geometry = centroids.by_dimension, centroids.geometry
        parts = queries.reshape(len(queries), self._geometry.m, self._geometry.dsub)
        self._queries = np.ascontiguousarray(parts.transpose(2, 0, 1), np.float64)

    @cached_property
    def tables(self) -> np.ndarray:
        """What each centroid adds to a distance or inner product: (ksub, n, m) float64."""
        return self._sum(self._queries[:, None], self._centroids[:, :, None])

    def of(self, codes: np.ndarray | Stacked, rows: np.ndarray) -> np.ndarray:
        """Scores (n, k) float32 of the codes (…, code_size) at `rows` (n, k)."""
        pieces = rows.size * self._geometry.m // _BLOCK
        if pieces <= 1:
            return self._of(codes[rows])
        return np.hstack([self._of(codes[part]) for part in np.array_split(rows, pieces, axis=1)])

    def _of(self, codes: np.ndarray) -> np.ndarray:
        n, m = len(codes), self._geometry.m
        parts = unpacked(codes, self._geometry)
        if self._geometry.nbits == 4:
            # There are fewer centroids than codes to score: compute each once.
            terms = self.tables.take(parts * (n * m) + np.arange(n * m).reshape(n, 1, m))
        else:
            at = parts * m + np.arange(m)
            terms = self._sum(
                self._queries[:, :, None], (centroid.take(at) for centroid in self._centroids)
            )
        total = terms.sum(axis=2)
        return (total if self._geometry.metric == "ip" else 0 - total).astype(np.float32)

    def _sum(self, queries: np.ndarray, centroids: Iterable[np.ndarray]) -> np.ndarray:
        """Terms of the metric, added up over the dimensions of a sub-space, the first axis."""
        pairs = zip(queries, centroids, strict=True)
        if self._geometry.metric == "ip":
            return reduce(np.add, (query * centroid for query, centroid in pairs))
        return reduce(np.add, (np.square(query - centroid) for query, centroid in pairs))


def unpacked(codes: np.ndarray, geometry: CodeGeometry) -> np.ndarray:
    """Sub-codes (…, m) intp of packed codes (…, code_size) uint8."""
    parts = np.empty((*codes.shape[:-1], geometry.m), np.intp)
    if geometry.nbits == 8:
        parts[...] = codes
    else:
        parts[..., ::2] = codes & 15
        parts[..., 1::2] = codes >> 4
    return parts
