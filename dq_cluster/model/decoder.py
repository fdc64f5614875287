"""Learning to decode: a small network from codes back to the embeddings they were made of.

The second stage of UNQ (Morozov, Babenko, ICCV 2019). `search.decoder` says how it is
used, and why its parameters lie on a grid.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dq_cluster.geometry import DECODER_GRID

_BATCH = 256
_LEARNING_RATE = 2e-3


class CodeDecoder(nn.Module):
    """Sub-codes (n, m) → vectors (n, dim): learned words, summed, plus one hidden layer.

    Its parameters are buffers: the gradient steps that train the network leave them alone.
    """

    words: Tensor
    hidden_words: Tensor
    hidden_bias: Tensor
    output: Tensor

    def __init__(self, m: int, ksub: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("words", torch.zeros(m, ksub, dim))
        self.register_buffer("hidden_words", torch.zeros(m, ksub, hidden))
        self.register_buffer("hidden_bias", torch.zeros(hidden))
        self.register_buffer("output", torch.zeros(hidden, dim))

    def forward(self, codes: Tensor) -> Tensor:
        m, ksub, _ = self.words.shape
        rows = codes + torch.arange(m, device=codes.device) * ksub
        hidden = F.embedding_bag(rows, self.hidden_words.flatten(0, 1), mode="sum")
        direct: Tensor = F.embedding_bag(rows, self.words.flatten(0, 1), mode="sum")
        return direct + F.relu(hidden + self.hidden_bias) @ self.output


def fit_decoder(
    decoder: CodeDecoder,
    codes: Tensor,
    embedding: Tensor,
    codebooks: Tensor,
    *,
    epochs: int,
    seed: int,
) -> float:
    """Learn to decode sub-codes (n, m) as the embeddings (n, dim) they stand for.

    It starts as the codebooks (m, ksub, dsub) and learns what to correct. Returns the mean squared
    distance that is left. Equal arguments give equal decoders on one kind of machine.
    """
    generator = torch.Generator().manual_seed(seed)
    m, _, dsub = codebooks.shape
    hidden_words = torch.randn(decoder.hidden_words.shape, generator=generator) / math.sqrt(m)
    decoder.hidden_words.copy_(hidden_words)
    decoder.hidden_bias.zero_()
    decoder.output.zero_()
    decoder.words.zero_()
    for place in range(m):  # a centroid fills the dimensions of its own sub-space
        decoder.words[place, :, place * dsub : (place + 1) * dsub] = codebooks[place]
    parameters = [
        buffer.requires_grad_()
        for buffer in (decoder.words, decoder.hidden_words, decoder.hidden_bias, decoder.output)
    ]
    steps = epochs * -(-len(codes) // _BATCH)
    optimizer = torch.optim.Adam(parameters, lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=steps + 1, pct_start=0.11
    )
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(len(codes), generator=generator).to(codes.device)
            for rows in order.split(_BATCH):
                loss = (decoder(codes[rows]) - embedding[rows]).square().sum(1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    with torch.no_grad():
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.copy_((parameter / DECODER_GRID).round() * DECODER_GRID)
        errors = [
            (decoder(some) - wanted).square().sum()
            for some, wanted in zip(codes.split(8192), embedding.split(8192), strict=True)
        ]
    return float(torch.stack(errors).sum()) / len(codes)
