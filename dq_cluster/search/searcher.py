"""One shard in one process: codes in a faiss index, searched exactly.

faiss finds candidates quickly. The exact score of a code (see `search.exact`) decides which of
them are the results; equal scores go by ordinal. faiss' own scores differ from it by float
rounding and, for 4-bit fast-scan, by the quantization of its look-up tables (André et al.,
"Quicker ADC", 2019). Both errors are bounded, so a search takes more candidates
until no other code can be among the results. So merged shards equal one index, and fast-scan
loses no accuracy.
"""

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np

from dq_cluster.errors import InputError, IntegrityError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.ahead import readers
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import open_code_file, read_codes
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.models import read_card, read_tensors
from dq_cluster.index.tombstones import deleted_ordinals
from dq_cluster.search import faiss_index
from dq_cluster.search.exact import Centroids, ExactScores
from dq_cluster.search.gpu import Lists
from dq_cluster.search.merge import MISSING, best
from dq_cluster.search.placement import Shard, plan_shards
from dq_cluster.storage.scratch import scratch_memory

_READERS = 4  # at least: a batch of codes is small, however large the file
_TOGETHER = 64  # queries whose candidates are scored at once: what a cache holds
_ROUNDING = 1e-5  # of the largest possible score: generous for float32 sums of 256 terms


