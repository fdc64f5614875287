"""The neighbours of each query among what a search found. Pure decisions on arrays."""

import numpy as np

from dq_cluster.search.merge import MISSING


def without_self(
    scores: np.ndarray, ordinals: np.ndarray, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Take each query's own row `own` (n,) out of what it found, scores and ordinals (n, k + 1).

    Returns both (n, k). Where many rows are equal, a query may not be among its own best: then the
    last place goes.
    """
    mine = ordinals == own[:, None]
    mine[~mine.any(axis=1), -1] = True
    others = ~mine
    n, k = len(own), ordinals.shape[1] - 1
    return scores[others].reshape(n, k), ordinals[others].reshape(n, k)


def lists(
    scores: np.ndarray, ordinals: np.ndarray, within: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is there, and near enough: the offsets (n + 1,) of each query's neighbours, their
    scores, and their ordinals."""
    keep = ordinals != MISSING
    if within is not None:
        keep &= scores >= within
    offsets = np.concatenate([[0], np.cumsum(keep.sum(axis=1))])
    return offsets.astype(np.int32), scores[keep], ordinals[keep]
