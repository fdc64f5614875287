"""Ways to find candidates in the segments of a shard with faiss: all rows, or some.

Each has `rows`, how many there are to find, and `search(queries (n, dim), depth)`, which returns
faiss' scores (n, depth), best first, and rows of the shard (n, c) among which are those that have
them. MISSING fills up the rows; it is the last one where fewer than `depth` were found, and only
there.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeAlias

import faiss
import numpy as np

from dq_cluster.search import faiss_index
from dq_cluster.search.cells import CellCodes, cells_in
from dq_cluster.search.codebooks import Codebooks
from dq_cluster.search.codes import Codes
from dq_cluster.search.merge import MISSING
from dq_cluster.search.selection import Selection
from dq_cluster.search.slots import Slots

Found: TypeAlias = tuple[np.ndarray, np.ndarray]
_KEYS = 1 << 22  # lists that faiss is told at once, of all queries together


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
    """The rows in the cells nearest to a query.

    faiss sees the lists of all segments as those of one index, so a search is one call. There are
    no numbers of codes: an inverted file says in which list a code is, and where in the list;
    fast-scan cannot, see `search.slots`.
    """

    def __init__(self, segments: Sequence[CellCodes], codebooks: Codebooks) -> None:
        self.rows = sum(map(len, segments))
        self._segments, self._codebooks = segments, codebooks
        geometry = codebooks.geometry
        self._nlist, self._first = geometry.nlist, np.cumsum([0, *map(len, segments)])
        self._sizes, addresses = cells_in(segments)
        self._slots = Slots(self._sizes) if faiss_index.scans_fast(geometry) else None
        self._index = faiss_index.over_lists(
            self._sizes,
            addresses,
            None if self._slots is None else self._slots.addresses,
            codebooks.vectors,
            geometry,
        )

    def search(self, queries: np.ndarray, depth: int, nprobe: int) -> Found:
        """As a Scan does, in the `nprobe` nearest cells."""
        together = max(1, _KEYS // max(1, nprobe * len(self._segments)))
        parts = [
            self._search(queries[start : start + together], depth, nprobe)
            for start in range(0, len(queries), together)
        ]
        if len(parts) == 1:
            return parts[0]
        width = max(labels.shape[1] for _, labels in parts)
        # Wider ones have more candidates, not worse ones: what is added stays on the left.
        wide = [
            np.pad(labels, ((0, 0), (width - labels.shape[1], 0)), constant_values=MISSING)
            for _, labels in parts
        ]
        return np.vstack([scores for scores, _ in parts]), np.vstack(wide)

    def _search(self, queries: np.ndarray, depth: int, nprobe: int) -> Found:
        distances, cells = self._codebooks.nearest_cells(queries, nprobe)
        # Cells of the first segment, then of the second: as `cells_in` puts them.
        segments = len(self._segments)
        keys = (cells[:, None, :] + self._nlist * np.arange(segments)[:, None]).reshape(
            len(queries), -1
        )
        distances = np.tile(distances, segments)
        scores = np.empty((len(queries), depth), np.float32)
        found = np.empty((len(queries), depth), np.int64)
        pointers = (faiss.swig_ptr(array) for array in (keys, distances, scores, found))
        self._index.search_preassigned_c(
            len(queries),
            faiss.swig_ptr(queries),
            depth,
            *pointers,
            self._slots is None,
            faiss.SearchParametersIVF(nprobe=keys.shape[1]),
        )
        if self._slots is None:
            lists, offsets = found >> 32, found & 0xFFFFFFFF
        else:
            lists, offsets = self._slots.resolved(found, keys)
        lists = np.where(found_nothing := lists < 0, 0, lists)
        return scores, np.where(found_nothing, MISSING, self._rows(lists, offsets))

    def _rows(self, lists: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """The rows of the shard at `offsets` of `lists`, of one shape."""
        numbers, cells = np.divmod(lists, self._nlist)
        rows = np.empty(lists.shape, np.int64)
        for number in np.unique(numbers):
            here = numbers == number
            runs = self._segments[number].runs
            if runs.rows:
                rows[here] = self._first[number] + runs.rows_at(
                    runs.starts[cells[here]] + np.maximum(offsets[here], 0)
                )
        return rows


class SelectedCells:
    """The selected rows of segments with cells, copied into lists of their own."""

    def __init__(
        self, segments: Sequence[CellCodes], codebooks: Codebooks, selection: Selection
    ) -> None:
        self.rows, start, taken, copies = selection.count, 0, [], []
        for number, segment in enumerate(segments):
            rows = np.flatnonzero(selection.keeps(number))
            if len(rows):
                cells = segment.runs.cells_of(rows)
                copies.append(
                    CellCodes.of(segment[rows], cells, codebooks.vectors, codebooks.geometry)
                )
                taken.append((start + rows).astype(np.uint32))
            start += len(segment)
        self._rows = np.concatenate([np.empty(0, np.uint32), *taken])
        self._cells = Cells(copies, codebooks)

    def search(self, queries: np.ndarray, depth: int, nprobe: int) -> Found:
        scores, labels = self._cells.search(queries, depth, nprobe)
        rows = self._rows[np.maximum(labels, 0)].astype(np.int64)
        return scores, np.where(labels == MISSING, MISSING, rows)


class InCells:
    """What `Cells`, or the selected rows of them, have in the `nprobe` nearest."""

    def __init__(self, cells: Cells | SelectedCells, nprobe: int) -> None:
        self.rows, self._cells, self._nprobe = cells.rows, cells, nprobe

    def search(self, queries: np.ndarray, depth: int) -> Found:
        return self._cells.search(queries, depth, self._nprobe)


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


def _merged(answers: Sequence[Found], depth: int, *, ip: bool) -> Found:
    """The best `depth` by faiss' scores."""
    if len(answers) == 1:
        return answers[0]
    scores = np.hstack([scores for scores, _ in answers])
    rows = np.hstack([rows for _, rows in answers])
    losses = np.where(rows == MISSING, np.inf, -scores if ip else scores)
    order = np.argsort(losses, axis=1)[:, :depth]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
