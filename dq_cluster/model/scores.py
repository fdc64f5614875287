"""Score-aware assignment: a code is chosen for the scores it gives to the queries near its image.

The nearest centroids give the smallest error of the vector. A search needs the smallest error
of the scores, and of those, only of the queries close enough for the image to be an answer. After
the score-aware loss of Guo et al. (ICML 2020), whose queries are spread evenly around the vector;
here they are the anchors, a sample of the dataset itself, because its images lie on a manifold.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dq_cluster.geometry import Metric
from dq_cluster.model import quantizer

ANCHORS = 2048
# Softmax temperature over the anchors, as inner products of unit vectors: how near a query must
# be to count. Found on held-out images.
_LOCALITY = 0.07
# Rows whose weights and errors stay in the cache of a processor.
_BLOCK = 512
# Columns that a second multiplication must save.
_WORTH_IT = 16


def assign(
    embedding: Tensor, codebooks: Tensor, anchors: Tensor, offset: Tensor, metric: Metric
) -> Tensor:
    """The centroids whose scores to the anchors nearby are right: (n, m * dsub) → (n, m) int64.

    Coordinate descent from the nearest centroids, once through the sub-spaces: twice costs twice as
    much and gained 0.05 points of mAP.

    codebooks (m, ksub, dsub); anchors (a, m * dsub); offset (): see `mean_error`.
    """
    queries, extended = _extended(anchors, codebooks, metric)
    scores = extended @ queries.mT
    spaces = [_scores_and_squares(*each) for each in zip(queries, extended, scores, strict=True)]
    codes = quantizer.assign(embedding, codebooks).contiguous()
    for block, chosen in zip(embedding.split(_BLOCK), codes.split(_BLOCK), strict=True):
        weights, error = _errors(block, chosen, scores, anchors, metric)
        error -= offset
        for j, (score, square) in enumerate(spaces):
            error += scores[j][chosen[:, j]]
            # Σ w (error − score)² without Σ w error², which is the same for every centroid.
            costs = square.summed(weights) - 2 * score.summed(weights * error)
            chosen[:, j] = costs.argmin(1)
            error -= scores[j][chosen[:, j]]
    return codes


def mean_error(embedding: Tensor, codebooks: Tensor, anchors: Tensor, metric: Metric) -> Tensor:
    """By how much the nearest centroids of embeddings (n, dim) score too low on average: ().

    An error that all codes share changes no ranking, so `assign` does not pay to avoid it.
    """
    queries, extended = _extended(anchors, codebooks, metric)
    scores = extended @ queries.mT
    codes = quantizer.assign(embedding, codebooks)
    sums = []
    for block, chosen in zip(embedding.split(_BLOCK), codes.split(_BLOCK), strict=True):
        weights, error = _errors(block, chosen, scores, anchors, metric)
        sums.append((weights * error).sum())
    return torch.stack(sums).sum() / len(embedding)


def _extended(anchors: Tensor, codebooks: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """Anchors (m, a, dsub + 1), centroids (m, ksub, dsub + 1): their inner products are the scores.

    For distances the score is -‖q - w‖²/2 without the term ‖q‖²/2, which changes no ranking.
    """
    m, _, dsub = codebooks.shape
    queries = F.pad(anchors.view(-1, m, dsub).transpose(0, 1), (0, 1), value=1.0)
    norms = codebooks.square().sum(2, keepdim=True)
    own = -norms / 2 if metric == "l2" else torch.zeros_like(norms)
    return queries, torch.cat([codebooks, own], 2)


class _Product(NamedTuple):
    """A matrix (a, ksub) as the product of (a, r) and (r, ksub), or as it is."""

    left: Tensor
    right: Tensor | None = None

    def summed(self, weights: Tensor) -> Tensor:
        """weights (n, a) @ the matrix: (n, ksub)."""
        product = weights @ self.left
        return product if self.right is None else product @ self.right


def _scores_and_squares(
    queries: Tensor, centroids: Tensor, scores: Tensor
) -> tuple[_Product, _Product]:
    """Scores (ksub, a) of queries (a, d) and centroids (ksub, d), and their squares, to be summed.

    The square of an inner product is the inner product of all products of two coordinates: for
    256 centroids of few dimensions, far fewer columns than centroids.
    """
    ksub, dim = centroids.shape
    one, other = torch.triu_indices(dim, dim, device=centroids.device)
    score = _Product(queries, centroids.T) if dim + _WORTH_IT <= ksub else _Product(scores.T)
    if len(one) + _WORTH_IT > ksub:
        return score, _Product(scores.T.square())
    twice = torch.where(one == other, 1.0, 2.0).to(centroids.dtype)
    pairs = centroids[:, one] * centroids[:, other] * twice
    return score, _Product(queries[:, one] * queries[:, other], pairs.T)


def _errors(
    embedding: Tensor, codes: Tensor, scores: Tensor, anchors: Tensor, metric: Metric
) -> tuple[Tensor, Tensor]:
    """What each anchor counts for each embedding, and how much the codes score too low: (n, a)."""
    error = embedding @ anchors.T
    weights = (error / _LOCALITY).softmax(1)
    if metric == "l2":
        error -= embedding.square().sum(1, keepdim=True) / 2
    for j, score in enumerate(scores):
        error -= score[codes[:, j]]
    return weights, error
