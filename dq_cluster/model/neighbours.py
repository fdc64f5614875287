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


class Inverse(NamedTuple):
    """Who names each row among its neighbours, itself included: row r is named by
    `namers[starts[r] : starts[r + 1]]`, ascending."""

    starts: np.ndarray
    namers: np.ndarray


def inverse(neighbours: np.ndarray) -> Inverse:
    """Turn a graph (n, k) round, in one pass over it; any number of `manifold_positives` share
    the result."""
    n, k = neighbours.shape
    # Row r is named by itself too. int32 halves what large graphs take.
    named = np.concatenate([np.arange(n, dtype=np.int32)[:, None], neighbours.astype(np.int32)], 1)
    marks = np.ones(named.size, np.int8)
    starts = np.arange(n + 1, dtype=np.int64) * (k + 1)
    turned = sparse.csr_matrix((marks, named.ravel(), starts), (n, n)).tocsc()
    return Inverse(turned.indptr, turned.indices)


def manifold_positives(
    neighbours: np.ndarray, count: int, inverse: Inverse, first: int = 0
) -> Positives:
    """The `count` best positives of the images `first` … by shared neighbours.

    neighbours: (m, k) rows of these images' nearest others, without themselves; inverse: of the
    graph of all images. Two images belong together as far as they have the same neighbours (Jarvis,
    Patrick 1973): the weight is the share of common neighbours, which chance neighbours of dense
    regions do not get. Time and memory go with the rows asked for, not with the graph.
    """
    m, k = neighbours.shape
    rows = np.empty((m, count), np.int64)
    weights = np.zeros((m, count), np.float32)
    for start in range(0, m, 2048):
        chunk = neighbours[start : start + 2048]
        images = np.arange(first + start, first + start + len(chunk))
        shared = _shared(np.concatenate([images[:, None], chunk], 1), inverse)
        for i, image in enumerate(images):
            span = slice(shared.indptr[i], shared.indptr[i + 1])
            others, common = shared.indices[span], shared.data[span]
            others, common = others[others != image], common[others != image]
            best = np.lexsort((others, -common))[:count]
            rows[start + i] = image
            rows[start + i, : len(best)] = others[best]
            weights[start + i, : len(best)] = common[best] / np.float32(k + 1)
    return Positives(rows, weights)


def _shared(named: np.ndarray, inverse: Inverse) -> sparse.csr_matrix:
    """How many neighbours each image has in common with every other: sparse (m, n)."""
    used, places = np.unique(named, return_inverse=True)
    starts, lengths = inverse.starts[used], np.diff(inverse.starts)[used]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    span = np.repeat(starts - ends[:-1], lengths) + np.arange(ends[-1])
    n = len(inverse.starts) - 1
    namers = sparse.csr_matrix(
        (np.ones(ends[-1], np.int32), inverse.namers[span], ends), (len(used), n)
    )
    per_row = np.arange(len(named) + 1) * named.shape[1]
    mine = sparse.csr_matrix(
        (np.ones(named.size, np.int32), places.ravel(), per_row), (len(named), len(used))
    )
    return (mine @ namers).tocsr()
