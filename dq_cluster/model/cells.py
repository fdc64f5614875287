"""Coarse cells: the inverted lists of an IVF version, learned beside a finished network.

Codes do not depend on the cell (`by_residual` off), so a model with cells has the codebooks and
the codes of the model without, and a search may visit some cells only.
"""

import math
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from dq_cluster.geometry import Metric

# faiss' own bounds: with fewer points k-means is starved, more it does not look at.
MIN_POINTS_PER_CELL = 39
MAX_POINTS_PER_CELL = 256
# From so many cells on, k-means and assignment go through groups of cells.
_MANY = 8192
_LOOKED_AT = 8  # times the cells of an average group
_SCORES_AT_ONCE = 1 << 22


def learn_cells(embeddings: np.ndarray, nlist: int, metric: Metric, *, seed: int = 0) -> np.ndarray:
    """Centroids (nlist, dim) float32 of embeddings (n, dim), a sample of what will be encoded.

    By k-means; for the metric `ip` by spherical k-means. Many cells are learned in two levels:
    groups first, then the cells of each. n should lie between `nlist * MIN_POINTS_PER_CELL` and
    `nlist * MAX_POINTS_PER_CELL`.
    """
    points = np.ascontiguousarray(embeddings, np.float32)
    asked = {"seed": seed, "spherical": metric == "ip"}
    if nlist < _MANY:
        return _kmeans(points, nlist, asked).centroids
    groups = _kmeans(points, _groups(nlist), asked | {"max_points_per_centroid": 2000})
    _, group = groups.assign(points)
    order = group.argsort(kind="stable")
    sizes = np.bincount(group, minlength=groups.k)
    # Each group has a cell, and the others go by points; a rest goes to the largest group.
    shares = 1 + sizes * (nlist - groups.k) // len(points)
    shares[sizes.argmax()] += nlist - shares.sum()
    parts = zip(np.split(order, np.cumsum(sizes)[:-1]), shares.tolist(), strict=True)
    cells = [
        _kmeans(points[rows], share, asked).centroids
        if share < len(rows)
        else groups.centroids[[n]]
        for n, (rows, share) in enumerate(parts)
    ]
    return np.vstack(cells)


def _kmeans(points: np.ndarray, k: int, settings: dict[str, Any]) -> faiss.Kmeans:
    kmeans = faiss.Kmeans(points.shape[1], k, min_points_per_centroid=1, **settings)
    kmeans.train(points)
    return kmeans


class CellFinder:
    """The cell of each embedding, for centroids (nlist, dim), as the metric sees it.

    Among many cells the embedding is compared only with those near the nearest of some groups of
    cells; now and then it so gets a cell that is not quite the nearest.
    """

    def __init__(self, centroids: Tensor, metric: Metric) -> None:
        self._centroids, self._metric = centroids, metric
        self._groups: Tensor | None = None
        if len(centroids) >= _MANY:
            number = _groups(len(centroids))
            kmeans = faiss.Kmeans(
                centroids.shape[1], number, max_points_per_centroid=len(centroids)
            )
            kmeans.train(centroids.cpu().numpy())
            self._groups = torch.from_numpy(kmeans.centroids).to(centroids.device)
            near = _LOOKED_AT * len(centroids) // number
            self._near = self._scores(self._groups, centroids).topk(near, dim=1).indices

    def __call__(self, embedding: Tensor) -> Tensor:
        """embedding (n, dim) → cells (n,) int64."""
        if self._groups is None:
            return self._nearest(embedding, self._centroids)
        group = self._nearest(embedding, self._groups)
        order = group.argsort(stable=True)
        cells = torch.empty_like(group)
        start = 0
        for number, count in enumerate(group.bincount(minlength=len(self._groups)).tolist()):
            rows = order[start : start + count]
            start += count
            if count:
                near = self._near[number]
                cells[rows] = near[self._nearest(embedding[rows], self._centroids[near])]
        return cells

    def _nearest(self, embedding: Tensor, centroids: Tensor) -> Tensor:
        blocks = embedding.split(max(1, _SCORES_AT_ONCE // len(centroids)))
        return torch.cat([self._scores(block, centroids).argmax(1) for block in blocks])

    def _scores(self, embedding: Tensor, centroids: Tensor) -> Tensor:
        if self._metric == "ip":
            return embedding @ centroids.T
        # -‖e - c‖²/2 without ‖e‖²/2, which is the same for every cell.
        return torch.addmm(-centroids.square().sum(1) / 2, embedding, centroids.T)


def _groups(nlist: int) -> int:
    return math.isqrt(nlist)
