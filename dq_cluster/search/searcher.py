"""One shard in one process: segments of codes, searched exactly.

faiss finds candidates quickly. The exact score of a code (see `search.exact`) decides which of
them are the results; equal scores go by ordinal. faiss' own scores differ from it by float
rounding and, for 4-bit fast-scan, by the quantization of its look-up tables (André et al.,
"Quicker ADC", 2019). Both errors are bounded, so a search takes more candidates
until no other code can be among the results. So merged shards equal one index, and fast-scan
loses no accuracy.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np

from dq_cluster.errors import InputError
from dq_cluster.search import faiss_index
from dq_cluster.search.cells import RUN_BYTES, CellCodes
from dq_cluster.search.codebooks import Codebooks
from dq_cluster.search.codes import Codes
from dq_cluster.search.exact import ExactScores
from dq_cluster.search.merge import MISSING, best
from dq_cluster.search.placement import Places
from dq_cluster.search.scan import Cells, Flat, InCells, OnGpu, Scan, SelectedCells, SelectedFlat
from dq_cluster.search.selection import Selection
from dq_cluster.search.stacked import Stacked

_TOGETHER = 64  # queries whose candidates are scored at once: what a cache holds
_ROUNDING = 1e-5  # of the largest possible score: generous for float32 sums of 256 terms
_LARGE_SHARE = 0.25  # of the rows: where so many may be found, the others are passed over
_LARGE_SHARE_OF_CELLS = 1 / 64  # copying rows costs more than scoring some thousand
_LEAST_ROOM = 32 << 20
_PASSED = 8  # times the usual candidates over the share: then no more are passed over


class Searcher:
    """Segments of a version, searchable from several threads at once.

    places: the ordinals of their rows (default: these are counted from 0).
    live: the rows that are not deleted (default: all). `room`: bytes that may be taken to keep
    selections (see `weight`); the codes of one that weighs more than half of it are copied again
    for every search. `simd` names the instruction set that the
    process was put on (see `faiss_index.choose_simd`).
    """

    def __init__(
        self,
        segments: Sequence[Codes],
        codebooks: Codebooks,
        places: Places | None = None,
        live: Selection | None = None,
    ) -> None:
        self.geometry = codebooks.geometry
        self.places = places or Places([sum(map(len, segments))], [0])
        self.simd = faiss_index.choose_simd(self.geometry)
        self._segments, self._codebooks, self._live = segments, codebooks, live
        self.codes = Stacked([segment.codes for segment in segments], self.geometry.code_size)
        self._in_order = [s.codes for s in segments if isinstance(s.codes, CellCodes)]
        self._whole: Flat | Cells
        if self.geometry.nlist:
            self._whole = Cells(self._in_order, codebooks)
        else:
            self._whole = Flat(segments, codebooks)
        self._share = _LARGE_SHARE_OF_CELLS if self.geometry.nlist else _LARGE_SHARE
        self._selected: WeakKeyDictionary[Selection, SelectedFlat | SelectedCells] = (
            WeakKeyDictionary()
        )
        self.room = max(_LEAST_ROOM, len(self.codes) * self.geometry.code_size // 8)
        self._listed = bool(segments) and all(segment.lists is not None for segment in segments)

    @property
    def rows(self) -> int:
        """Rows that a search can find: not those that are deleted."""
        return self.places.rows if self._live is None else self._live.count

    def search(
        self,
        embeddings: np.ndarray,
        k: int,
        *,
        nprobe: int | None = None,
        keep: Selection | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best rows for each embedding (n, dim): scores and ordinals, both (n, k).

        Best first, equal scores by ordinal; places that no row fills have score -inf and ordinal
        -1. `nprobe` is the number of cells to look into in an IVF version (default: all); `keep`
        restricts the search to some rows, none of them deleted.
        """
        queries = np.ascontiguousarray(embeddings, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.geometry.dim:
            raise InputError(
                f"embeddings must have shape (n, {self.geometry.dim}), found {queries.shape}"
            )
        if k < 1:
            raise InputError(f"k must be at least 1, not {k}")
        probes = min(nprobe or self.geometry.nlist, self.geometry.nlist)
        if len(queries) <= _TOGETHER:
            return self._search(queries, k, probes, keep)
        blocks = [queries[start : start + _TOGETHER] for start in range(0, len(queries), _TOGETHER)]
        answers = [self._search(block, k, probes, keep) for block in blocks]
        return np.vstack([a[0] for a in answers]), np.vstack([a[1] for a in answers])

    def weight(self, rows: Selection) -> int:
        """Bytes that keeping a selection takes, with what makes searching in it fast."""
        copied = rows.count < self._share * rows.rows
        beside = 4 + (RUN_BYTES if self.geometry.nlist else 0)
        return rows.nbytes + copied * rows.count * (self.geometry.code_size + beside)

    def embeddings(self, ordinals: np.ndarray) -> np.ndarray:
        """What the codes of rows (n,) stand for: (n, dim) float32."""
        codes = self.codes[self.places.rows_of(ordinals)]
        return self._codebooks.centroids.of(codes).astype(np.float32)

    def _search(
        self, queries: np.ndarray, k: int, nprobe: int, keep: Selection | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`search` for a block of queries."""
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ordinals = np.full((len(queries), k), MISSING, np.int64)
        rows = keep or self._live
        count = self.places.rows if rows is None else rows.count
        pending = np.arange(len(queries) if count else 0)
        first = 2 * k + 16 if self.geometry.nbits == 4 else k + 8
        passing = count >= self._share * self.places.rows
        depth = int(first * self.places.rows / count) if passing and count else first
        while pending.size:
            if passing and rows is not None and depth > _PASSED * first / self._share:
                passing, depth = False, first
            scan = self._scan(nprobe, None if passing else rows, depth)
            depth = min(depth, scan.rows)
            open_queries = queries[pending]
            values, labels = scan.search(open_queries, depth)
            if depth == scan.rows and not self.geometry.nlist:
                # Fast-scan leaves out codes of the lowest inner product that it can express.
                every = np.arange(depth) if passing or rows is None else rows.every()
                labels = np.tile(every, (len(pending), 1))
            worst = values[:, -1] if self.geometry.metric == "ip" else -values[:, -1]
            short = labels[:, -1] == MISSING
            if passing and rows is not None:
                labels = np.where(rows.holds(labels), labels, MISSING)
            exact = ExactScores(open_queries, self._codebooks.centroids)
            slack = self._slack(open_queries, exact, rounded=not isinstance(scan, OnGpu))
            scored = exact.of(self.codes, labels)
            scored[labels == MISSING] = -np.inf
            at = np.arange(len(pending))[:, None], best(scored, labels, k)
            scored, winners = scored[at], labels[at]
            everything = (short & (self.geometry.nlist > 0)) | (depth == scan.rows)
            done = everything | (~short & (worst + slack < scored[:, -1]))
            places = winners[done]
            there = np.where(places == MISSING, MISSING, self.places.ordinals(places))
            if there.shape == scores.shape:  # all at once, as nearly always
                return scored, there
            scores[pending[done], : places.shape[1]] = scored[done]
            ordinals[pending[done], : places.shape[1]] = there
            pending = pending[~done]
            depth *= 4
        return scores, ordinals

    def _scan(self, nprobe: int, only: Selection | None, depth: int) -> Scan:
        if only is None and self._listed:
            on_gpu = OnGpu(self._segments, self._codebooks, nprobe)
            if on_gpu.reach(depth):
                return on_gpu
        if only is None:
            return InCells(self._whole, nprobe) if isinstance(self._whole, Cells) else self._whole
        scan = self._selected.get(only)
        if scan is None:
            lasting = self.weight(only) <= self.room // 2
            scan = self._copied(only, keep=lasting)
            if lasting or isinstance(scan, SelectedFlat):
                self._selected[only] = scan
        return scan if isinstance(scan, SelectedFlat) else InCells(scan, nprobe)

    def _copied(self, only: Selection, *, keep: bool) -> SelectedFlat | SelectedCells:
        if isinstance(self._whole, Cells):
            return SelectedCells(self._in_order, self._codebooks, only)
        return SelectedFlat(self._segments, self._codebooks, only, keep=keep)

    def _slack(self, queries: np.ndarray, exact: ExactScores, *, rounded: bool) -> np.ndarray:
        """By how much (n,) faiss may rate a code below its score, at most.

        rounded: whether by fast-scan's tables, where such codes have them.
        """
        length = np.sqrt(np.square(queries, dtype=np.float64).sum(axis=1))
        slack = _ROUNDING * (length + self._codebooks.centroids.longest) ** 2
        if rounded and faiss_index.scans_fast(self.geometry):
            # Fast-scan rounds its tables to 255 steps over the span of the widest one: each of
            # the m terms is off by at most half a step.
            spans = exact.tables.max(axis=0) - exact.tables.min(axis=0)
            slack += spans.max(axis=1) * self.geometry.m / 510
        return slack
