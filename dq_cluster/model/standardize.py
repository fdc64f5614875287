"""The linear front of the network, from sums over the features that workers can add up."""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dq_cluster.model.quantizer import AllReduce, alone

# Principal axes that directions are looked for among: no more than take seconds.
_AXES = 2048
# Found on held-out images: 0 keeps every direction alike, 1 leaves little but the first few.
_EMPHASIS = 0.3


class Moments(NamedTuple):
    """number () of features, their total (D,) and outer products (D, D), in float64."""

    number: Tensor
    total: Tensor
    outer: Tensor

    @property
    def mean(self) -> Tensor:
        """(D,) float64."""
        return self.total / self.number


def moments(features: Tensor, all_reduce: AllReduce = alone) -> Moments:
    """The moments of features (n, D), added up over all workers."""
    x = features.double()
    number = torch.tensor(float(len(x)), dtype=x.dtype, device=x.device)
    return Moments(all_reduce(number), all_reduce(x.sum(0)), all_reduce(x.T @ x))


def add_moments(parts: Iterable[Moments]) -> Moments:
    """The moments of all features from those of disjoint parts."""
    return reduce(
        lambda one, other: Moments(*(a + b for a, b in zip(one, other, strict=True))), parts
    )


def principal_components(moments: Moments, kept: int) -> tuple[Tensor, Tensor]:
    """Mean (D,) and the `kept` leading principal axes (D, kept) of the features."""
    return moments.mean.float(), _leading(_covariance(moments), kept).float()


def view_moments(features: Tensor, views: Tensor, centre: Tensor) -> Moments:
    """Moments of the difference between features (n, D) and those of another view each (n, D).

    A view is the same image cropped, mirrored, or recoloured at random. Both sides are centred
    (`centre` (D,) float64: the mean of all features) and scaled to unit length first, as the
    network sees them.
    """
    one, other = (F.normalize(x.double() - centre, dim=1) for x in (features, views))
    return moments(one - other)


def discriminative_components(
    moments: Moments, between_views: Moments, kept: int, whitening: float
) -> tuple[Tensor, Tensor]:
    """Mean (D,) and the `kept` directions (D, kept) that differ most between images for their
    difference between views of one image: linear discriminant analysis (Fisher 1936) with every
    image as its own class. Each direction is scaled by that ratio of variances to a power, so
    that those which views hardly change count most, and the last ones kept hardly matter.

    whitening: the power of the covariance between views that features are divided by. 0.5 is the
    analysis proper; more weighs down further what views change.
    """
    mean, axes = principal_components(moments, max(_AXES, kept))
    basis = axes.double()
    within = basis.T @ _covariance(between_views) @ basis
    values, vectors = torch.linalg.eigh(within)
    # As much of the mean variance as the pairs leave uncertain is added to every direction, so
    # that none is divided by nothing.
    shrinkage = len(values) / between_views.number * values.mean()
    whiten = vectors / (values + shrinkage) ** whitening @ vectors.T
    total = whiten @ basis.T @ _covariance(moments) @ basis @ whiten
    directions = _leading(total, kept)
    ratios = (directions * (total @ directions)).sum(0).clamp(min=0)
    return mean, (basis @ whiten @ directions * ratios**_EMPHASIS).float()


def _covariance(moments: Moments) -> Tensor:
    return moments.outer / moments.number - torch.outer(moments.mean, moments.mean)


def _leading(covariance: Tensor, kept: int) -> Tensor:
    axes = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :kept]
    # An axis has no sign of its own; fix it so that every machine finds the same network.
    strongest = axes.abs().argmax(0)
    return axes * axes[strongest, torch.arange(axes.shape[1], device=axes.device)].sign()
