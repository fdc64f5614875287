"""The codes of a segment in order of their cell: an inverted list is a range of one array.

The rows of a code file lie in order of their cell, so a list is a few runs of consecutive rows, one
from each file. The first row and the place of every run say where a row is and which row is at a
place: `RUN_BYTES` for each run, where a number for each code would take eight bytes.

For 4-bit fast-scan a list begins at a full block of 32 codes, and the codes are packed where they
lie, so that they are in memory once at any moment.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from dq_cluster.geometry import CodeGeometry
from dq_cluster.search import faiss_index
from dq_cluster.search.faiss_index import BLOCK

RUN_BYTES = 12
LIST_BYTES = 64  # of each list of each segment: rows, places, addresses, for faiss and for us
_PACKED_AT_ONCE = BLOCK << 11  # codes


class Runs:
    """Where the rows of a segment are. Runs (r,) in order of their first row.

    A place counts codes in order of their cell, with those that fill up the last block of a list.
    `starts` (nlist,) are the places where the lists begin, `sizes` (nlist,) their rows.
    """

    def __init__(self, cells: Iterable[np.ndarray], nlist: int, block: int) -> None:
        """cells: of consecutive rows, piece by piece. block: codes to which a list is filled up."""
        firsts, numbers, rows = [], [], 0
        for piece in cells:
            if len(piece):
                begin = np.flatnonzero(np.diff(piece, prepend=-1))
                firsts.append((rows + begin).astype(np.uint32))
                numbers.append(piece[begin])
                rows += len(piece)
        self.rows = rows
        self._first = np.concatenate([np.empty(0, np.uint32), *firsts])
        del firsts
        cell = np.concatenate([np.empty(0, np.int32), *numbers])
        del numbers
        lengths = np.diff(self._first, append=np.uint32(rows))
        self.sizes = np.bincount(cell, lengths, nlist).astype(np.int64)
        filled = -(-self.sizes // block) * block
        self.starts = np.cumsum(filled) - filled
        self.places = int(filled.sum())
        self._by_place = np.argsort(cell, kind="stable").astype(np.uint32)
        # How far the codes of a list are shifted by what fills up the lists before.
        shift = self.starts - (np.cumsum(self.sizes) - self.sizes)
        ordered = lengths[self._by_place]
        place = np.cumsum(ordered, dtype=np.int64) - ordered + shift[cell[self._by_place]]
        self._place = np.empty(len(place), np.uint32)
        self._place[self._by_place] = place

    @property
    def nbytes(self) -> int:
        return self._first.nbytes + self._place.nbytes + self._by_place.nbytes

    def places_of(self, rows: np.ndarray) -> np.ndarray:
        """The places of `rows`, of any shape."""
        run = self._first.searchsorted(rows, side="right") - 1
        return self._place[run].astype(np.int64) + (rows - self._first[run])

    def rows_at(self, places: np.ndarray) -> np.ndarray:
        """The rows at `places`, of any shape, none of them filling up a list."""
        at = self._place.searchsorted(places, side="right", sorter=self._by_place) - 1
        run = self._by_place[at]
        return self._first[run].astype(np.int64) + (places - self._place[run])

    def cells_of(self, rows: np.ndarray) -> np.ndarray:
        """The cells (n,) int64 of `rows` (n,)."""
        return self.starts.searchsorted(self.places_of(rows), side="right") - 1

    def between(self, first: int, last: int) -> np.ndarray:
        """The places (last - first,) of consecutive rows; quicker than `places_of`."""
        if first == last:
            return np.empty(0, np.int64)
        runs = slice(
            int(self._first.searchsorted(first, side="right")) - 1,
            int(self._first.searchsorted(last, side="left")),
        )
        begin = self._first[runs].astype(np.int64)
        lengths = np.diff(np.maximum(begin, first), append=last)
        return np.repeat(self._place[runs] - begin, lengths) + np.arange(first, last)


class CellCodes:
    """Codes (n, code_size) uint8 of a segment, indexed by row, in order of their cell.

    cells: of consecutive rows, piece by piece; read: calls for the codes of consecutive rows, piece
    by piece, once the place of each is known.
    """

    def __init__(
        self,
        cells: Iterable[np.ndarray],
        read: Callable[[], Iterator[np.ndarray]],
        codebooks: np.ndarray,
        geometry: CodeGeometry,
    ) -> None:
        self._packed = faiss_index.scans_fast(geometry)
        self.runs = Runs(cells, geometry.nlist, BLOCK if self._packed else 1)
        # Zeros, which fill up lists, take no memory until somebody writes beside them.
        self._codes = np.zeros((self.runs.places, geometry.code_size), np.uint8)
        row = 0
        for codes in read():
            self._codes[self.runs.between(row, row + len(codes))] = codes
            row += len(codes)
        if self._packed:
            for start in range(0, len(self._codes), _PACKED_AT_ONCE):
                part = self._codes[start : start + _PACKED_AT_ONCE]
                part[:] = faiss_index.packed(part, codebooks, geometry)

    @classmethod
    def of(
        cls, codes: np.ndarray, cells: np.ndarray, codebooks: np.ndarray, geometry: CodeGeometry
    ) -> "CellCodes":
        """Those of codes (n, code_size) and cells (n,) in memory."""
        return cls([cells.astype(np.int32)], lambda: iter([codes]), codebooks, geometry)

    def __len__(self) -> int:
        return self.runs.rows

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The codes (…, code_size) of `rows` (…); a negative one gives any code."""
        places = self.runs.places_of(np.maximum(rows, 0))
        if self._packed:
            return faiss_index.unpacked(self._codes, places)
        return self._codes[places]

    @property
    def addresses(self) -> np.ndarray:
        """Where in memory each list begins: (nlist,) uint64."""
        first = self._codes.ctypes.data
        return (first + self.runs.starts * self._codes.shape[1]).astype(np.uint64)


def cells_in(segments: Sequence[CellCodes]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and address of every list of `segments`, one segment after the other: (l,), (l,)."""
    sizes = [segment.runs.sizes for segment in segments]
    return (
        np.concatenate([np.empty(0, np.int64), *sizes]),
        np.concatenate([np.empty(0, np.uint64), *(segment.addresses for segment in segments)]),
    )
