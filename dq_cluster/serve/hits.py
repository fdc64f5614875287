"""From the answers of shards to hits: merge, then look up the winners' ids and columns."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dq_cluster.search.merge import MISSING, merge, rerank
from dq_cluster.search.shard import ShardAnswer
from dq_cluster.search.values import to_json
from dq_cluster.serve.api import Hit


def merge_hits(answers: Sequence[ShardAnswer], k: int, columns: tuple[str, ...]) -> list[list[Hit]]:
    """Merge the shards' answers, re-rank, and look up id and columns of the winners."""
    refined = [
        (a.scores, a.ordinals, a.second_scores) for a in answers if a.second_scores is not None
    ]
    if refined:
        scores, ordinals, places = rerank(refined, k)
    else:
        scores, ordinals, places = merge([(a.scores, a.ordinals) for a in answers], k)
    # Shards send rows for the places they filled, in order: number those over all shards.
    filled = [a.ordinals != MISSING for a in answers]
    numbers, start = [], 0
    for mask in filled:
        numbers.append(np.where(mask, start + np.cumsum(mask).reshape(mask.shape) - 1, -1))
        start += int(mask.sum())
    winners = np.take_along_axis(np.hstack(numbers), places, axis=1)
    present = ordinals != MISSING
    tables = [a.rows for a in answers if a.rows.num_rows]
    if not tables:
        return [[] for _ in scores]
    rows = pa.concat_tables(tables).take(pa.array(winners[present]))
    values = zip(*(to_json(rows.column(name)) for name in ("id", *columns)), strict=True)
    hits = [
        Hit(id, score, dict(zip(columns, more, strict=True)))
        for score, (id, *more) in zip(scores[present].tolist(), values, strict=True)
    ]
    ends = np.cumsum(present.sum(axis=1))
    return [hits[end - count : end] for end, count in zip(ends, present.sum(axis=1), strict=True)]
