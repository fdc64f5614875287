"""The coarse cells of a trained network, learned on a random sample of the training rows.

Ray tasks embed the sample piece by piece; only its embeddings, at most 256 per cell, ever meet on
one node.
"""

import numpy as np
import ray
import torch

from dq_cluster.errors import InputError
from dq_cluster.geometry import Metric
from dq_cluster.model.cells import MAX_POINTS_PER_CELL, MIN_POINTS_PER_CELL, learn_cells
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.training.rows import Piece, TrainingRows
from dq_cluster.training.tasks import results


def check_cells(nlist: int, rows: int) -> None:
    """Raise InputError when `rows` training rows are too few for `nlist` cells."""
    if rows < nlist * MIN_POINTS_PER_CELL:
        raise InputError(
            f"nlist {nlist} needs at least {nlist * MIN_POINTS_PER_CELL:,} rows to train on, "
            f"{MIN_POINTS_PER_CELL} per cell, found {rows:,}; "
            f"give more features, or nlist {rows // MIN_POINTS_PER_CELL} at most"
        )


def find_cells(
    network: DeepQuan, rows: TrainingRows, nlist: int, *, seed: int, cpus: int
) -> np.ndarray:
    """Centroids (nlist, dim) float32. Equal arguments give equal cells."""
    size = min(rows.count, nlist * MAX_POINTS_PER_CELL)
    sample = np.sort(np.random.default_rng(seed).choice(rows.count, size, replace=False))
    shared = ray.put(network)
    parts = [
        _embed.remote(shared, rows, piece, sample[first:last] - piece.first)
        for piece in rows.pieces()
        for first, last in [np.searchsorted(sample, (piece.first, piece.last))]
        if first < last
    ]
    learn = _learn.options(num_cpus=cpus)
    return next(results([learn.remote(parts, nlist, network.geometry.metric, seed)]))


@ray.remote
@torch.no_grad()
def _embed(network: DeepQuan, rows: TrainingRows, piece: Piece, chosen: np.ndarray) -> np.ndarray:
    return network.embed(torch.from_numpy(rows.read(piece)[chosen])).numpy()


@ray.remote
def _learn(parts: list[ray.ObjectRef], nlist: int, metric: Metric, seed: int) -> np.ndarray:
    return learn_cells(np.concatenate(ray.get(parts)), nlist, metric, seed=seed)
