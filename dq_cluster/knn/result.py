"""What a neighbours run leaves on storage.

    <output>/run.json, alive/, ledger/       the run (see `run`, `fragments.ledger`)
    <output>/part-<fragment>-….parquet       rows in the order of the queries
    <output>/neighbours.json                 written when all is there

Columns: `id` of the query, `neighbours` (list of ids, best first), `scores` (list of float32),
`row` (the query's ordinal in the version, or its row in the features), `rows` (list of ordinals).
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from dq_cluster.document import Document
from dq_cluster.index.manifest import FileEntry
from dq_cluster.storage import Storage

NAME = "neighbours.json"


class NeighboursManifest(Document):
    """Files of a result, in the order of the queries.

    model, version: what was searched. settings: what was asked. queries: rows of all files. full:
    queries that have k neighbours, so that there may be more `within` the score.
    """

    NAME: ClassVar[str] = "neighbours manifest"

    model: str
    version: int
    settings: dict[str, Any]
    files: tuple[FileEntry, ...]
    queries: int
    full: int


def schema_of(id_type: pa.DataType, found_type: pa.DataType) -> pa.Schema:
    """id_type: of the queries; found_type: of the version's ids."""
    return pa.schema(
        [
            ("id", id_type),
            ("neighbours", pa.list_(found_type)),
            ("scores", pa.list_(pa.float32())),
            ("row", pa.int64()),
            ("rows", pa.list_(pa.int64())),
        ]
    )


def read_result(storage: Storage) -> NeighboursManifest:
    """The manifest of the result in a folder. Raises NotFoundError where none is complete."""
    return NeighboursManifest.parse(storage.read(NAME), f"{storage.uri}/{NAME}")


def parts(storage: Storage, manifest: NeighboursManifest) -> Iterator[pa.Table]:
    """The rows of each file, in order."""
    for file in manifest.files:
        yield pq.read_table(storage.open(file.path))
