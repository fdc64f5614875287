"""DeepQuan against the classical quantizers, on identical features, split, and metrics."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import faiss
import numpy as np

from dq_cluster.errors import InputError
from dq_cluster.evaluate.baselines import BASELINES, SEEDLESS
from dq_cluster.evaluate.exact import directions
from dq_cluster.evaluate.metrics import (
    average_precision,
    labelled_queries,
    precision_recall_curve,
    recall_at_k,
    relevance,
    relevant_in,
)
from dq_cluster.evaluate.rows import Row
from dq_cluster.evaluate.variants import ABLATIONS, VARIANTS, Trainer, search_codes
from dq_cluster.model.config import ModelSettings

EXACT = "exact search"
METHODS = (EXACT, *BASELINES, *VARIANTS)
# What a table needs to answer whether training helps, and in which form.
USUAL = (EXACT, "PQ", "OPQ", "RQ", "LSQ", "ITQ", *VARIANTS)
SHOWN = 8  # neighbours of each query that a row remembers
_CURVE_POINTS = 50


class _Run(NamedTuple):
    """One seed of one row: rows of the database found (q, k), and how training ended."""

    neighbours: np.ndarray
    training: Mapping[str, float] = {}


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
    finished: Mapping[tuple[str, int], Row] | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Search queries (q, D) among features (n, D) by every method, code length, and seed.

    All methods learn from `features` alone, without labels, and search the features centred and
    scaled to unit length; DeepQuan does both itself, with `settings` and `views` as in
    `prepare`. Methods that draw nothing at random run once, whatever the seeds.
    Rows come per method in the order asked for. `finished` rows, by method and bits, are taken as
    they are; on_row gets each of the others as soon as it is measured.
    Raises InputError for an unknown method, fewer than k features, or no query with a label.
    """
    if unknown := [name for name in methods if name not in (*METHODS, *ABLATIONS)]:
        raise InputError(
            f"unknown methods {', '.join(unknown)}; known: {', '.join((*METHODS, *ABLATIONS))}"
        )
    if len(features) < k:
        raise InputError(f"mAP@{k} needs {k} features to search, found {len(features)}")
    with_label = labelled_queries(query_labels, k)
    # Equal distances are told apart by row: files sorted by class would make ties a hint.
    order = np.random.default_rng(0).permutation(len(features))
    features, labels = features[order], labels[order]
    mean = features.mean(0, dtype=np.float64)
    database, searched = directions(features, mean), directions(queries, mean)
    exact = faiss.knn(searched, database, k, metric=faiss.METRIC_INNER_PRODUCT)[1]
    trainer = Trainer(features, settings or ModelSettings(), views)
    total = relevant_in(query_labels, labels)

    def run(name: str, length: int, seed: int) -> _Run:
        if name == EXACT:
            return _Run(exact)
        if name in BASELINES:
            return _Run(BASELINES[name](database, searched, length, k, seed))
        network, training = trainer.train({**VARIANTS, **ABLATIONS}[name], length, seed)
        return _Run(search_codes(network, features, queries, k), training)

    def measured(name: str, length: int) -> Row:
        began = time.monotonic()
        once = name == EXACT or name in SEEDLESS
        runs = [run(name, length, seed) for seed in (seeds[:1] if once else seeds)]
        relevant = [relevance(neighbours, query_labels, labels) for neighbours, _ in runs]
        precisions = [average_precision(hits, k) for hits in relevant]
        return Row(
            method=name,
            bits=length,
            map=[float(ap[with_label].mean()) for ap in precisions],
            recall=[recall_at_k(neighbours, exact) for neighbours, _ in runs],
            training={
                figure: [training[figure] for _, training in runs]
                for figure in ("variance", "perplexity")
                if figure in runs[0].training
            },
            curve=_curve(relevant, total, k),
            ap=precisions[0].round(5).tolist(),
            first=order[runs[0].neighbours[:, :SHOWN]].tolist(),
            seconds=round(time.monotonic() - began, 1),
        )

    finished = finished or {}
    rows = []
    for name in methods:
        for length in (0,) if name == EXACT else bits:
            row = finished.get((name, length))
            if row is None:
                row = measured(name, length)
                if on_row is not None:
                    on_row(row)
            rows.append(row)
    return rows


def _curve(relevant: Sequence[np.ndarray], total: np.ndarray, k: int) -> list[tuple[float, float]]:
    """(recall, precision) after ranks spread evenly over the orders of magnitude up to k."""
    ranks = np.unique(np.geomspace(1, k, _CURVE_POINTS).round().astype(int)) - 1
    curves = [precision_recall_curve(hits[:, :k], total) for hits in relevant]
    precision, recall = (np.mean(side, 0)[ranks].round(5) for side in zip(*curves, strict=True))
    return list(zip(recall.tolist(), precision.tolist(), strict=True))
