"""One training step, the same for a plain loop and for a distributed one."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dq_cluster.model import losses
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.deepquan import Output


class Batch(NamedTuple):
    """Features (n, D), one positive per feature (n, D), and how sure each pair is (n,)."""

    features: Tensor
    positives: Tensor
    weights: Tensor


def training_loss(
    network: nn.Module, batch: Batch, settings: ModelSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of all loss terms, and every term by name, detached.

    network: a DeepQuan, or a wrapper of one with the same forward. It is called once, so
    DistributedDataParallel synchronizes the gradients of both halves of the pair.
    """
    n = len(batch.features)
    output: Output = network(torch.cat([batch.features, batch.positives]))
    anchors, positives = output.embedding[:n], output.embedding[n:]
    terms = {
        # Always there: without it the decoder has no gradient, which DistributedDataParallel
        # does not forgive.
        "manifold": losses.manifold(output.reconstruction[:n], output.target[n:], batch.weights),
        "quantization": losses.quantization(output.embedding, output.quantized),
    }
    if settings.triplet_weight:
        terms["triplet"] = losses.weighted_triplet(
            anchors, positives, batch.weights, settings.temperature
        )
    if settings.distillation_weight:
        # Straight through: the centroids are compared, the embedding gets the gradient.
        coded = output.embedding + (output.quantized - output.embedding).detach()
        scores = anchors @ coded.T
        if settings.metric == "l2":  # half the squared distance, but for the anchor's own length
            scores = scores - coded.square().sum(1) / 2
        terms["distillation"] = losses.distillation(
            scores,
            output.target[:n] @ output.target.T,
            settings.temperature,
        )
    weights = {name: getattr(settings, f"{name}_weight") for name in terms}
    loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return loss, {name: term.detach() for name, term in terms.items()}
