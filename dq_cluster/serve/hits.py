"""From the answers of shards to hits: merge, then name the winners."""

from collections.abc import Sequence

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


def to_hits(
    scores: np.ndarray,
    ordinals: np.ndarray,
    known: np.ndarray,
    rows: pa.Table,
    columns: Sequence[str],
) -> list[list[Hit]]:
    """The hits of each query.

    scores and ordinals (n, k): the winners. rows: id and `columns` of the rows `known` (m,),
    ascending, which holds every winner.
    """
    present = ordinals != MISSING
    places = np.searchsorted(known, ordinals[present]).tolist()
    values = list(zip(*(to_json(rows.column(name)) for name in ("id", *columns)), strict=True))
    hits = []
    for score, place in zip(scores[present].tolist(), places, strict=True):
        id, *more = values[place]
        hits.append(Hit(id, score, dict(zip(columns, more, strict=True))))
    ends = np.cumsum(present.sum(axis=1))
    return [hits[end - count : end] for end, count in zip(ends, present.sum(axis=1), strict=True)]
