"""From the answers of shards to hits: merge, then name the winners."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dq_cluster.search.merge import MISSING, merge, rerank
from dq_cluster.search.shard import ShardAnswer
from dq_cluster.search.values import to_json
from dq_cluster.serve.api import Hit


def winners(answers: Sequence[ShardAnswer], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best of all shards: scores and ordinals, both (n, k); by the second scores where
    the shards have some."""
    refined = [
        (a.scores, a.ordinals, a.second_scores) for a in answers if a.second_scores is not None
    ]
    if refined:
        scores, ordinals, _ = rerank(refined, k)
    else:
        scores, ordinals, _ = merge([(a.scores, a.ordinals) for a in answers], k)
    return scores, ordinals


def names_of(answers: Sequence[ShardAnswer]) -> dict[int, Sequence[Any]] | None:
    """The id of every row in the answers, by ordinal; None where some answer has no ids."""
    names: dict[int, Sequence[Any]] = {}
    for answer in answers:
        if answer.ids is None:
            return None
        filled = answer.ordinals[answer.ordinals != MISSING]
        names.update(zip(filled.tolist(), ((id,) for id in answer.ids), strict=True))
    return names


def names_in(ordinals: np.ndarray, rows: pa.Table) -> dict[int, Sequence[Any]]:
    """Id and columns, as JSON says them, of `rows`, by their ordinals (n,)."""
    values = zip(*map(to_json, rows.columns), strict=True)
    return dict(zip(ordinals.tolist(), values, strict=True))


def near_enough(hits: list[list[Hit]], within: float | None) -> list[list[Hit]]:
    """Of each query the hits, best first, that score at least `within`; None: all."""
    if within is None:
        return hits
    return [list(itertools.takewhile(lambda hit: hit.score >= within, each)) for each in hits]


def to_hits(
    scores: np.ndarray,
    ordinals: np.ndarray,
    names: Mapping[int, Sequence[Any]],
    columns: Sequence[str],
) -> list[list[Hit]]:
    """The hits of each query, from the winners' scores and ordinals (n, k); `names` knows all."""
    hits = []
    for some_scores, some_ordinals in zip(scores.tolist(), ordinals.tolist(), strict=True):
        of_query = []
        for score, ordinal in zip(some_scores, some_ordinals, strict=True):
            if ordinal != MISSING:
                id, *more = names[ordinal]
                of_query.append(Hit(id, score, dict(zip(columns, more, strict=True))))
        hits.append(of_query)
    return hits
