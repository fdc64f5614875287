"""One training step, the same for a plain loop and for a distributed one."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

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
    network: nn.Module, batch: Batch, settings: ModelSettings, share: Share | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of all loss terms, and every term by name, detached.

    share: the pairs of the batch that are this worker's (default: all). Then loss and terms are its
    part of them, and those of the batch are the sums over all workers. network: a DeepQuan, or a
    wrapper of one with the same forward. It is called once, so DistributedDataParallel synchronizes
    the gradients of both halves of the pair.
    """
    share = share or losses.whole(len(batch.features))
    output: Output = network(torch.cat([batch.features[share.own], batch.positives[share.own]]))
    n = share.stop - share.start
    anchors, positives = output.embedding[:n], output.embedding[n:]
    terms = {
        # Always there: without it the decoder has no gradient, which DistributedDataParallel
        # does not forgive.
        "manifold": losses.manifold(
            output.reconstruction[:n], output.target[n:], batch.weights, share
        ),
        "quantization": losses.quantization(output.embedding, output.quantized, 2 * share.rows),
    }
    if settings.triplet_weight:
        terms["triplet"] = losses.weighted_triplet(
            anchors, positives, batch.weights, settings.temperature, share
        )
    if settings.distillation_weight:
        # Straight through: the centroids are compared, the embedding gets the gradient.
        coded = _both(output.embedding + (output.quantized - output.embedding).detach(), n, share)
        scores = anchors @ coded.T
        if settings.metric == "l2":  # half the squared distance, but for the anchor's own length
            scores = scores - coded.square().sum(1) / 2
        targets = _both(output.target, n, share)
        terms["distillation"] = losses.distillation(
            scores, output.target[:n] @ targets.T, settings.temperature, share
        )
    weights = {name: getattr(settings, f"{name}_weight") for name in terms}
    loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return loss, {name: term.detach() for name, term in terms.items()}


def _both(pairs: Tensor, own: int, share: Share) -> Tensor:
    """Anchors and positives (2 * own, d) of all workers: all anchors first (2 * rows, d)."""
    width = pairs.shape[1]
    everyone = share.gather(torch.cat([pairs[:own], pairs[own:]], dim=1))
    return torch.cat([everyone[:, :width], everyone[:, width:]])
