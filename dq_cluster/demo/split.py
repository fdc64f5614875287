"""Setting some images aside as queries that the index must not contain."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from dq_cluster.errors import InputError
from dq_cluster.storage import Storage

MAX_QUERIES = 1000
_FEWEST_IMAGES = 500
# An encoding run cuts Parquet input between row groups, so there must be some.
_ROW_GROUP = 500


def split_features(features: str, database: str, queries: str, seed: int = 0) -> dict[str, int]:
    """Divide a feature set at random: 5 percent, at most 1,000 rows, become queries.

    Raises InputError for fewer than 500 images, too few to train and measure anything.
    """
    source = Storage(features)
    dataset = ds.dataset(source.path(), filesystem=source.arrow, format="parquet")
    rows = dataset.count_rows()
    if rows < _FEWEST_IMAGES:
        raise InputError(
            f"{features} has {rows} images; the demo needs {_FEWEST_IMAGES} or more to be telling"
        )
    aside = np.zeros(rows, bool)
    count = min(MAX_QUERIES, rows // 20)
    aside[np.random.default_rng(seed).choice(rows, count, replace=False)] = True
    for uri, chosen in ((database, ~aside), (queries, aside)):
        target = Storage(uri)
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, dataset.schema) as writer:
            for batch in _kept(dataset, chosen):
                writer.write_batch(batch, row_group_size=_ROW_GROUP)
        target.write("part-00000.parquet", sink.getvalue().to_pybytes())
    return {"database": rows - count, "queries": count}


def _kept(dataset: ds.Dataset, chosen: np.ndarray) -> Iterator[pa.RecordBatch]:
    first = 0
    for batch in dataset.to_batches():
        mask = chosen[first : first + batch.num_rows]
        first += batch.num_rows
        if mask.any():
            yield batch.filter(pa.array(mask))
