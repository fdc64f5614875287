"""Binary codes learned without labels, for comparison: spectral, anchor-graph, k-means hashing.

Small implementations from the papers. Each function takes training vectors (t, D), a list of
blocks (n, D) to encode, the number of bits, and a seed, and returns one array of bits
(n, bits) bool per block. Codes are compared by Hamming distance.
"""

from collections.abc import Callable, Sequence

import faiss
import numpy as np

from dq_cluster.errors import InputError

Bits = list[np.ndarray]
Hashing = Callable[[np.ndarray, Sequence[np.ndarray], int, int], Bits]


def spectral_hashing(train: np.ndarray, blocks: Sequence[np.ndarray], bits: int, seed: int) -> Bits:
    """Weiss, Torralba, Fergus, NIPS 2008: the lowest eigenfunctions of a uniform box."""
    mean, axes = _principal_axes(train, bits)
    projected = (train - mean) @ axes
    low, high = projected.min(0), projected.max(0)
    extent = np.maximum(high - low, 1e-9)
    # The eigenvalue of mode k along an axis falls with (k / extent)²; take the `bits` least.
    modes = np.arange(1, bits + 1)[:, None] / extent[None, :]
    chosen = np.argsort(modes, axis=None, kind="stable")[:bits]
    order, axis = np.unravel_index(chosen, modes.shape)
    frequency = np.pi * (order + 1) / extent[axis]

    def encode(block: np.ndarray) -> np.ndarray:
        position = ((block - mean) @ axes - low)[:, axis]
        return np.sin(np.pi / 2 + position * frequency) > 0

    return [encode(block) for block in blocks]


def anchor_graph_hashing(
    train: np.ndarray,
    blocks: Sequence[np.ndarray],
    bits: int,
    seed: int,
    anchors: int = 300,
    nearest: int = 3,
) -> Bits:
    """Liu, Wang, Kumar, Chang, ICML 2011, one layer: eigenvectors of a graph through anchors."""
    if not bits < anchors <= len(train):
        raise InputError(f"{anchors} anchors must be more than {bits} bits, at most {len(train)}")
    centres = _kmeans(train, anchors, seed)

    def affinities(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        index = faiss.IndexFlatL2(centres.shape[1])
        index.add(centres)
        return index.search(np.ascontiguousarray(block, np.float32), nearest)

    bandwidth = max(float(np.mean(affinities(train)[0][:, -1])), 1e-9)

    def to_anchors(block: np.ndarray) -> np.ndarray:
        distances, anchors_near = affinities(block)
        kernel = np.exp(-distances / bandwidth)
        dense = np.zeros((len(block), anchors), np.float64)
        np.put_along_axis(dense, anchors_near, kernel / kernel.sum(1, keepdims=True), 1)
        return dense

    z = to_anchors(train)
    scale = 1 / np.sqrt(np.maximum(z.sum(0), 1e-9))
    values, vectors = np.linalg.eigh(scale[:, None] * (z.T @ z) * scale)
    # The first eigenvector is constant and says nothing.
    kept = np.argsort(-values)[1 : bits + 1]
    projection = scale[:, None] * vectors[:, kept] / np.sqrt(np.maximum(values[kept], 1e-9))
    return [to_anchors(block) @ projection > 0 for block in blocks]


def kmeans_hashing(
    train: np.ndarray,
    blocks: Sequence[np.ndarray],
    bits: int,
    seed: int,
    bits_per_space: int = 4,
    affinity_weight: float = 10.0,
    iterations: int = 20,
) -> Bits:
    """He, Wen, Sun, CVPR 2013: k-means whose centroids' distances follow their Hamming distances.

    Product spaces of `bits_per_space` bits over principal axes, dealt so that each space gets
    its share of the variance. Centroids are updated by majorization instead of quasi-Newton.
    """
    if bits % bits_per_space:
        raise InputError(f"{bits} bits do not divide into spaces of {bits_per_space}")
    mean, axes = _principal_axes(train, bits)
    spaces = bits // bits_per_space
    books = [
        _affine_centroids((train - mean) @ axes[:, s::spaces], affinity_weight, iterations)
        for s in range(spaces)
    ]

    def encode(block: np.ndarray) -> np.ndarray:
        parts = [
            _bit_rows(len(book))[_nearest((block - mean) @ axes[:, s::spaces], book)]
            for s, book in enumerate(books)
        ]
        return np.concatenate(parts, 1)

    return [encode(block) for block in blocks]


def _affine_centroids(x: np.ndarray, affinity_weight: float, iterations: int) -> np.ndarray:
    """Centroids (2^b, b) of one space; the centroid's number is its binary code."""
    b = x.shape[1]
    signs = _bit_rows(1 << b) * 2.0 - 1
    centroids = signs * np.abs(x).mean(0)
    hamming = np.sqrt((signs[:, None] != signs[None]).sum(2))
    for _ in range(iterations):
        nearest = _nearest(x, centroids)
        counts = np.bincount(nearest, minlength=len(centroids)).astype(float)
        sums = np.zeros_like(centroids)
        np.add.at(sums, nearest, x)
        share = counts / len(x)
        pair_weight = affinity_weight * np.outer(share, share)
        distances = np.linalg.norm(centroids[:, None] - centroids[None], axis=2)
        scale = (pair_weight * distances * hamming).sum() / (pair_weight * hamming**2).sum()
        for i in range(len(centroids)):
            away = centroids[i] - centroids
            length = np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-9)
            target = centroids + away / length * (scale * hamming[i])[:, None]
            pull = pair_weight[i]
            total = share[i] + pull.sum()
            if total > 0:
                centroids[i] = (sums[i] / len(x) + pull @ target) / total
    return centroids


def _bit_rows(count: int) -> np.ndarray:
    return (np.arange(count)[:, None] >> np.arange(count.bit_length() - 1)) & 1 == 1


def _nearest(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return ((centroids**2).sum(1) - 2 * x @ centroids.T).argmin(1)


def _principal_axes(train: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    if count > train.shape[1]:
        raise InputError(f"{count} bits need vectors of {count} dimensions or more")
    mean = train.mean(0)
    _, vectors = np.linalg.eigh(np.cov(train - mean, rowvar=False))
    return mean, vectors[:, ::-1][:, :count]


def _kmeans(train: np.ndarray, k: int, seed: int) -> np.ndarray:
    kmeans = faiss.Kmeans(train.shape[1], k, niter=15, seed=seed, min_points_per_centroid=1)
    kmeans.train(np.ascontiguousarray(train, np.float32))
    return kmeans.centroids
