"""One training step, the same for a plain loop and for a distributed one."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dq_cluster.model import losses
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.deepquan import Output
from dq_cluster.model.losses import Share


class Batch(NamedTuple):
    """Features (n, D), one positive per feature (n, D), and how sure each pair is (n,)."""

    features: Tensor
    positives: Tensor
    weights: Tensor


def training_loss(
    network: Callable[[Tensor], Output],
    batch: Batch,
    settings: ModelSettings,
    share: Share | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of all loss terms, and every term by name, detached.

    share: the pairs of the batch that are this worker's (default: all). Then loss and terms are its
    part of them, and those of the batch are the sums over all workers. network: a DeepQuan; it may
    take other names of the rows than their features, if `batch` has these.
    """
    share = share or losses.whole(len(batch.features))
    output = network(torch.cat([batch.features[share.own], batch.positives[share.own]]))
    n = share.stop - share.start
    terms = {
        "manifold": losses.manifold(
            output.reconstruction[:n], output.target[n:], batch.weights, share
        ),
        "quantization": losses.quantization(output.embedding, output.quantized, 2 * share.rows),
    }
    anchors, positives = _all_pairs(output.embedding, n, share)
    if settings.triplet_weight:
        terms["triplet"] = losses.weighted_triplet(
            anchors, positives, batch.weights, settings.temperature, share
        )
    if settings.distillation_weight:
        embeddings = torch.cat([anchors, positives])
        others = torch.cat([output.quantized, output.target], dim=1).detach()
        others = torch.cat(_all_pairs(others, n, share))
        quantized, targets = others[:, : embeddings.shape[1]], others[:, embeddings.shape[1] :]
        # Straight through: the centroids are compared, the embedding gets the gradient.
        coded = embeddings + (quantized - embeddings).detach()
        scores = anchors[share.own] @ coded.T
        if settings.metric == "l2":  # half the squared distance, but for the anchor's own length
            scores = scores - coded.square().sum(1) / 2
        terms["distillation"] = losses.distillation(
            scores, output.target[:n] @ targets.T, settings.temperature, share
        )
    weights = {name: getattr(settings, f"{name}_weight") for name in terms}
    loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return loss, {name: term.detach() for name, term in terms.items()}


def _all_pairs(pairs: Tensor, own: int, share: Share) -> tuple[Tensor, Tensor]:
    """Anchors and positives (rows, d) of all workers, from this one's pairs (2 * own, d)."""
    if own == share.rows:
        return pairs[:own], pairs[own:]
    everyone = share.gather(torch.cat([pairs[:own], pairs[own:]], dim=1))
    anchors, positives = everyone.split(pairs.shape[1], dim=1)
    return anchors, positives