class Searcher:
    """Codes of consecutive rows of a version, searchable from several threads at once.

    codes (n, code_size) uint8; codebooks (m, ksub, dsub) float32; for an IVF geometry also cells
    (n,) and coarse_centroids (nlist, dim). `base` is the ordinal of the first row; `deleted` are
    the rows, ascending and counted from it, that have no code here because tombstones name them.
    `simd` names the instruction set that the process was put on (see `faiss_index.choose_simd`).
    `lists`, the same codes on a GPU, answers what it can instead of the processor.
    """

    def __init__(
        self,
        codes: np.ndarray,
        codebooks: np.ndarray,
        geometry: CodeGeometry,
        *,
        cells: np.ndarray | None = None,
        coarse_centroids: np.ndarray | None = None,
        base: int = 0,
        deleted: np.ndarray | None = None,
        index: faiss.Index | None = None,
        lists: Lists | None = None,
    ) -> None:
        self.geometry = geometry
        self.codebooks = codebooks
        self.centroids = Centroids(codebooks, geometry)
        self.base = base
        self.simd = faiss_index.choose_simd(geometry)
        self.codes = codes
        self._lists = lists
        self._deleted = np.empty(0, np.int64) if deleted is None else deleted
        self._skips = self._deleted - np.arange(len(self._deleted))
        if index is not None:
            self._index = index
        elif not geometry.nlist:
            self._index = faiss_index.flat(codes, codebooks, geometry)
        elif cells is not None and coarse_centroids is not None:
            self._index = faiss_index.ivf(codes, cells, codebooks, coarse_centroids, geometry)
        else:
            raise InputError("an IVF geometry needs the cells and the coarse centroids")

    @classmethod
    def load(
        cls,
        index: Index,
        manifest: Manifest,
        shard: Shard | None = None,
        *,
        gpu: bool = False,
    ) -> "Searcher":
        """Load `shard` of a version (by default all of it) from storage, also to the GPU if asked.

        8-bit flat codes are held once, in faiss' memory; other codes also in a temporary file,
        memory-mapped. Raises IntegrityError for a file that disagrees with the manifest, and
        ConfigError where there is no GPU for it; StorageError where storage fails or the disk of
        the temporary file has no room.
        """
        geometry = manifest.geometry
        shard = shard or plan_shards(manifest.files, 1)[0]
        card = read_card(index.storage, manifest.model)
        if card.geometry != geometry:
            raise IntegrityError(
                f"version {manifest.version} has geometry {geometry}, "
                f"its model {card.digest[:12]} has {card.geometry}"
            )
        tensors = read_tensors(index.storage, card)
        deleted = shard.own(deleted_ordinals(index.storage, manifest))
        starts = np.cumsum([0, *(entry.rows for entry in shard.files)])
        before = np.searchsorted(deleted, starts)  # deleted rows before each file
        rows = shard.rows - len(deleted)
        whole = None
        if geometry.nbits == 8 and not geometry.nlist:
            whole = faiss_index.unfilled(rows, tensors["codebooks"], geometry)
            codes = faiss_index.codes_of(whole)
        else:
            codes = _mapped(rows, geometry.code_size)
        cells = np.empty(rows if geometry.nlist else 0, np.int32)

        def fill(number: int) -> None:
            entry = shard.files[number]
            place, row = starts[number] - before[number], 0
            local = index.storage.local(entry.path)
            dead = deleted[before[number] : before[number + 1]] - starts[number]
            with open_code_file(
                index.storage, entry, model=manifest.model, geometry=geometry
            ) as file:
                for stored, found in read_codes(file, geometry, local):
                    here = dead[slice(*np.searchsorted(dead, (row, row + len(stored))))] - row
                    row += len(stored)
                    live = slice(place, place + len(stored) - len(here))
                    codes[live] = np.delete(stored, here, 0) if len(here) else stored
                    if found is not None:
                        cells[live] = np.delete(found, here)
                    place = live.stop

        with ThreadPoolExecutor(max(_READERS, readers(shard.files))) as pool:
            list(pool.map(fill, range(len(shard.files))))
        where: dict[str, np.ndarray] = {}
        if geometry.nlist:
            where = {"cells": cells, "coarse_centroids": tensors["coarse_centroids"]}
        lists = None
        if gpu:
            lists = Lists(codes, tensors["codebooks"], geometry, **where)
            lists.to_gpu()
        return cls(
            codes,
            tensors["codebooks"],
            geometry,
            **where,
            base=shard.base,
            deleted=deleted,
            index=whole,
            lists=lists,
        )

    @property
    def rows(self) -> int:
        return len(self.codes)

    def search(
        self,
        embeddings: np.ndarray,
        k: int,
        *,
        nprobe: int | None = None,
        keep: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best rows for each embedding (n, dim): scores and ordinals, both (n, k).

        Best first, equal scores by ordinal; places that no row fills have score -inf and ordinal
        -1. `nprobe` is the number of cells to look into in an IVF version (default: all); `keep`
        (n,) bool, one for each row from `base` on, restricts the search to some rows.
        """
        queries = np.ascontiguousarray(embeddings, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.geometry.dim:
            raise InputError(
                f"embeddings must have shape (n, {self.geometry.dim}), found {queries.shape}"
            )
        if k < 1:
            raise InputError(f"k must be at least 1, not {k}")
        selection = self._selection(keep, nprobe)
        blocks = [queries[start : start + _TOGETHER] for start in range(0, len(queries), _TOGETHER)]
        answers = [self._search(block, k, *selection) for block in blocks or [queries]]
        return np.vstack([a[0] for a in answers]), np.vstack([a[1] for a in answers])

    def _search(
        self,
        queries: np.ndarray,
        k: int,
        index: faiss.Index,
        codes: np.ndarray,
        kept: np.ndarray | None,
        parameters: faiss.SearchParameters | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`search` for a block of queries in what `_selection` chose."""
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ordinals = np.full((len(queries), k), MISSING, np.int64)
        pending = np.arange(len(queries) if len(codes) else 0)
        depth = 2 * k + 16 if self.geometry.nbits == 4 else k + 8
        while pending.size:
            depth = min(depth, len(codes))
            open_queries = queries[pending]
            scan = index
            if index is self._index and self._lists and self._lists.reach(depth, parameters):
                scan = self._lists
            found, labels = scan.search(open_queries, depth, params=parameters)
            if depth == len(codes) and not self.geometry.nlist:
                # Fast-scan leaves out codes of the lowest inner product that it can express.
                labels = np.tile(np.arange(depth), (len(pending), 1))
            worst = found[:, -1] if self.geometry.metric == "ip" else -found[:, -1]
            exact = ExactScores(open_queries, self.centroids)
            slack = self._slack(open_queries, exact, rounded=scan is not self._lists)
            scored = np.where(labels == MISSING, np.float32(-np.inf), exact.of(codes, labels))
            order = best(scored, labels, k)
            scored = np.take_along_axis(scored, order, axis=1)
            winners = np.take_along_axis(labels, order, axis=1)
            short = labels[:, -1] == MISSING
            everything = (short & (self.geometry.nlist > 0)) | (depth == len(codes))
            done = everything | (~short & (worst + slack < scored[:, -1]))
            rows = winners[done]
            places = rows if kept is None else kept[rows]
            places = self.base + places + np.searchsorted(self._skips, places, side="right")
            scores[pending[done], : rows.shape[1]] = scored[done]
            ordinals[pending[done], : rows.shape[1]] = np.where(rows == MISSING, MISSING, places)
            pending = pending[~done]
            depth *= 4
        return scores, ordinals

    def embedding(self, ordinal: int) -> np.ndarray:
        """What the code of a row stands for: (dim,) float32."""
        row = ordinal - self.base
        code = self.codes[row - np.searchsorted(self._deleted, row)]
        return self.centroids.of(code).astype(np.float32)

    def _slack(self, queries: np.ndarray, exact: ExactScores, *, rounded: bool) -> np.ndarray:
        """By how much (n,) faiss may rate a code below its score, at most.

        rounded: whether by fast-scan's tables, where such codes have them.
        """
        length = np.linalg.norm(queries.astype(np.float64), axis=1)
        slack = _ROUNDING * (length + self.centroids.longest) ** 2
        if rounded and faiss_index.scans_fast(self.geometry):
            # Fast-scan rounds its tables to 255 steps over the span of the widest one: each of
            # the m terms is off by at most half a step.
            slack += np.ptp(exact.tables, axis=0).max(axis=1) * self.geometry.m / 510
        return slack

    def _selection(
        self, keep: np.ndarray | None, nprobe: int | None
    ) -> tuple[faiss.Index, np.ndarray, np.ndarray | None, faiss.SearchParameters | None]:
        """What to search: an index, its codes, the rows these are (None: all), faiss' options."""
        if keep is not None:
            keep = np.delete(keep, self._deleted)
        if self.geometry.nlist:
            probes = min(nprobe or self.geometry.nlist, self.geometry.nlist)
            if keep is None:
                return self._index, self.codes, None, faiss.SearchParametersIVF(nprobe=probes)
            selector = faiss.IDSelectorBitmap(np.packbits(keep, bitorder="little"))
            parameters = faiss.SearchParametersIVF(nprobe=probes, sel=selector)
            return self._index, self.codes, None, parameters
        if keep is None:
            return self._index, self.codes, None, None
        # faiss' flat PQ indexes take no selector; one over the kept codes costs about one scan.
        kept = np.flatnonzero(keep)
        codes = self.codes[kept]
        return faiss_index.flat(codes, self.codebooks, self.geometry), codes, kept, None


def _mapped(rows: int, width: int) -> np.ndarray:
    """An array (rows, width) uint8 in an unnamed temporary file. Raises StorageError."""
    if rows == 0:
        return np.empty((0, width), np.uint8)
    return np.frombuffer(scratch_memory(rows * width), np.uint8).reshape(rows, width)
