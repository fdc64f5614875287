"""Backbone and DeepQuan trained together on two views of each image.

The code of one view is compared with the embedding of the other, in both directions, against all
images of the step: a contrastive loss with the quantizer in the loop (SPQ: Jang, Cho, ICCV 2021;
MeCoQ: Wang et al., AAAI 2022). The centroids follow the embeddings as moving averages of their
cells (van den Oord, Vinyals, Kavukcuoglu, NeurIPS 2017), from sums over all workers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dq_cluster.images.trainable import Trainable
from dq_cluster.model import losses, quantizer
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.fit import set_front, update_quantizer
from dq_cluster.model.losses import Share
from dq_cluster.model.quantizer import AllReduce, alone
from dq_cluster.model.standardize import add_moments, moments, view_moments

_DECAY = 0.99  # of the cells' averages, per step
_QUANTIZATION = 0.1  # weight of the distance to the centroids beside the contrast

Pair = tuple[Tensor, Tensor]
"""Two views of the same images: (n, s, s, 3) uint8 each."""


class Together(nn.Module):
    """A backbone, the DeepQuan on its features, and the running sums of its cells.

    Pixels (n, s, s, 3) uint8 to embeddings (n, dim).
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, backbone: Trainable, settings: ModelSettings) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = DeepQuan(settings, backbone.feature_dim)
        self.head.decoder.requires_grad_(False)  # the images themselves are compared, not features
        books = self.head.codebooks
        self.register_buffer("sums", torch.zeros_like(books))
        self.register_buffer("counts", torch.zeros(books.shape[:2]))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head.embed(self.backbone(pixels))

    def trained(self) -> list[nn.Parameter]:
        """The parameters that steps change."""
        return [p for p in self.parameters() if p.requires_grad]


@torch.no_grad()
def start(network: Together, first: Sequence[Pair], seed: int) -> None:
    """Set the head's linear front and its centroids from the first pairs of views.

    Every worker must pass the same pairs. The front keeps what differs between images and not
    between views of one, so that training begins at a good embedding.
    """
    features = [tuple(network.backbone(view) for view in pair) for pair in first]
    stats = add_moments(moments(view) for pair in features for view in pair)
    centre = stats.mean
    set_front(network.head, stats, add_moments(view_moments(a, b, centre) for a, b in features))
    embedding = torch.cat([network.head.embed(view) for pair in features for view in pair])
    update_quantizer(network.head, embedding, epoch=0, seed=seed)
    books = network.head.codebooks
    codes = quantizer.assign(network.head.embed(torch.cat([v for p in features for v in p])), books)
    _, counts = quantizer.cell_statistics(embedding, codes, books.shape[1])
    network.counts.copy_(counts)
    network.sums.copy_(books * counts.unsqueeze(2))


class Term(NamedTuple):
    """A worker's part of the loss of a step, and of each of its terms, detached."""

    loss: Tensor
    parts: dict[str, Tensor]


def coded(view: Tensor, codebooks: Tensor) -> Tensor:
    """The centroids of embeddings; straight through: the embedding gets their gradient."""
    centroids = quantizer.decode(quantizer.assign(view.detach(), codebooks), codebooks)
    return view + (centroids - view).detach()


def contrast(
    one: Tensor, other: Tensor, codebooks: Tensor, temperature: float, share: Share
) -> Term:
    """The loss between the embeddings (own rows, dim) of two views of the same images."""
    wide = share.gather(torch.cat([one, other, coded(one, codebooks), coded(other, codebooks)], 1))
    views, codes = wide.chunk(2, dim=1)
    (a, b), (code_a, code_b) = views.chunk(2, dim=1), codes.chunk(2, dim=1)
    sure = torch.ones(share.rows, device=one.device)

    def between(anchors: Tensor, positives: Tensor) -> Tensor:
        return losses.weighted_triplet(anchors, positives, sure, temperature, share)

    crossed = (between(a, code_b) + between(b, code_a)) / 2
    distance = sum(
        losses.quantization(view, code.detach(), 2 * share.rows)
        for view, code in zip((one, other), (c[share.own] for c in (code_a, code_b)), strict=True)
    )
    loss = crossed + _QUANTIZATION * distance
    return Term(
        loss, {"contrast": crossed.detach(), "quantization": torch.as_tensor(distance).detach()}
    )


def backward(
    network: Together,
    pair: Pair,
    share: Share,
    temperature: float,
    micro: int,
    all_reduce: AllReduce = alone,
) -> dict[str, Tensor]:
    """Add the gradients of this worker's part of a step; this worker's part of each loss term.

    share: which rows of the step the images of `pair` are.

    With more images than `micro`, embeddings are computed first without a graph, the loss gives
    their gradients, and the images pass again in micro-batches that carry these back (GradCache:
    Gao, Zhang, Han, Callan 2021). The result is that of one large batch.
    """
    own = len(pair[0])
    if own <= micro:
        both = network(torch.cat(pair))
        term = contrast(both[:own], both[own:], network.head.codebooks, temperature, share)
        term.loss.backward()
        _follow(network, both.detach(), all_reduce)
        return term.parts
    pieces = list(zip(*(view.split(micro) for view in pair), strict=True))
    with torch.no_grad():
        cached = [network(torch.cat(piece)) for piece in pieces]
    sides = [torch.cat(part) for part in zip(*(c.chunk(2) for c in cached), strict=True)]
    one, other = (side.requires_grad_() for side in sides)
    term = contrast(one, other, network.head.codebooks, temperature, share)
    term.loss.backward()
    gradients = [leaf.grad.split(micro) for leaf in (one, other) if leaf.grad is not None]
    for piece, *back in zip(pieces, *gradients, strict=True):
        network(torch.cat(piece)).backward(torch.cat(back))
    _follow(network, torch.cat(sides).detach(), all_reduce)
    return term.parts


@torch.no_grad()
def _follow(network: Together, embedding: Tensor, all_reduce: AllReduce) -> None:
    """Move the centroids towards the embeddings of a step, those of all workers."""
    books = network.head.codebooks
    codes = quantizer.assign(embedding, books)
    sums, counts = quantizer.cell_statistics(embedding, codes, books.shape[1])
    both = all_reduce(torch.cat([sums, counts.unsqueeze(2)], dim=2))
    scale = (1 - _DECAY) * network.counts.sum(1, keepdim=True) / both[..., -1].sum(1, keepdim=True)
    network.sums.mul_(_DECAY).add_(both[..., :-1] * scale.unsqueeze(2))
    network.counts.mul_(_DECAY).add_(both[..., -1] * scale)
    books.copy_(network.sums / network.counts.clamp(min=1e-6).unsqueeze(2))
