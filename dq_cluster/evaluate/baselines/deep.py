"""Binary codes from neural networks, learned without labels, for comparison.

The papers train a convolutional network end to end; here all see the same frozen features, so what
is compared is the loss. One trainer serves all: a batch of standardized features goes in, a loss
of the network's outputs comes out, Adam follows it. Functions of `hashing.Hashing`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dq_cluster.evaluate.baselines.hashing import Bits, Hashing

_BATCH = 256
_EPOCHS = 30

Loss = Callable[[nn.Module, Tensor], Tensor]
"""(network, features (n, D)) → a scalar. The sign of the network's output is the code."""


def trained(
    loss: Loss,
    *,
    hidden: tuple[int, ...] = (),
    learning_rate: float = 1e-3,
    epochs: int = _EPOCHS,
) -> Hashing:
    """A method that trains a perceptron with the widths `hidden`, ReLU between, by `loss`."""

    def hashing(train: np.ndarray, blocks: Sequence[np.ndarray], bits: int, seed: int) -> Bits:
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of the first weights, and of what a loss draws
            mean = train.mean(0)
            scale = max(float((train - mean).std()), 1e-9)
            data = torch.from_numpy(((train - mean) / scale).astype(np.float32))
            network = _perceptron((data.shape[1], *hidden, bits))
            optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
            for _ in range(epochs):
                for rows in torch.randperm(len(data), generator=generator).split(_BATCH):
                    if len(rows) < 2:  # a loss compares the rows of a batch
                        continue
                    value = loss(network, data[rows])
                    optimizer.zero_grad()
                    value.backward()
                    optimizer.step()
            with torch.no_grad():
                return [
                    (
                        network(torch.from_numpy(((block - mean) / scale).astype(np.float32))) > 0
                    ).numpy()
                    for block in blocks
                ]

    return hashing


def greedy_hash(network: nn.Module, x: Tensor) -> Tensor:
    """Su, Zhang, Han, Tian, "Greedy Hash", NeurIPS 2018, the unsupervised form: the cosines of
    the codes follow those of the features; sign with a straight-through gradient, and |h - b|³.

    Not known: the weight of the penalty for features like these; 0.1 as in the authors' code.
    """
    output = network(x)
    code = _sign(output)
    similar = F.normalize(x, dim=1)
    error = (code @ code.T / code.shape[1] - similar @ similar.T).square().mean()
    return error + 0.1 * (output - code.detach()).abs().pow(3).mean()


def bi_half(network: nn.Module, x: Tensor) -> Tensor:
    """Li, van Gemert, "Deep Unsupervised Image Hashing by Maximizing Bit Entropy", AAAI 2021: in
    each batch half of the rows get 1 in every bit (the optimal transport to a balanced code).

    Not known: the weight that pulls outputs to their codes on other features than VGG's; 3 here.
    """
    output = network(x)
    rank = output.detach().argsort(0).argsort(0)
    half = torch.where(rank >= len(x) // 2, 1.0, -1.0)
    code = output + (half - output).detach()
    similar = F.normalize(x, dim=1)
    cosines = F.normalize(code, dim=1)
    error = (cosines @ cosines.T - similar @ similar.T).square().mean()
    return error + 3 / len(x) * (output - half).square().mean()


def cib_hash(network: nn.Module, x: Tensor) -> Tensor:
    """Qiu, Su, Ou, Yu, Chen, "Unsupervised Hashing with Contrastive Information Bottleneck", IJCAI
    2021: two views of an image get similar random codes, unlike those of others, and the two
    distributions of codes agree.

    Not known on features: the views, crops and colours in the paper; dropout of a fifth of the
    feature stands for them. Temperature 0.3, weight 0.001 as in the paper.
    """
    one, other = (torch.sigmoid(network(F.dropout(x, 0.2))) for _ in range(2))
    codes = torch.cat([_sign(p - torch.rand_like(p)) for p in (one, other)])
    codes = F.normalize(codes, dim=1)
    scores = (codes @ codes.T / 0.3).masked_fill(torch.eye(len(codes), dtype=torch.bool), -1e4)
    pairs = torch.arange(len(codes)).roll(len(x))
    return F.cross_entropy(scores, pairs) + 1e-3 * (
        _divergence(one, other) + _divergence(other, one)
    )


def deep_bit(network: nn.Module, x: Tensor) -> Tensor:
    """Lin, Lu, Chen, Zhou, "Learning Compact Binary Descriptors with Unsupervised Deep Neural
    Networks", CVPR 2016: little quantization error, balanced bits, and the same code for a rotated
    image.

    Not known on features: the rotated image; dropout of a tenth of the feature stands for it.
    """
    output, turned = network(x), network(F.dropout(x, 0.1))
    code = _sign(output).detach()
    balance = torch.tanh(output).mean(0).square().mean()
    return (output - code).square().mean() + balance + (turned - code).square().mean()


def deep_hashing(network: nn.Module, x: Tensor) -> Tensor:
    """Erin Liong, Lu, Wang, Moulin, Zhou, "Deep Hashing for Compact Binary Codes Learning", CVPR
    2015: little quantization error, much variance in every bit, independent bits.

    Not known: the paper's weights for these features; 1 for each. Its constraint on every
    layer's weights is put on the codes, where bits must be independent.
    """
    output = torch.tanh(network(x))
    centred = output - output.mean(0)
    correlation = centred.T @ centred / len(x)
    identity = torch.eye(output.shape[1])
    error = (output - _sign(output).detach()).square().mean()
    return error - centred.square().mean() + (correlation - identity).square().mean()


def _perceptron(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _sign(output: Tensor) -> Tensor:
    """±1, and the gradient as if it were the identity."""
    return output + (torch.where(output > 0, 1.0, -1.0) - output).detach()


def _divergence(one: Tensor, other: Tensor) -> Tensor:
    """Of Bernoulli variables (n, bits): the mean over rows, summed over bits."""
    one, other = (p.clamp(1e-6, 1 - 1e-6) for p in (one, other))
    gain = one * (one / other).log() + (1 - one) * ((1 - one) / (1 - other)).log()
    return gain.sum(1).mean()
