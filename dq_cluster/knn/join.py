"""The nearest codes of many queries at once: each list of codes is read for all that want it.

A search scans lists for a few queries; a join has them all, so it multiplies. The codes of a list
are decoded once, one matrix product rates them for every query that looks into the list, and only
what beats a query's worst candidate so far is looked at again. Searching by buckets is the idea of
faiss' `big_batch_search`; rating by a matrix product is that of Johnson, Douze, Jégou,
"Billion-scale similarity search with GPUs" (2017).

Products are in single precision, so they only find candidates. As in `search.searcher`, the exact
score decides, and a query whose candidates do not settle its answer is searched for again. So
the answers are those of a search, to the bit.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from dq_cluster.knn.candidates import Candidates
from dq_cluster.search.exact import ExactScores
from dq_cluster.search.merge import MISSING, best
from dq_cluster.search.shard import LoadedShard

_ROUNDING = 1e-5  # of the largest possible score, as `search.searcher` has it
_MORE = 8  # candidates beside the k, so that rounding hardly ever leaves an answer open
_AT_ONCE = 64  # queries whose cells are found together, and whose candidates are scored
_ENTRIES = 5 << 19  # candidates of the queries that a thread has in hand: some 200 MiB with all
_QUERIES, _CODES = 512, 4096  # of one product, at most
_FOLDS = (16, 8, 4, 2, 1)


class Join:
    """Joins queries with the living codes of a version, on `threads` threads.

    Holds 8 bytes for each code beside the shard, and about 200 MiB for each thread.
    """

    def __init__(self, shard: LoadedShard, threads: int) -> None:
        self._shard, self._threads = shard, threads
        self._books, self._geometry = shard.codebooks, shard.manifest.geometry
        self._codes = shard.searcher.codes
        alive = np.zeros(len(self._codes), bool)
        alive[shard.living(np.arange(len(alive)))] = True
        self._rows, self._starts = _lists(shard, alive)

    def search(
        self, queries: np.ndarray, k: int, *, nprobe: int = 0, within: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best codes of each query (n, dim): scores float32 and ordinals, both (n, k).

        What `Searcher.search` returns. nprobe: cells to look into, 0 for all. within: what scores
        less may be left out.
        """
        size = max(1, _ENTRIES // (k + _MORE) // _AT_ONCE) * _AT_ONCE
        share = -(-len(queries) // self._threads // _AT_ONCE) * _AT_ONCE
        size = max(_AT_ONCE, min(size, share))
        parts = [queries[start : start + size] for start in range(0, len(queries), size)]
        with ThreadPoolExecutor(self._threads) as pool:
            answers = list(pool.map(lambda part: self._search(part, k, nprobe, within), parts))
        none = np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        answers.append(none)
        return np.vstack([a[0] for a in answers]), np.vstack([a[1] for a in answers])

    def _search(
        self, queries: np.ndarray, k: int, nprobe: int, within: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        torch.set_num_threads(1)  # the threads are these
        queries = np.ascontiguousarray(queries, np.float32)
        ip = self._geometry.metric == "ip"
        squares = np.square(queries, dtype=np.float64).sum(axis=1)
        slack = _ROUNDING * (np.sqrt(squares) + self._books.centroids.longest) ** 2
        least = np.full(len(queries), -np.inf)
        if within is not None:  # as products say it: q·y, or q·y - y²/2
            least = within - slack if ip else (within - slack + squares) / 2
        depth = min(k + _MORE, max(len(self._rows), 1))
        found = Candidates(least.astype(np.float32), depth)
        wide = torch.from_numpy(np.hstack([queries, np.ones((len(queries), 1), np.float32)]))
        for rows, asking in self._meetings(queries, nprobe):
            for low in range(0, len(rows), _CODES):
                self._rate(wide, asking, rows[low : low + _CODES], found)
        values, rows = found.best()
        worst = values[:, -1].astype(np.float64) if ip else 2 * values[:, -1] - squares
        full = rows[:, -1] != MISSING
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ordinals = np.full((len(queries), k), MISSING, np.int64)
        for start in range(0, len(queries), _AT_ONCE):
            here = slice(start, start + _AT_ONCE)
            scored = ExactScores(queries[here], self._books.centroids).of(self._codes, rows[here])
            scored[rows[here] == MISSING] = -np.inf
            at = np.arange(len(scored))[:, None], best(scored, rows[here], k)
            width = at[1].shape[1]
            scores[here, :width], ordinals[here, :width] = scored[at], rows[here][at]
        # Where fewer than `depth` were found, there are no others.
        settled = ~full | (depth == len(self._rows)) | (worst + slack < scores[:, -1])
        open_ = np.flatnonzero(~settled)
        if len(open_):
            self._search_again(queries, open_, k, nprobe, scores, ordinals)
        return scores, ordinals

    def _search_again(
        self,
        queries: np.ndarray,
        places: np.ndarray,
        k: int,
        nprobe: int,
        scores: np.ndarray,
        ordinals: np.ndarray,
    ) -> None:
        """Have the queries at `places` answered by a search, equal ones once, and fill them in."""
        unique, back = np.unique(queries[places], axis=0, return_inverse=True)
        again = self._shard.searcher.search(unique, k, nprobe=nprobe or None)
        scores[places], ordinals[places] = again[0][back.ravel()], again[1][back.ravel()]

    def _meetings(
        self, queries: np.ndarray, nprobe: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Lists of rows, and the queries (their places, ascending) that look into each.

        Every query's nearest cell comes first: it says what the others must beat.
        """
        lists = len(self._starts) - 1
        if not nprobe or nprobe >= lists:
            yield self._rows, np.arange(len(queries))
            return
        blocks = range(0, len(queries), _AT_ONCE)
        cells = np.vstack(
            [self._books.nearest_cells(queries[at : at + _AT_ONCE], nprobe)[1] for at in blocks]
        )
        for columns in (cells[:, :1], cells[:, 1:]):
            order = np.argsort(columns, axis=None, kind="stable")
            bounds = np.searchsorted(columns.ravel()[order], np.arange(lists + 1))
            asking = order // max(columns.shape[1], 1)
            for number in np.flatnonzero(np.diff(bounds) * np.diff(self._starts)):
                rows = self._rows[self._starts[number] : self._starts[number + 1]]
                yield rows, asking[bounds[number] : bounds[number + 1]]

    def _rate(
        self, wide: torch.Tensor, asking: np.ndarray, rows: np.ndarray, found: Candidates
    ) -> None:
        """Offer the codes of `rows` to the queries `asking`. wide (n, dim + 1): queries and a 1."""
        width = -(-len(rows) // _FOLDS[0]) * _FOLDS[0]
        codes = np.zeros((width, self._geometry.dim + 1), np.float32)
        codes[: len(rows), :-1] = self._books.centroids.of(self._codes[rows])
        codes[len(rows) :, -1] = -np.inf  # what fills up is never found
        if self._geometry.metric == "l2":
            codes[: len(rows), -1] = -np.square(codes[: len(rows), :-1]).sum(axis=1) / 2
        fold = next((f for f in _FOLDS if width // f >= found.depth), 1)
        turned = torch.from_numpy(codes).T
        for low in range(0, len(asking), _QUERIES):
            queries = asking[low : low + _QUERIES]
            some = wide[int(queries[0]) : int(queries[-1]) + 1]
            if len(some) != len(queries):
                some = wide[torch.from_numpy(queries)]
            found.offer(queries, rows, some @ turned, fold)


def _lists(shard: LoadedShard, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The living rows (n,), cell by cell, and where each cell begins (nlist + 1,); without cells
    one list."""
    nlist, start = shard.manifest.geometry.nlist, 0
    if not nlist:
        rows = np.flatnonzero(alive)
        return rows, np.array([0, len(rows)])
    cells = np.empty(len(alive), np.int32)
    for segment in shard.segments:
        cells[start : start + len(segment.codes)] = segment.codes.cells()
        start += len(segment.codes)
    cells[~alive] = nlist
    order = np.argsort(cells, kind="stable")
    starts = np.searchsorted(cells[order], np.arange(nlist + 1))
    return order[: starts[-1]], starts
