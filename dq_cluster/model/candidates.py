"""Neighbours at bounded cost: compared are the rows of the cells nearest to a query.

The rows are divided into cells (an inverted file: Jégou, Douze, Schmid, PAMI 2011). With 4 √n cells
and a fixed number of them looked into, n rows cost in the order of n √n comparisons instead of n².
"""

import faiss
import numpy as np
import torch

from dq_cluster.model.neighbours import Ranked

# Rows that are compared with all others: 200,000 take minutes on a few CPUs.
EXACT_ROWS = 200_000
# Cells that are looked into. docs/decisions/0022-neighbours-at-bounded-cost.md has what it finds.
PROBED = 48


def cells_of(rows: int) -> int:
    """How many cells `rows` rows are divided into; 0: each is compared with all others."""
    return 0 if rows <= EXACT_ROWS else int(4 * rows**0.5)


def nearest_cells(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The `PROBED` nearest cells (n, PROBED) int32 of rows (n, D), best first."""
    coarse = _coarse(centroids)
    _, cells = coarse.search(np.ascontiguousarray(rows), min(PROBED, len(centroids)))
    return cells.astype(np.int32)


def nearest_in_cells(
    queries: np.ndarray,
    cells: np.ndarray,
    database: np.ndarray,
    own_cells: np.ndarray,
    centroids: np.ndarray,
    k: int,
) -> Ranked:
    """The `k` rows of a database (n, D) with the greatest inner products among those whose cell
    `own_cells` (n,) is one of a query's `cells` (q, p).

    A place without a row has score -inf and row -1.
    """
    coarse = _coarse(centroids)
    lists = faiss.IndexIVFFlat(
        coarse, database.shape[1], len(centroids), faiss.METRIC_INNER_PRODUCT
    )
    lists.is_trained = True
    rows = np.ascontiguousarray(database)
    assigned = np.ascontiguousarray(own_cells, np.int64)
    lists.add_core(len(rows), faiss.swig_ptr(rows), None, faiss.swig_ptr(assigned))
    lists.nprobe = cells.shape[1]
    wanted = np.ascontiguousarray(cells, np.int64)
    scores, found = lists.search_preassigned(
        np.ascontiguousarray(queries), k, wanted, np.zeros(wanted.shape, np.float32)
    )
    scores[found < 0] = -np.inf
    return Ranked(torch.from_numpy(scores), torch.from_numpy(found))


def _coarse(centroids: np.ndarray) -> faiss.IndexFlatIP:
    coarse = faiss.IndexFlatIP(centroids.shape[1])
    coarse.add(np.ascontiguousarray(centroids))
    return coarse
