"""The best candidates of many queries, gathered from blocks of scores. Arrays only."""

import numpy as np
import torch

from dq_cluster.search.merge import MISSING


class Candidates:
    """The `depth` best rows that were offered to each of n queries, and a bound for the others.

    least (n,) float32: what is not above it is not kept. What was offered is put aside until there
    is as much again as `depth` for each query, and then the best are chosen: at most
    about 2 × n × depth entries of 16 bytes, twice while they are sorted.
    """

    def __init__(self, least: np.ndarray, depth: int) -> None:
        self.depth = depth
        self._least = torch.from_numpy(least)
        self._room = 2 * len(least) * depth
        self._aside: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._count = 0

    def offer(self, queries: np.ndarray, rows: np.ndarray, scores: torch.Tensor, fold: int) -> None:
        """Scores (q, w) of `rows` (at most w; the columns beyond are -inf) for `queries` (q,).

        Columns are looked at in groups of `fold`, a power of two that divides w: where the best of
        a group is not good enough, none of it is.
        """
        groups, width = scores, scores.shape[1]
        while width > scores.shape[1] // fold:
            width //= 2
            groups = torch.maximum(groups[:, :width], groups[:, width:])
        at = torch.from_numpy(queries)
        least = self._least[at]
        if width > self.depth and torch.isneginf(least).any():
            # As many groups have something at least that good; equal scores stay.
            place = width - self.depth
            enough = np.partition(groups.numpy(), place, axis=1)[:, place]
            least = torch.maximum(least, torch.from_numpy(np.nextafter(enough, -np.inf)))
            self._least[at] = least
        query, group = (groups > least[:, None]).nonzero(as_tuple=True)
        if not len(query):
            return
        columns = group[:, None] + width * torch.arange(fold)
        values = scores[query[:, None], columns]
        kept, column = (values > least[query][:, None]).nonzero(as_tuple=True)
        values, columns, query = values[kept, column], columns[kept, column], query[kept]
        self._aside.append((queries[query.numpy()], values.numpy(), rows[columns.numpy()]))
        self._count += len(query)
        if self._count > self._room:
            self._choose()

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores (n, depth) float32 and rows (n, depth) int64; missing ones are -inf and -1."""
        self._choose()
        scores = np.full((len(self._least), self.depth), -np.inf, np.float32)
        rows = np.full((len(self._least), self.depth), MISSING, np.int64)
        for queries, values, of in self._aside:
            place = _places(queries)
            scores[queries, place], rows[queries, place] = values, of
        return scores, rows

    def _choose(self) -> None:
        """Keep the best of what was put aside, in order of the queries, best first."""
        if not self._aside:
            return
        queries, values, rows = (np.concatenate(each) for each in zip(*self._aside, strict=True))
        self._aside.clear()
        order = np.argsort(queries.astype(np.uint64) << np.uint64(32) | _falling(values))
        queries = queries[order]
        place = _places(queries)
        kept = place < self.depth
        order, queries, place = order[kept], queries[kept], place[kept]
        values, rows = values[order], rows[order]
        full = place == self.depth - 1
        self._least[torch.from_numpy(queries[full])] = torch.from_numpy(values[full])
        self._aside.append((queries, values, rows))
        self._count = len(queries)
        self._room = max(self._room, 2 * self._count)


def _falling(values: np.ndarray) -> np.ndarray:
    """Numbers (n,) uint64 below 2^32 that fall as the float32 `values` rise."""
    bits = values.view(np.uint32)
    rising = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (~rising).astype(np.uint64)


def _places(queries: np.ndarray) -> np.ndarray:
    """How many before each of the sorted `queries` (n,) are the same."""
    firsts = np.concatenate([[True], queries[1:] != queries[:-1]]) if len(queries) else queries > 0
    starts = np.flatnonzero(firsts)
    return np.arange(len(queries)) - np.repeat(starts, np.diff([*starts, len(queries)]))
