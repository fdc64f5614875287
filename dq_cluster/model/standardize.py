"""The linear front of the network, from sums over the features that workers can add up."""

from typing import NamedTuple

import torch
from torch import Tensor

from dq_cluster.model.quantizer import AllReduce, alone


class Moments(NamedTuple):
    """number (), total (D,), and outer products (D, D) of features, in float64."""

    number: Tensor
    total: Tensor
    outer: Tensor


def moments(features: Tensor, all_reduce: AllReduce = alone) -> Moments:
    """The moments of features (n, D), added up over all workers."""
    x = features.double()
    count = torch.tensor(float(len(x)), dtype=x.dtype, device=x.device)
    return Moments(all_reduce(count), all_reduce(x.sum(0)), all_reduce(x.T @ x))


def principal_components(found: Moments, kept: int) -> tuple[Tensor, Tensor]:
    """Mean (D,) and the `kept` leading principal axes (D, kept) of the features."""
    mean = found.total / found.number
    covariance = found.outer / found.number - torch.outer(mean, mean)
    axes = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :kept]
    # An axis has no sign of its own; fix it so that every machine finds the same network.
    strongest = axes.abs().argmax(0)
    signs = axes[strongest, torch.arange(kept, device=axes.device)].sign()
    return mean.float(), (axes * signs).float()
