"""What a code file's own Parquet statistics say about its columns, for its manifest entry."""

from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from dq_cluster.index.manifest import ColumnStats


def column_stats(metadata: pq.FileMetaData, names: Sequence[str]) -> dict[str, ColumnStats]:
    """Fold the row groups' statistics. A column is left out unless they bound all its values."""
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    leaves = range(metadata.num_columns if groups else 0)
    folded: dict[str, ColumnStats] = {}
    for place in leaves:
        chunks = [group.column(place) for group in groups]
        name = chunks[0].path_in_schema
        if name not in names:
            continue
        # Text that is too long has no bounds; nor has a chunk of nulls, which needs none.
        nulls = [(c.statistics and c.statistics.null_count) or 0 for c in chunks]
        valued = [c for c, n in zip(chunks, nulls, strict=True) if c.num_values != n]
        bounds = [_bounds(chunk) for chunk in valued]
        if bounds and None not in bounds:
            lows, highs = zip(*bounds, strict=True)
            folded[name] = ColumnStats(min=min(lows), max=max(highs), nulls=sum(nulls))
    return folded


def _bounds(chunk: pq.ColumnChunkMetaData) -> tuple[Any, Any] | None:
    """The smallest and the largest value of a column chunk, where JSON can say them."""
    stats = chunk.statistics
    if stats is None or not stats.has_min_max:
        return None
    try:
        low, high = stats.min, stats.max
    except UnicodeDecodeError:  # bytes that call themselves text
        return None
    return (low, high) if isinstance(low, int | float | str) else None
