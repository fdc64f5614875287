"""DeepQuan in the comparison: its variants and ablations, trained on one set of features."""

import logging
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from dq_cluster.model.config import ModelSettings
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.fit import PREPARED_BY, Prepared, embed_all, fit, prepare
from dq_cluster.model.neighbours import Positives
from dq_cluster.search.decoder import Decoder, Redecoder
from dq_cluster.search.faiss_index import codes_of, unfilled
from dq_cluster.search.merge import rerank
from dq_cluster.search.placement import Places

log = logging.getLogger(__name__)


class Variant(NamedTuple):
    """A way to train DeepQuan: the settings that differ from the user's, with or without the
    views of images, and whether positives are drawn by weight or evenly."""

    overrides: Mapping[str, Any] = {}
    views: bool = True
    weights: bool = True


OURS = "DeepQuan"
# Candidates that a decoder re-ranks: ten for each neighbour of recall@10.
_DECODED = 100
VARIANTS = {
    OURS: Variant(),
    "DeepQuan 4-bit": Variant({"nbits": 4}),
    "DeepQuan neighbours": Variant({"objective": "neighbours"}),
    "DeepQuan decoded": Variant({"objective": "neighbours", "dim": 64, "decode_hidden": 512}),
}
ABLATIONS = {
    "no triplet": Variant({"triplet_weight": 0.0}),
    "no weights": Variant(weights=False),
    "no manifold": Variant({"manifold_weight": 0.0}),
    "two-step": Variant({"quantization_weight": 0.0}),
    "no views": Variant(views=False),
}


class Trainer:
    """Trains variants on features (n, D); what seeds and code lengths share is prepared once."""

    def __init__(
        self,
        features: np.ndarray,
        settings: ModelSettings,
        views: tuple[np.ndarray, np.ndarray] | None,
    ) -> None:
        self._features = features
        self._settings = settings.model_dump(exclude_unset=True)
        self._views = views
        self._shared: dict[tuple[Any, ...], Prepared] = {}

    def train(self, variant: Variant, bits: int, seed: int) -> tuple[DeepQuan, dict[str, float]]:
        """A network for codes of `bits`, and how its training ended: see `fit`'s summary."""
        settings = ModelSettings(**{**self._settings, **variant.overrides, "bits": bits})
        last: dict[str, float] = {}
        network = fit(
            self._features,
            settings,
            seed,
            on_epoch=lambda _, summary: last.update(summary),
            prepared=self._prepared(settings, variant),
        )
        return network, last

    def _prepared(self, settings: ModelSettings, variant: Variant) -> Prepared:
        key = (variant.views, *(getattr(settings, name) for name in PREPARED_BY))
        if key not in self._shared:
            began = time.monotonic()
            self._shared[key] = prepare(
                self._features, settings, self._views if variant.views else None
            )
            log.info("front and positives found in %.0f s", time.monotonic() - began)
        prepared = self._shared[key]
        if variant.weights:
            return prepared
        rows, weights = prepared.positives
        even = Positives(rows, (weights > 0).astype(weights.dtype))
        return prepared._replace(positives=even)


def search_codes(
    network: DeepQuan, features: np.ndarray, queries: np.ndarray, k: int
) -> np.ndarray:
    """Rows (q, k) of the features whose codes are nearest to the queries' embeddings; the first of
    them in the order of the decoder, where the network has one."""
    index = unfilled(len(features), network.codebooks.numpy(), network.geometry)
    codes = codes_of(index)
    for rows in np.array_split(np.arange(len(features)), -(-len(features) // 8192)):
        codes[rows] = network.code(_embedded(network, features[rows])).numpy()
    embeddings = _embedded(network, queries).numpy()
    if not network.settings.decode_hidden:
        return index.search(embeddings, k)[1]
    scores, rows = index.search(embeddings, max(k, _DECODED))
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    decoder = Redecoder([codes], Decoder(tensors, network.geometry), Places([len(codes)], [0]))
    first = scores[:, :_DECODED], rows[:, :_DECODED]
    _, decoded, _ = rerank([(*first, decoder.scores(embeddings, first[1]))], _DECODED)
    # What is behind them keeps its place.
    return np.hstack([decoded, rows[:, _DECODED:]])[:, :k]


def _embedded(network: DeepQuan, features: np.ndarray) -> torch.Tensor:
    return embed_all(network, torch.from_numpy(features.astype(np.float32)))
