"""Ways to find candidates in the segments of a shard with faiss: all rows, or some.

Each has `rows`, how many there are to find, and `search(queries (n, dim), depth)`, which returns
faiss' scores and the rows of the shard that have them, both (n, depth), best first; MISSING where
there are no more.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeAlias

import faiss
import numpy as np

from dq_cluster.search import faiss_index
from dq_cluster.search.codebooks import Codebooks
from dq_cluster.search.codes import Codes
from dq_cluster.search.merge import MISSING
from dq_cluster.search.selection import Selection

Found: TypeAlias = tuple[np.ndarray, np.ndarray]


class Scan(Protocol):
    rows: int

    def search(self, queries: np.ndarray, depth: int) -> Found: ...


class Flat:
    """Every row of segments without cells."""

    def __init__(self, segments: Sequence[Codes], codebooks: Codebooks) -> None:
        self.rows = sum(map(len, segments))
        filled = [segment.index for segment in segments if len(segment)]
        if len(filled) == 1:
            self._index = filled[0]
            return
        self._index = faiss.IndexShards(codebooks.geometry.dim, False, True)
        for index in filled:
            self._index.add_shard(index)

    def search(self, queries: np.ndarray, depth: int) -> Found:
        return self._index.search(queries, depth)


class SelectedFlat:
    """The selected rows of segments without cells.

    faiss' flat PQ indexes take no selector, so the selected codes are copied into indexes of their
    own, one for each segment. They are kept if `keep`, or else made again for every search, one at
    a time.
    """

    def __init__(
        self, segments: Sequence[Codes], codebooks: Codebooks, selection: Selection, *, keep: bool
    ) -> None:
        self.rows = selection.count
        self._segments, self._codebooks, self._selection = segments, codebooks, selection
        self._kept = list(self._indexes()) if keep else None
        self._ip = codebooks.geometry.metric == "ip"

    def search(self, queries: np.ndarray, depth: int) -> Found:
        indexes = self._indexes() if self._kept is None else self._kept
        answers = []
        for index, rows in indexes:
            scores, labels = index.search(queries, depth)
            ordinals = rows[labels].astype(np.int64)
            answers.append((scores, np.where(labels == MISSING, MISSING, ordinals)))
        return _merged(answers, depth, ip=self._ip)

    def _indexes(self) -> Iterable[tuple[faiss.Index, np.ndarray]]:
        """An index for each segment that has selected rows, and these rows of the shard."""
        start = 0
        for number, segment in enumerate(self._segments):
            rows = np.flatnonzero(self._selection.keeps(number))
            if len(rows):
                codes = segment.codes[rows]
                index = faiss_index.flat(codes, self._codebooks.vectors, self._codebooks.geometry)
                yield index, (start + rows).astype(np.uint32)
            start += len(segment)


class Cells:
    """The rows in the `nprobe` cells nearest to a query, or the selected ones among them."""

    def __init__(
        self,
        segments: Sequence[Codes],
        codebooks: Codebooks,
        nprobe: int,
        selection: Selection | None = None,
    ) -> None:
        self.rows = sum(map(len, segments))
        self._segments, self._nprobe, self._selection = segments, nprobe, selection
        self._codebooks, self._ip = codebooks, codebooks.geometry.metric == "ip"

    def search(self, queries: np.ndarray, depth: int) -> Found:
        distances, cells = self._codebooks.nearest_cells(queries, self._nprobe)
        answers, start = [], 0
        for number, segment in enumerate(self._segments):
            if len(segment):
                scores, labels = _in_cells(
                    segment.index, queries, depth, distances, cells, self._parameters(number)
                )
                answers.append((scores, np.where(labels == MISSING, MISSING, start + labels)))
            start += len(segment)
        return _merged(answers, depth, ip=self._ip)

    def _parameters(self, segment: int) -> faiss.SearchParametersIVF:
        if self._selection is None:
            return faiss.SearchParametersIVF(nprobe=self._nprobe)
        selector = faiss.IDSelectorBitmap(self._selection.bits(segment))
        return faiss.SearchParametersIVF(nprobe=self._nprobe, sel=selector)


class OnGpu:
    """Like `Flat` or `Cells`, on a GPU."""

    def __init__(self, segments: Sequence[Codes], codebooks: Codebooks, nprobe: int) -> None:
        self.rows = sum(map(len, segments))
        self._segments, self._nprobe = segments, nprobe
        self._ip = codebooks.geometry.metric == "ip"

    def reach(self, depth: int) -> bool:
        """Whether a GPU can answer such a search."""
        return all(
            segment.lists is not None and segment.lists.reach(depth, self._nprobe)
            for segment in self._segments
        )

    def search(self, queries: np.ndarray, depth: int) -> Found:
        answers, start = [], 0
        for segment in self._segments:
            if segment.lists is not None and len(segment):
                scores, labels = segment.lists.search(queries, depth, self._nprobe)
                answers.append((scores, np.where(labels == MISSING, MISSING, start + labels)))
            start += len(segment)
        return _merged(answers, depth, ip=self._ip)


def _in_cells(
    index: faiss.IndexIVF,
    queries: np.ndarray,
    depth: int,
    distances: np.ndarray,
    cells: np.ndarray,
    parameters: faiss.SearchParametersIVF,
) -> Found:
    """faiss' search_preassigned with parameters, which its Python wrapper does not take."""
    scores = np.empty((len(queries), depth), np.float32)
    labels = np.empty((len(queries), depth), np.int64)
    pointers = (faiss.swig_ptr(array) for array in (cells, distances, scores, labels))
    index.search_preassigned_c(
        len(queries), faiss.swig_ptr(queries), depth, *pointers, False, parameters
    )
    return scores, labels


def _merged(answers: Sequence[Found], depth: int, *, ip: bool) -> Found:
    """The best `depth` by faiss' scores."""
    if len(answers) == 1:
        return answers[0]
    scores = np.hstack([scores for scores, _ in answers])
    rows = np.hstack([rows for _, rows in answers])
    losses = np.where(rows == MISSING, np.inf, -scores if ip else scores)
    order = np.argsort(losses, axis=1)[:, :depth]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
