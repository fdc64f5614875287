"""The methods DeepQuan is compared with; each is a `Method` by name in `BASELINES`."""

from collections.abc import Callable

import faiss
import numpy as np

from dq_cluster.errors import InputError
from dq_cluster.evaluate.baselines import deep
from dq_cluster.evaluate.baselines.hashing import (
    Hashing,
    anchor_graph_hashing,
    kmeans_hashing,
    spectral_hashing,
)

Method = Callable[[np.ndarray, np.ndarray, int, int, int], np.ndarray]
"""(database (n, D), queries (q, D), bits, k, seed) → neighbours (q, k), best first.

A method may learn only from the database.
"""

# More vectors than this change no k-means of 256 centroids, and make additive quantizers slow.
_TRAIN_ROWS = 20_000
_REDUCED = 64


def _faiss(spec: Callable[[int, int], str]) -> Method:
    """A faiss index by its factory string, given dimensions and bits."""

    def method(
        database: np.ndarray, queries: np.ndarray, bits: int, k: int, seed: int
    ) -> np.ndarray:
        if bits % 8 or bits < 8:
            raise InputError(f"{bits} bits are not a whole number of bytes")
        dim = database.shape[1]
        factory = spec(dim, bits)
        # faiss seeds its k-means alike every time; the order of its input is what varies.
        order = np.random.default_rng(seed).permutation(len(database))[:_TRAIN_ROWS]
        try:
            index = faiss.index_factory(dim, factory)
            _turn(index, seed)
            _train_on_few(index)
            index.train(database[order])
        except RuntimeError as error:
            raise InputError(f"faiss cannot make {factory} of {dim} dimensions: {error}") from None
        index.add(database)
        return index.search(queries, k)[1]

    return method


def _train_on_few(index: faiss.Index) -> None:
    """faiss warns, once for each k-means, of rows fewer than it likes: the comparison says how
    many there are."""
    if isinstance(index, faiss.IndexPreTransform):
        index = index.index
    index = faiss.downcast_index(index)
    for name in ("pq", "rq"):
        if hasattr(index, name):
            getattr(index, name).cp.min_points_per_centroid = 1


def _turn(index: faiss.Index, seed: int) -> None:
    """Draw the random rotation before the codes, if there is one, anew."""
    if isinstance(index, faiss.IndexPreTransform):
        first = faiss.downcast_VectorTransform(index.chain.at(0))
        if isinstance(first, faiss.RandomRotationMatrix):
            first.init(seed)


def _hamming(hashing: Hashing) -> Method:
    """Exhaustive search by the Hamming distance of binary codes."""

    def method(
        database: np.ndarray, queries: np.ndarray, bits: int, k: int, seed: int
    ) -> np.ndarray:
        order = np.random.default_rng(seed).permutation(len(database))[:_TRAIN_ROWS]
        codes, query_codes = hashing(database[order], [database, queries], bits, seed)
        index = faiss.IndexBinaryFlat(bits)
        index.add(np.packbits(codes, axis=1))
        return index.search(np.packbits(query_codes, axis=1), k)[1]

    return method


def _padded(dim: int, m: int) -> str:
    return f"Pad{-(-dim // m) * m}," if dim % m else ""


def _reduced(dim: int) -> str:
    return f"PCA{_REDUCED}," if dim > _REDUCED else ""


BASELINES: dict[str, Method] = {
    "PQ": _faiss(lambda d, bits: f"{_padded(d, bits // 8)}PQ{bits // 8}"),
    "PQ 4-bit": _faiss(lambda d, bits: f"{_padded(d, bits // 4)}PQ{bits // 4}x4"),
    "PCA+PQ": _faiss(lambda d, bits: f"{_reduced(d)}PQ{bits // 8}"),
    "OPQ": _faiss(lambda d, bits: f"OPQ{bits // 8}_{min(d, _REDUCED)},PQ{bits // 8}"),
    "RQ": _faiss(lambda d, bits: f"{_reduced(d)}RQ{bits // 8}x8"),
    "LSQ": _faiss(lambda d, bits: f"{_reduced(d)}LSQ{bits // 8}x8"),
    "ITQ": _faiss(lambda d, bits: f"ITQ{bits},LSH"),
    "LSH": _faiss(lambda d, bits: f"RR{max(bits, d)},LSHt" if bits > d else f"RR{bits},LSHt"),
    "spectral hashing": _hamming(spectral_hashing),
    "anchor-graph hashing": _hamming(anchor_graph_hashing),
    "k-means hashing": _hamming(kmeans_hashing),
    "DH": _hamming(deep.trained(deep.deep_hashing, hidden=(512,))),
    "DeepBit": _hamming(deep.trained(deep.deep_bit)),
    "GreedyHash": _hamming(deep.trained(deep.greedy_hash)),
    "BiHalf": _hamming(deep.trained(deep.bi_half)),
    "CIBHash": _hamming(deep.trained(deep.cib_hash, hidden=(1024,))),
}
# These draw nothing at random: one run stands for all seeds.
SEEDLESS = ("spectral hashing", "k-means hashing")
