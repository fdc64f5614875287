"""Merging the answers of several shards into one, deterministically."""

from collections.abc import Sequence

import numpy as np

MISSING = -1
"""The ordinal of a place that no row fills; its score is -inf."""


def best(scores: np.ndarray, ordinals: np.ndarray, k: int) -> np.ndarray:
    """Columns of the `k` best of each row: score descending, then ordinal ascending.

    scores (n, c) float, ordinals (n, c) int64 → columns (n, min(k, c)) int64. Missing places
    come last.
    """
    last = np.where(ordinals == MISSING, np.iinfo(np.int64).max, ordinals)
    return np.lexsort((last, -scores), axis=-1)[:, :k]


def merge(
    answers: Sequence[tuple[np.ndarray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge shards' answers, each scores (n, k_i) and ordinals (n, k_i), into the `k` best.

    Returns scores (n, k) float32, ordinals (n, k) int64 and columns (n, k) int64, the places of
    the winners in the answers laid side by side. Where each answer holds the best `k` of its
    shard, the result is the best `k` of all shards together.
    """
    scores = np.hstack([answer[0] for answer in answers])
    ordinals = np.hstack([answer[1] for answer in answers])
    columns = best(scores, ordinals, k)
    return (
        np.take_along_axis(scores, columns, axis=1),
        np.take_along_axis(ordinals, columns, axis=1),
        columns,
    )


def rerank(
    answers: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `k` best by their second score among the best by their first.

    answers: of each shard scores, ordinals, and second scores, all (n, c). What competes are the
    `c` best of all shards, so how the rows are sharded changes nothing. Returns what `merge` does.
    """
    _, ordinals, columns = merge([answer[:2] for answer in answers], answers[0][0].shape[1])
    second = np.take_along_axis(np.hstack([answer[2] for answer in answers]), columns, axis=1)
    order = best(second, ordinals, k)
    return (
        np.take_along_axis(second, order, axis=1),
        np.take_along_axis(ordinals, order, axis=1),
        np.take_along_axis(columns, order, axis=1),
    )
