"""Score-aware assignment: a code is chosen for the scores it gives to the queries near its image.

The nearest words make the smallest error of the vector. What a search needs is the smallest error
of the scores, and of those, only of the queries close enough for the image to be an answer. After
the score-aware loss of Guo et al. (ICML 2020), whose queries are spread evenly around the vector;
here they are a sample of the pile itself, the anchors, because a pile lies on a manifold.
"""

import torch
from torch import Tensor

from dq_cluster.geometry import Metric
from dq_cluster.model import quantizer

ANCHORS = 2048
# Softmax temperature over the anchors, as inner products of unit vectors: how near a query must
# be to count. Found on held-out images.
_LOCALITY = 0.07
# Rows whose weights and errors stay in the cache of a processor.
_BLOCK = 512


def assign(
    embedding: Tensor, codebooks: Tensor, anchors: Tensor, offset: Tensor, metric: Metric
) -> Tensor:
    """The words whose scores to the anchors nearby are right: (n, m * dsub) → (n, m) int64.

    Coordinate descent from the nearest words, once through the sub-spaces: twice costs twice as
    much and gained 0.05 points of mAP.

    codebooks (m, ksub, dsub); anchors (a, m * dsub); offset (): see `mean_error`.
    """
    scores = _word_scores(anchors, codebooks, metric)
    squares = scores.square()
    codes = quantizer.assign(embedding, codebooks).contiguous()
    for block, chosen in zip(embedding.split(_BLOCK), codes.split(_BLOCK), strict=True):
        weights, error = _errors(block, chosen, scores, anchors, metric)
        error -= offset
        for j, (score, square) in enumerate(zip(scores, squares, strict=True)):
            error += score[chosen[:, j]]
            # Σ w (error − score)² without Σ w error², which is the same for every word.
            costs = torch.addmm(weights @ square.T, weights * error, score.T, alpha=-2)
            chosen[:, j] = costs.argmin(1)
            error -= score[chosen[:, j]]
    return codes


def mean_error(embedding: Tensor, codebooks: Tensor, anchors: Tensor, metric: Metric) -> Tensor:
    """By how much the nearest words of embeddings (n, dim) score too low on average: ().

    An error that all codes share changes no ranking, so `assign` does not pay to avoid it.
    """
    scores = _word_scores(anchors, codebooks, metric)
    codes = quantizer.assign(embedding, codebooks)
    sums = []
    for block, chosen in zip(embedding.split(_BLOCK), codes.split(_BLOCK), strict=True):
        weights, error = _errors(block, chosen, scores, anchors, metric)
        sums.append((weights * error).sum())
    return torch.stack(sums).sum() / len(embedding)


def _word_scores(anchors: Tensor, codebooks: Tensor, metric: Metric) -> Tensor:
    """What every word adds to the score of every anchor: (m, ksub, a)."""
    m, _, dsub = codebooks.shape
    scores = codebooks @ anchors.view(-1, m, dsub).permute(1, 2, 0)
    if metric == "l2":
        # -‖q - w‖²/2, but for ‖q‖²/2, which ranks nothing.
        scores = scores - codebooks.square().sum(2, keepdim=True) / 2
    return scores


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
