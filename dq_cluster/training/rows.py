"""The rows that are trained on: a feature set without those held out, in pieces."""

import functools
from dataclasses import dataclass

import numpy as np

from dq_cluster.images.features import FeatureSet
from dq_cluster.training.split import Split, blocks


@dataclass(frozen=True)
class Piece:
    """Ordinals [start, stop) of the feature set; training rows [first, last) lie among them."""

    number: int
    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class TrainingRows:
    """The training rows of a feature set, numbered 0 … n - 1. Cheap to pickle."""

    features: FeatureSet
    split: Split

    @functools.cached_property
    def count(self) -> int:
        """How many there are."""
        return len(self.split.training())

    def pieces(self) -> list[Piece]:
        """All training rows, in pieces that a worker's memory can hold."""
        ordinals = self.split.training()
        return [
            Piece(number, start, stop, *map(int, np.searchsorted(ordinals, (start, stop))))
            for number, (start, stop) in enumerate(blocks(self.features.rows))
        ]

    def read(self, piece: Piece) -> np.ndarray:
        """Features (last - first, dim) of the piece's training rows, as stored."""
        return self.features.read(piece.start, piece.stop)[self._kept(piece)]

    def read_pairs(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """Features of the piece's training rows that have another view, and of those views."""
        chosen, views = self.features.views(piece.start, piece.stop)
        kept = self._kept(piece)
        features = self.features.read(piece.start, piece.stop)
        return features[kept & chosen], views[kept[chosen]]

    def read_held_out(self, piece: Piece) -> np.ndarray:
        """Features of the rows within the piece's ordinals that are not trained on."""
        return self.features.read(piece.start, piece.stop)[~self._kept(piece)]

    def _kept(self, piece: Piece) -> np.ndarray:
        return ~self.split.held_out(np.arange(piece.start, piece.stop))
