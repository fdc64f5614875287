"""Positives on the manifold: exact neighbours block by block, then refined over their graph.

The search never needs all features at once: `top_k` compares one block of queries with one
block of the database, `merge_top_k` joins what two blocks of the database gave. The graph is
only index lists (n, k), about 200 bytes an image, and is refined for any range of rows.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor


class Ranked(NamedTuple):
    """The best matches of queries: scores (q, k) descending, and rows (q, k) of the database."""

    scores: Tensor
    rows: Tensor


def top_k(queries: Tensor, database: Tensor, k: int, first_row: int = 0) -> Ranked:
    """The `k` (or all) rows of one database block with the greatest inner products.

    queries (q, D), database (n, D); `first_row` is the block's place in the whole database.
    """
    scores, rows = (queries @ database.T).topk(min(k, len(database)), dim=1)
    return Ranked(scores, rows + first_row)


def merge_top_k(one: Ranked, other: Ranked, k: int) -> Ranked:
    """The best `k` of two answers to the same queries."""
    scores = torch.cat([one.scores, other.scores], 1)
    rows = torch.cat([one.rows, other.rows], 1)
    best, places = scores.topk(min(k, scores.shape[1]), dim=1)
    return Ranked(best, rows.gather(1, places))


def nearest(queries: Tensor, database: Tensor, k: int, block: int = 8192) -> Ranked:
    """`top_k` over a whole database in memory, block by block."""
    answers = []
    for chunk in queries.split(1024):
        best = top_k(chunk, database[:block], k)
        for first in range(block, len(database), block):
            best = merge_top_k(best, top_k(chunk, database[first : first + block], k, first), k)
        answers.append(best)
    return Ranked(
        torch.cat([answer.scores for answer in answers]),
        torch.cat([answer.rows for answer in answers]),
    )


class Positives(NamedTuple):
    """Per image, rows (n, p) of images that belong to it and weights (n, p) in [0, 1]."""

    rows: np.ndarray
    weights: np.ndarray


def manifold_positives(
    neighbours: np.ndarray, count: int, first: int = 0, last: int | None = None
) -> Positives:
    """The `count` best positives of the images `first` … `last` by shared neighbours.

    neighbours: (n, k) rows of every image's nearest others, without itself. Two images belong
    together as far as they have the same neighbours (Jarvis, Patrick 1973): the weight is the
    share of common neighbours, which chance neighbours of dense regions do not get.
    """
    n, k = neighbours.shape
    last = n if last is None else min(last, n)
    closed = np.concatenate([np.arange(n)[:, None], neighbours], 1)
    graph = sparse.csr_matrix(
        (np.ones(closed.size, np.float32), closed.ravel(), np.arange(n + 1) * (k + 1)), (n, n)
    )
    rows = np.empty((last - first, count), np.int64)
    weights = np.zeros((last - first, count), np.float32)
    for start in range(first, last, 2048):
        stop = min(start + 2048, last)
        shared = (graph[start:stop] @ graph.T).tocsr()
        for i in range(stop - start):
            image = start + i
            span = slice(shared.indptr[i], shared.indptr[i + 1])
            others, common = shared.indices[span], shared.data[span]
            others, common = others[others != image], common[others != image]
            best = np.lexsort((others, -common))[:count]
            rows[image - first] = image
            rows[image - first, : len(best)] = others[best]
            weights[image - first, : len(best)] = common[best] / (k + 1)
    return Positives(rows, weights)
