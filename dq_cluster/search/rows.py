"""Ids and carried columns of a shard: on local disk, memory-mapped, read for the winners only."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dq_cluster.errors import InputError
from dq_cluster.index.ahead import read_ahead, readers
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import open_code_file
from dq_cluster.index.manifest import FileEntry, Manifest
from dq_cluster.index.plain import map_runs, plain_runs
from dq_cluster.index.tombstones import deleted_ordinals
from dq_cluster.search.filters import Filter
from dq_cluster.search.placement import Shard, plan_shards

_BATCH_ROWS = 1 << 16
_WHOLE = re.compile(r"-?[0-9]{1,4000}")


class _Copy:
    """Columns of code files in an unnamed local file, to be mapped into memory."""

    def __enter__(self) -> "_Copy":
        handle, self._path = tempfile.mkstemp(prefix="dq-rows-", suffix=".arrow")
        self._sink = os.fdopen(handle, "wb")
        self._writer: pa.RecordBatchFileWriter | None = None
        self._schema: pa.Schema | None = None
        return self

    def __exit__(self, *_: object) -> None:
        self._sink.close()
        os.unlink(self._path)

    def add(self, batch: pa.RecordBatch) -> None:
        if self._writer is None:
            self._schema = batch.schema.remove_metadata()
            self._writer = pa.ipc.new_file(pa.PythonFile(self._sink), self._schema)
        self._writer.write_batch(batch.replace_schema_metadata(None).cast(self._schema))

    def batches(self) -> list[pa.RecordBatch]:
        """What was copied, mapped into memory. Nothing can be added after that."""
        if self._writer is None:
            return []
        self._writer.close()
        self._sink.flush()
        reader = pa.ipc.open_file(pa.memory_map(self._path))
        return [reader.get_batch(n) for n in range(reader.num_record_batches)]


class _Part(NamedTuple):
    """Consecutive rows: ids that are mapped where they lie, and what has to be copied, or None."""

    ids: pa.Array | None
    columns: pa.RecordBatch | None


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
        """Map the columns of `shard` (by default of the whole version) into memory.

        Ids that lie plainly in files on a local disk are mapped where they are. What has to be
        decoded, or lies elsewhere, is first copied to unnamed local files; they lie in the folder
        for temporary files (TMPDIR) and go with the process.
        """
        shard = shard or plan_shards(manifest.files, 1)[0]
        carried = list(manifest.columns)
        mapped: list[pa.Array | None] = []  # the ids of every batch, where they need no copy
        with _Copy() as whole, _Copy() as beside_ids:
            read = partial(_parts, index, manifest)
            for ids, columns in read_ahead(read, shard.files, readers(shard.files)):
                mapped.append(ids)
                if columns is not None:
                    (whole if ids is None else beside_ids).add(columns)
            copied, beside = iter(whole.batches()), iter(beside_ids.batches())
        batches = []
        for column in mapped:
            if column is None:
                batches.append(next(copied))
            else:
                others = next(beside).columns if carried else []
                batches.append(pa.RecordBatch.from_arrays([column, *others], ["id", *carried]))
        empty = pa.schema([("id", pa.type_for_alias(manifest.id_type))])
        deleted = deleted_ordinals(index.storage, manifest)
        return cls(batches, batches[0].schema if batches else empty, shard.base, deleted)

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


def _parts(index: Index, manifest: Manifest, entry: FileEntry) -> Iterator[_Part]:
    """The rows of a code file."""
    carried = list(manifest.columns)
    local = index.storage.local(entry.path)
    with open_code_file(
        index.storage, entry, model=manifest.model, geometry=manifest.geometry
    ) as file:
        runs = plain_runs(file, "id", 8) if manifest.id_type == "int64" else None
        if local is None or runs is None:
            for batch in file.iter_batches(_BATCH_ROWS, columns=["id", *carried]):
                yield _Part(None, batch)
            return
        for group, ids in enumerate(map_runs(local, runs, np.dtype("<i8"))):
            if not carried:
                yield _Part(pa.array(ids), None)
                continue
            start = 0
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=carried):
                yield _Part(pa.array(ids[start : start + batch.num_rows]), batch)
                start += batch.num_rows


def to_id(value: Any, id_type: str) -> int | str:
    """`value` as an id of the version. Raises InputError where it cannot be one."""
    if id_type == "string":
        return str(value)
    if isinstance(value, bool) or not _WHOLE.fullmatch(str(value)):
        raise InputError(f"ids of this index are whole numbers, not {value!r}")
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise InputError(f"id {number} does not fit 64 bits")
    return number
