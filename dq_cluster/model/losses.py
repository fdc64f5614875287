"""The loss terms of DeepQuan; each takes row-aligned batches and returns a scalar."""

import torch
from torch import Tensor
from torch.nn import functional as F


def weighted_triplet(
    anchors: Tensor, positives: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """Pull each anchor (n, dim) and its positive together, push both from the rest of the batch.

    The smooth form of the triplet hinge over all in-batch negatives at once, in both directions
    (InfoNCE; van den Oord, Li, Vinyals 2018): the harder a negative, the greater its share of
    the gradient. weights (n,) say how sure it is that a pair belongs together.
    """
    similarity = anchors @ positives.T / temperature
    own = torch.arange(len(anchors), device=anchors.device)
    forth = F.cross_entropy(similarity, own, reduction="none")
    back = F.cross_entropy(similarity.T, own, reduction="none")
    return (weights * (forth + back)).sum() / (2 * weights.sum().clamp(min=1e-6))


def manifold(reconstruction: Tensor, neighbours: Tensor, weights: Tensor) -> Tensor:
    """The decoder must find the neighbour's feature from one's own embedding.

    The neighbour reconstruction of generalized autoencoders (Wang, Huang, Wang, Wang 2014),
    per feature of unit length.
    """
    errors = (reconstruction - neighbours).square().sum(1)
    return (weights * errors).sum() / weights.sum().clamp(min=1e-6)


def quantization(embedding: Tensor, quantized: Tensor) -> Tensor:
    """Mean squared distance from embeddings to the centroids they are coded as."""
    return (embedding - quantized).square().sum(1).mean()


def distillation(scores: Tensor, similarity: Tensor, temperature: float) -> Tensor:
    """Each image's neighbours by its code should be those by its feature, and as near.

    scores (n, c): of n embeddings and the codes of c images, of which the first n are their own;
    similarity (n, c): inner products of their unit features.
    The divergence between the two softmaxes over the others, as in stochastic neighbour embedding
    (Hinton, Roweis 2002), so that far pairs cost nothing whatever their distances.
    """
    itself = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    predicted = (scores / temperature).masked_fill(itself, -1e4).log_softmax(1)
    target = (similarity / temperature).masked_fill(itself, -1e4).softmax(1)
    return F.kl_div(predicted, target, reduction="batchmean")
