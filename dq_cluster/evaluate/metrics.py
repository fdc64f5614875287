"""Retrieval metrics over ranked lists, as the literature on learned codes computes them."""

import numpy as np
import pandas as pd

from dq_cluster.errors import InputError


def labelled(labels: np.ndarray) -> np.ndarray:
    """Which items have a label, (n,) bool: one that is not null, or one class or more."""
    return pd.Series(labels).notna().to_numpy() if labels.ndim == 1 else labels.sum(1) > 0


def labelled_queries(labels: np.ndarray, k: int) -> np.ndarray:
    """Which queries count in mAP@k, (q,) bool. Raises InputError if none has a label."""
    with_label = labelled(labels)
    if not with_label.any():
        raise InputError(f"mAP@{k} needs labels, and none of the {len(with_label)} queries has one")
    return with_label


def relevance(neighbours: np.ndarray, query_labels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which retrieved items share their query's label: (q, k) bool.

    neighbours: (q, k) rows of the database, best first, -1 where nothing was found.
    Labels are (n,) classes or (n, classes) booleans, for which one shared class is enough. What
    has no label is of no class: it shares none, not even with what has no label either.
    """
    valid = neighbours >= 0
    retrieved = labels[np.where(valid, neighbours, 0)]
    if labels.ndim == 1:
        return (retrieved == query_labels[:, None]) & valid & labelled(query_labels)[:, None]
    return (retrieved & query_labels[:, None, :]).any(2) & valid


def relevant_in(query_labels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many items of the database share each query's label: (q,) int. Labels as above."""
    if labels.ndim == 1:
        counts = pd.Series(labels).value_counts()
        return counts.reindex(query_labels, fill_value=0).to_numpy()
    return (query_labels.astype(np.float32) @ labels.astype(np.float32).T > 0).sum(1)


def average_precision(relevant: np.ndarray, k: int) -> np.ndarray:
    """AP@k per query (q,) from relevance (q, ≥ k), divided by the hits within the top k.

    That divisor is what published mAP@k of hashing and quantization uses; a query without a
    hit counts 0.
    """
    if relevant.shape[1] < k:
        raise InputError(f"AP@{k} needs {k} results per query, found {relevant.shape[1]}")
    hits = relevant[:, :k].astype(np.float64)
    precision = hits.cumsum(1) / np.arange(1, k + 1)
    return (precision * hits).sum(1) / np.maximum(hits.sum(1), 1)


def mean_average_precision(
    neighbours: np.ndarray, query_labels: np.ndarray, labels: np.ndarray, k: int = 1000
) -> float:
    """mAP@k of ranked lists (q, ≥ k) against labels; see `relevance`, `average_precision`.

    Queries without a label are left out. Raises InputError if none has one.
    """
    with_label = labelled_queries(query_labels, k)
    relevant = relevance(neighbours[with_label], query_labels[with_label], labels)
    return float(average_precision(relevant, k).mean())


def recall_at_k(neighbours: np.ndarray, exact: np.ndarray, k: int = 10) -> float:
    """Share of the `k` exact neighbours (q, ≥ k) that are among the first `k` retrieved."""
    if min(neighbours.shape[1], exact.shape[1]) < k:
        raise InputError(
            f"recall@{k} needs {k} results per query, "
            f"found {neighbours.shape[1]} and {exact.shape[1]}"
        )
    shared = [
        len(np.intersect1d(ours[:k], truth[:k]))
        for ours, truth in zip(neighbours, exact, strict=True)
    ]
    return float(np.mean(shared)) / k


def precision_recall_curve(
    relevant: np.ndarray, total_relevant: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean precision and recall (k,) over queries after 1 … k results.

    relevant: (q, k) bool; total_relevant: (q,) relevant items in the database. Queries that
    have none are left out.
    """
    kept = total_relevant > 0
    hits = relevant[kept].cumsum(1)
    precision = hits / np.arange(1, hits.shape[1] + 1)
    recall = hits / total_relevant[kept, None]
    return precision.mean(0), recall.mean(0)
