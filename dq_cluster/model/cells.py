"""Coarse cells: the inverted lists of an IVF version, trained beside a finished model.

Codes do not depend on the cell (`by_residual` off), so a model with cells has the codebooks and
the codes of the model it came from, and a search may visit some cells only.
"""

import faiss
import numpy as np
import torch

from dq_cluster.errors import InputError
from dq_cluster.index.models import ModelCard, read_card, read_tensors, write_model
from dq_cluster.model.bundle import load_model
from dq_cluster.storage import Storage

# faiss' own bound for a k-means that is not starved.
_POINTS_PER_CELL = 39


def add_cells(
    index_storage: Storage, digest: str, features: np.ndarray, nlist: int, *, seed: int = 0
) -> ModelCard:
    """Store the model `digest` again with `nlist` coarse cells, learned by k-means.

    features: a sample (n, feature_dim) of what will be encoded, at least 39 per cell. Cells are
    learned where codes live, on embeddings; for the metric `ip` by spherical k-means.
    Raises InputError for too small a sample.
    """
    if len(features) < nlist * _POINTS_PER_CELL:
        raise InputError(
            f"{nlist} cells need at least {nlist * _POINTS_PER_CELL} features to learn from, "
            f"found {len(features)}; give more, or fewer cells"
        )
    flat = read_card(index_storage, digest)
    network, _ = load_model(index_storage, flat.digest)
    with torch.no_grad():
        parts = [network.embed(part) for part in torch.from_numpy(features).split(8192)]
    kmeans = faiss.Kmeans(
        flat.geometry.dim, nlist, seed=seed, spherical=flat.geometry.metric == "ip"
    )
    kmeans.train(torch.cat(parts).numpy())
    return write_model(
        index_storage,
        read_tensors(index_storage, flat) | {"coarse_centroids": kmeans.centroids},
        geometry=flat.geometry.model_copy(update={"nlist": nlist}),
        feature_dim=flat.feature_dim,
        network=flat.network,
        preprocessing=flat.preprocessing,
        training=flat.training,
        evaluation=flat.evaluation,
    )
