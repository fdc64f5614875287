"""The loss terms of DeepQuan, of the rows that one worker has.

Each takes row-aligned batches and returns a scalar: this worker's part of the term, which is the
sum over all workers. What a term compares rows with is of the whole batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Share:
    """The rows [start, stop) of a batch of `rows` that fall to this worker.

    gather: from own rows (stop - start, d) to those of all workers (rows, d), in order; gradients
    reach the worker that a row is from.
    """

    start: int
    stop: int
    rows: int
    gather: Callable[[Tensor], Tensor]

    @property
    def own(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def places(self) -> Tensor:
        """The places of the own rows in the batch."""
        return torch.arange(self.start, self.stop)


def whole(rows: int) -> Share:
    """All rows of a batch: there is one worker."""
    return Share(0, rows, rows, lambda own: own)


def weighted_triplet(
    anchors: Tensor, positives: Tensor, weights: Tensor, temperature: float, share: Share
) -> Tensor:
    """Pull each anchor and its positive together, push both from the rest of the batch.

    anchors, positives (rows, dim): of all workers.

    The smooth form of the triplet hinge over all in-batch negatives at once, in both directions
    (InfoNCE; van den Oord, Li, Vinyals 2018): the harder a negative, the greater its share of
    the gradient. weights (rows,) say how sure it is that a pair belongs together. A worker compares
    its rows with all columns, the local form of this loss (Ilharco et al., "OpenCLIP", 2021).
    """
    own = share.places.to(anchors.device)
    similarity = anchors[share.own] @ positives.T / temperature
    # One product is enough where all rows are this worker's.
    alone = len(own) == share.rows
    backwards = similarity.T if alone else positives[share.own] @ anchors.T / temperature
    forth = F.cross_entropy(similarity, own, reduction="none")
    back = F.cross_entropy(backwards, own, reduction="none")
    total = 2 * weights.sum().clamp(min=1e-6)
    return (weights[share.own] * (forth + back)).sum() / total


def manifold(reconstruction: Tensor, neighbours: Tensor, weights: Tensor, share: Share) -> Tensor:
    """The decoder must find the neighbour's feature from one's own embedding.

    The neighbour reconstruction of generalized autoencoders (Wang, Huang, Wang, Wang 2014),
    per feature of unit length. weights (rows,) as for `weighted_triplet`.
    """
    errors = (reconstruction - neighbours).square().sum(1)
    return (weights[share.own] * errors).sum() / weights.sum().clamp(min=1e-6)


def quantization(embedding: Tensor, quantized: Tensor, rows: int) -> Tensor:
    """Mean squared distance from embeddings to the centroids they are coded as; `rows`: of all."""
    return (embedding - quantized).square().sum() / rows


def distillation(scores: Tensor, similarity: Tensor, temperature: float, share: Share) -> Tensor:
    """Each image's neighbours by its code should be those by its feature, and as near.

    scores (own rows, c): of embeddings and the codes of c images, of which the first `share.rows`
    are the batch's own; similarity (own rows, c): inner products of their unit features.
    The divergence between the two softmaxes over the others, as in stochastic neighbour embedding
    (Hinton, Roweis 2002), so that far pairs cost nothing whatever their distances.
    """
    columns = torch.arange(scores.shape[1], device=scores.device)
    itself = columns == share.places.to(scores.device)[:, None]
    predicted = (scores / temperature).masked_fill(itself, -1e4).log_softmax(1)
    target = (similarity / temperature).masked_fill(itself, -1e4).softmax(1)
    return F.kl_div(predicted, target, reduction="sum") / share.rows
