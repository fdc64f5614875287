"""Ids and carried columns of a shard: on local disk, memory-mapped, read for the winners only."""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dq_cluster.errors import InputError
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import open_code_file
from dq_cluster.index.filters import Filter
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.shards import Shard, plan_shards
from dq_cluster.index.tombstones import deleted_ordinals


class Rows:
    """The rows of a shard without their codes, by ordinal. Read-only, safe between threads.

    Deleted rows keep their place; only `find` passes over them.
    """

    def __init__(
        self,
        batches: Sequence[pa.RecordBatch],
        schema: pa.Schema,
        base: int,
        deleted: np.ndarray,
    ) -> None:
        self.schema = schema
        self._deleted = deleted
        self._batches = batches
        self._starts = base + np.cumsum([0, *(batch.num_rows for batch in batches)])

    @classmethod
    def load(cls, index: Index, manifest: Manifest, shard: Shard | None = None) -> "Rows":
        """Copy the columns of `shard` (by default of the whole version) to an unnamed local file.

        The file lies in the folder for temporary files (TMPDIR) and goes with the process.
        """
        shard = shard or plan_shards(manifest.files, 1)[0]
        names = ["id", *manifest.columns]
        deleted = deleted_ordinals(index.storage, manifest)
        handle, path = tempfile.mkstemp(prefix="dq-rows-", suffix=".arrow")
        try:
            schema = None
            with os.fdopen(handle, "wb") as sink, pa.PythonFile(sink) as target:
                writer = None
                for entry in shard.files:
                    with open_code_file(
                        index.storage, entry, model=manifest.model, geometry=manifest.geometry
                    ) as file:
                        for batch in file.iter_batches(1 << 16, columns=names):
                            schema = schema or batch.schema.remove_metadata()
                            writer = writer or pa.ipc.new_file(target, schema)
                            writer.write_batch(batch.replace_schema_metadata(None).cast(schema))
                if writer is not None:
                    writer.close()
            if schema is None:
                id_type = pa.type_for_alias(manifest.id_type)
                return cls([], pa.schema([("id", id_type)]), shard.base, deleted)
            reader = pa.ipc.open_file(pa.memory_map(path))
            batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
            return cls(batches, schema, shard.base, deleted)
        finally:
            os.unlink(path)

    def take(self, ordinals: np.ndarray, columns: Sequence[str] = ("id",)) -> pa.Table:
        """The named columns of the rows `ordinals` (n,), in that order. Raises InputError."""
        missing = set(columns) - set(self.schema.names)
        if missing and self._batches:
            raise InputError(
                f"the index carries no column {', '.join(sorted(missing))}; "
                f"it carries {', '.join(self.schema.names)}"
            )
        if not len(ordinals):
            return pa.table({name: pa.nulls(0) for name in columns})
        numbers = np.searchsorted(self._starts, ordinals, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        used, first = np.unique(numbers[order], return_index=True)
        parts = [
            self._batches[number]
            .select(list(columns))
            .take(pa.array(ordinals[rows] - self._starts[number]))
            for number, rows in zip(used, np.split(order, first[1:]), strict=True)
        ]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.Table.from_batches(parts).combine_chunks().take(pa.array(back))

    def find(self, id: int | str) -> int | None:
        """The ordinal of the first row with this id that is not deleted: a scan of the ids."""
        for start, batch in zip(self._starts, self._batches, strict=False):
            column = batch.column("id")
            equal = pc.equal(column, pa.scalar(id, column.type))
            found = start + pc.indices_nonzero(equal).to_numpy().astype(np.int64)
            alive = np.setdiff1d(found, self._deleted) if len(found) else found
            if len(alive):
                return int(alive[0])
        return None

    def matching(self, filter: Filter) -> np.ndarray:
        """Which rows satisfy `filter`: (rows,) bool."""
        masks = [filter.mask(batch) for batch in self._batches]
        return np.concatenate(masks) if masks else np.zeros(0, bool)


def to_id(value: Any, id_type: str) -> int | str:
    """`value` as an id of the version. Raises InputError where it cannot be one."""
    if id_type == "string":
        return str(value)
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise InputError(f"ids of this index are whole numbers, not {value!r}") from None
    if not -(2**63) <= number < 2**63:
        raise InputError(f"id {number} does not fit 64 bits")
    return number
