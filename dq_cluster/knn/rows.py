"""Ids and carried columns of some rows of a version, without loading the version."""

import numpy as np
import pyarrow as pa

from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import open_code_file, row_schema
from dq_cluster.index.columns import cast_columns
from dq_cluster.index.manifest import Manifest


def values_of(
    index: Index, version: Manifest, rows: np.ndarray, columns: list[str]
) -> dict[str, pa.Array]:
    """The columns of `rows` (m,), ordinals in any order, read file by file."""
    schema = row_schema(index.storage, version)
    schema = pa.schema([schema.field(name) for name in columns])
    order = np.argsort(rows, kind="stable")
    starts = np.cumsum([0, *(file.rows for file in version.files)])
    places = np.split(rows[order], rows[order].searchsorted(starts[1:-1]))
    tables = [schema.empty_table()]
    for file, start, own in zip(version.files, starts, places, strict=False):
        if len(own):
            with open_code_file(
                index.storage, file, model=version.model, geometry=version.geometry
            ) as opened:
                table = opened.read(columns=columns).select(columns)
            tables.append(cast_columns(table.take(pa.array(own - start)), schema))
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    table = pa.concat_tables(tables).combine_chunks().take(pa.array(back))
    return {name: table.column(name).combine_chunks() for name in columns}
