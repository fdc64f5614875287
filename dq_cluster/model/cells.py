"""Coarse cells: the inverted lists of an IVF version, learned beside a finished network.

Codes do not depend on the cell (`by_residual` off), so a model with cells has the codebooks and
the codes of the model without, and a search may visit some cells only.
"""

import faiss
import numpy as np

from dq_cluster.geometry import Metric

# faiss' own bounds: with fewer points k-means is starved, more it does not look at.
MIN_POINTS_PER_CELL = 39
MAX_POINTS_PER_CELL = 256


def learn_cells(embeddings: np.ndarray, nlist: int, metric: Metric, *, seed: int = 0) -> np.ndarray:
    """Centroids (nlist, dim) float32 of embeddings (n, dim), a sample of what will be encoded.

    By k-means; for the metric `ip` by spherical k-means. n should lie between
    `nlist * MIN_POINTS_PER_CELL` and `nlist * MAX_POINTS_PER_CELL`.
    """
    kmeans = faiss.Kmeans(embeddings.shape[1], nlist, seed=seed, spherical=metric == "ip")
    kmeans.train(np.ascontiguousarray(embeddings, np.float32))
    return kmeans.centroids
