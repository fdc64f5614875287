"""DeepQuan against the classical quantizers, on identical features, split, and metrics."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch

from dq_cluster.errors import InputError
from dq_cluster.evaluate.baselines import BASELINES, Method
from dq_cluster.evaluate.metrics import mean_average_precision, recall_at_k
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.fit import embed_all, fit

EXACT = "exact search"
DEEPQUAN: dict[str, dict[str, Any]] = {
    "DeepQuan": {},
    "DeepQuan 4-bit": {"nbits": 4},
    "DeepQuan neighbours": {"objective": "neighbours"},
}
METHODS = (EXACT, *BASELINES, *DEEPQUAN)


class Row(NamedTuple):
    """One method at one code length; a value per seed.

    bits: 0 for exact search on the features; map: mAP@k by label; recall: recall@10 of the exact
    nearest features.
    """

    method: str
    bits: int
    map: tuple[float, ...]
    recall: tuple[float, ...]


def compare(
    features: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    *,
    methods: Sequence[str] = METHODS,
    bits: Sequence[int] = (16, 32, 64),
    seeds: Sequence[int] = (0, 1, 2),
    settings: ModelSettings | None = None,
    views: tuple[np.ndarray, np.ndarray] | None = None,
    k: int = 1000,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Search queries (q, D) among features (n, D) by every method, code length, and seed.

    All methods learn from `features` alone, without labels, and search the features centred and
    scaled to unit length; DeepQuan does both itself, with `settings` and `views` as in `fit`.
    Rows come per method in the order asked for; on_row gets each as soon as it is known.
    Raises InputError for an unknown method or fewer than k features.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise InputError(f"unknown methods {', '.join(unknown)}; known: {', '.join(METHODS)}")
    if len(features) < k:
        raise InputError(f"mAP@{k} needs {k} features to search, found {len(features)}")
    # Equal distances are told apart by row: files sorted by class would make ties a hint.
    order = np.random.default_rng(0).permutation(len(features))
    features, labels = features[order], labels[order]
    database, searched = _standardized(features, features), _standardized(features, queries)
    exact = faiss.knn(searched, database, k, metric=faiss.METRIC_INNER_PRODUCT)[1]
    settings = settings or ModelSettings()

    def measured(name: str, length: int, found: Sequence[np.ndarray]) -> Row:
        row = Row(
            name,
            length,
            tuple(mean_average_precision(f, query_labels, labels, k) for f in found),
            tuple(recall_at_k(f, exact) for f in found),
        )
        if on_row is not None:
            on_row(row)
        return row

    rows = []
    for name in methods:
        if name == EXACT:
            rows.append(measured(name, 0, [exact]))
            continue
        for length in bits:
            if name in BASELINES:
                method, data, asked = BASELINES[name], database, searched
            else:
                chosen = settings.model_dump(exclude_unset=True) | DEEPQUAN[name]
                method = _deepquan(ModelSettings(**{**chosen, "bits": length}), views)
                data, asked = features, queries
            rows.append(measured(name, length, [method(data, asked, length, k, s) for s in seeds]))
    return rows


def search_codes(
    network: DeepQuan, features: np.ndarray, queries: np.ndarray, k: int
) -> np.ndarray:
    """Rows (q, k) of the features whose codes are nearest to the queries' embeddings."""
    geometry = network.geometry
    metric = faiss.METRIC_INNER_PRODUCT if geometry.metric == "ip" else faiss.METRIC_L2
    index = faiss.IndexPQ(geometry.dim, geometry.m, geometry.nbits, metric)
    faiss.copy_array_to_vector(network.codebooks.numpy().ravel(), index.pq.centroids)
    index.is_trained = True
    for block in np.array_split(features, -(-len(features) // 8192)):
        index.add(_embedded(network, block))
    return index.search(_embedded(network, queries), k)[1]


def to_markdown(rows: Sequence[Row], k: int = 1000) -> str:
    """A Markdown table: a line per method, for each code length mAP@k and recall@10."""
    lengths = sorted({row.bits for row in rows if row.bits})
    head = [f"{what} {b} bits" for what in (f"mAP@{k}", "recall@10") for b in lengths]
    lines = ["| method | " + " | ".join(head) + " |", "|" + "---|" * (len(head) + 1)]
    by_place = {(row.method, row.bits): row for row in rows}
    for name in dict.fromkeys(row.method for row in rows):
        found = [by_place.get((name, b), by_place.get((name, 0))) for b in lengths]
        cells = [_spread(row.map) if row else "" for row in found]
        cells += [_spread(row.recall) if row else "" for row in found]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def _standardized(features: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    centred = wanted.astype(np.float32) - features.mean(0, dtype=np.float64).astype(np.float32)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def _deepquan(settings: ModelSettings, views: tuple[np.ndarray, np.ndarray] | None) -> Method:
    def method(
        database: np.ndarray, queries: np.ndarray, bits: int, k: int, seed: int
    ) -> np.ndarray:
        return search_codes(fit(database, settings, seed, views=views), database, queries, k)

    return method


def _embedded(network: DeepQuan, features: np.ndarray) -> np.ndarray:
    return embed_all(network, torch.from_numpy(features.astype(np.float32))).numpy()
