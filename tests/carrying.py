"""Small versions whose files carry whatever columns a test says."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dq_cluster import __version__
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import code_table, write_code_file
from dq_cluster.index.columns import canonical, pack_schema
from dq_cluster.index.manifest import FileEntry, Manifest, Producer
from dq_cluster.index.models import ModelCard
from tests.support import make_model

DIM, M = 8, 4
GEOMETRY = CodeGeometry(dim=DIM, m=M)


def trained(uri: str) -> tuple[Index, ModelCard]:
    """An index with a model and no version."""
    index = Index.at(uri)
    return index, make_model(uri, dim=DIM, m=M, feature_dim=DIM)


def write_rows(
    index: Index, card: ModelCard, path: str, first: int, columns: pa.Table
) -> FileEntry:
    """A code file with the ids from `first` on."""
    shape = columns.num_rows, GEOMETRY.code_size
    codes = np.random.default_rng(first).integers(0, 256, shape, np.uint8)
    ids = pa.array(np.arange(first, first + len(codes)))
    table = code_table(ids, codes, GEOMETRY, columns)
    return write_code_file(index.storage, path, table, model=card.digest, geometry=GEOMETRY)


def publish_carrying(
    index: Index, card: ModelCard, files: Sequence[pa.Table], schema: pa.Schema | None = None
) -> Manifest:
    """A version whose files carry these columns; its ids count from 0.

    schema: what its manifest says of the types, nothing where an older dq_cluster wrote it.
    """
    entries, first = [], 0
    number = len(index.versions())
    for place, columns in enumerate(files):
        path = f"data/r{number}/part-{place}.parquet"
        entries.append(write_rows(index, card, path, first, columns))
        first += columns.num_rows
    return index.publish(
        lambda version, parent: Manifest(
            version=version,
            parent=parent,
            model=card.digest,
            geometry=GEOMETRY,
            id_type="int64",
            columns=tuple(files[0].column_names),
            arrow_schema=None if schema is None else pack_schema(schema),
            files=tuple(entries),
            rows=first,
            producer=Producer(dq_cluster=__version__, run=f"r{number}"),
        )
    )


def types_of(columns: pa.Table) -> pa.Schema:
    """What a manifest says of a version of such files."""
    return pa.schema([(field.name, canonical(field.type)) for field in columns.schema])
