"""A small network from vectors of sentences to embeddings of images, learned from captions.

Trained contrastively (InfoNCE, van den Oord et al. 2018, in both directions, as Radford et al. 2021
do for whole networks) on the pile's own pairs; the embedding of the images stays as it is.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_WIDTH = 1024
_BATCH = 512
_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 0.05
_DROPOUT = 0.3
_TEMPERATURE = 0.05
_NOISE = 0.02  # of a sentence's vector, which has unit length, in each training step
FEWEST = 50  # pairs from which anything can be learned


class WordsNetwork(nn.Module):
    """Vectors (n, inputs) of unit length → embeddings (n, dim) of unit length."""

    def __init__(self, inputs: int, dim: int, width: int = _WIDTH) -> None:
        super().__init__()
        self.about = {"inputs": inputs, "dim": dim, "width": width}
        self.linear = nn.Linear(inputs, dim)
        self.hidden = nn.Sequential(
            nn.Linear(inputs, width),
            nn.GELU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(width, dim),
        )

    def forward(self, vectors: Tensor) -> Tensor:
        return F.normalize(self.linear(vectors) + self.hidden(vectors), dim=1)


class Pairs(NamedTuple):
    """Vectors (n, inputs) of captions and embeddings (n, dim) of their images, both of unit
    length; equal captions have the same number in `group` (n,)."""

    vectors: np.ndarray
    embeddings: np.ndarray
    group: np.ndarray


def fit_words(pairs: Pairs, *, epochs: int = 60, seed: int = 0) -> WordsNetwork:
    """Learn from pairs; equal arguments give equal weights on one kind of processor."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = WordsNetwork(pairs.vectors.shape[1], pairs.embeddings.shape[1])
        _train(network, pairs, epochs, generator)
    return network.eval()


def _train(network: WordsNetwork, pairs: Pairs, epochs: int, generator: torch.Generator) -> None:
    vectors, embeddings = map(torch.from_numpy, (pairs.vectors, pairs.embeddings))
    group = torch.from_numpy(pairs.group)
    count = len(vectors)
    steps = epochs * -(-count // _BATCH)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=_LEARNING_RATE, total_steps=max(steps, 2), pct_start=0.1
    )
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(count, generator=generator).split(_BATCH):
            noise = torch.randn(len(rows), vectors.shape[1], generator=generator)
            given = F.normalize(vectors[rows] + _NOISE * noise, dim=1)
            loss = _contrast(network(given), embeddings[rows], group[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _contrast(words: Tensor, images: Tensor, group: Tensor) -> Tensor:
    """Cross entropy of finding one's images, and one's words; equal captions share theirs."""
    scores = words @ images.T / _TEMPERATURE
    same = (group[:, None] == group[None]).float()
    there = -(F.log_softmax(scores, 1) * same).sum(1) / same.sum(1)
    back = -(F.log_softmax(scores, 0) * same).sum(0) / same.sum(0)
    return (there + back).mean() / 2


def from_tensors(about: dict[str, Any], tensors: dict[str, np.ndarray]) -> WordsNetwork:
    """The network that `about` describes, with these weights."""
    network = WordsNetwork(**about)
    network.load_state_dict({name: torch.from_numpy(t.copy()) for name, t in tensors.items()})
    return network.eval()
