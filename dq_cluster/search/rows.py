"""Ids and carried columns of a shard: on local disk, read only for the results."""

import contextlib
import mmap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dq_cluster.errors import InputError
from dq_cluster.index.ahead import read_ahead, readers
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import file_schema, open_code_file, row_schema
from dq_cluster.index.columns import conform
from dq_cluster.index.ids import TEXT
from dq_cluster.index.manifest import FileEntry, Manifest
from dq_cluster.index.plain import PlainColumn, plain_runs
from dq_cluster.index.tombstones import deleted_ordinals
from dq_cluster.search.filters import Filter
from dq_cluster.search.placement import Shard, plan_shards
from dq_cluster.storage.scratch import scratch_file, scratch_room

_BATCH_ROWS = 1 << 16


class _Copy:
    """Columns of code files in an unnamed local file, to be mapped into memory.

    What the disk has no room for fails when it is written; no page of the map can be missing.
    """

    def __enter__(self) -> "_Copy":
        self._sink = scratch_file()
        self._writer: pa.RecordBatchFileWriter | None = None
        self._schema: pa.Schema | None = None
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # of what could not be written, nothing is mapped
            self._sink.close()

    def add(self, batch: pa.RecordBatch) -> None:
        with scratch_room(written=self._sink.tell()):
            if self._writer is None:
                self._schema = batch.schema.remove_metadata()
                self._writer = pa.ipc.new_file(pa.PythonFile(self._sink, mode="w"), self._schema)
            self._writer.write_batch(batch.replace_schema_metadata(None).cast(self._schema))

    def batches(self) -> list[pa.RecordBatch]:
        """What was copied, mapped into memory. Nothing can be added after that."""
        if self._writer is None:
            return []
        with scratch_room(written=self._sink.tell()):
            self._writer.close()
            self._sink.flush()
        mapped = mmap.mmap(self._sink.fileno(), 0, access=mmap.ACCESS_READ)
        reader = pa.ipc.open_file(pa.py_buffer(mapped))
        return [reader.get_batch(n) for n in range(reader.num_record_batches)]


class _Part(NamedTuple):
    """Ids that are read where they lie, or columns to be copied, with ids or without."""

    ids: PlainColumn | None
    columns: pa.RecordBatch | None


Ids: TypeAlias = "PlainColumn | pa.Array"


class Rows:
    """The rows of a shard without their codes, by ordinal. Read-only, safe between threads.

    Deleted rows keep their place; only `find` passes over them. Ids and columns come in pieces of
    consecutive rows, not always the same ones.
    """

    def __init__(
        self,
        ids: Sequence[Ids],
        batches: Sequence[pa.RecordBatch],
        schema: pa.Schema,
        base: int,
        deleted: np.ndarray,
    ) -> None:
        self.schema = schema
        self._deleted = deleted
        self._ids, self._batches = ids, batches
        self._starts = base + np.cumsum([0, *map(len, ids)])
        self._batch_starts = base + np.cumsum([0, *map(len, batches)])

    @classmethod
    def load(cls, index: Index, manifest: Manifest, shard: Shard | None = None) -> "Rows":
        """Make the columns of `shard` (by default of the whole version) ready to be looked up.

        Ids that lie plainly in files on a local disk are read where they are. What has to be
        decoded, or lies elsewhere, is first copied to unnamed local files and mapped into memory;
        they lie in the folder for temporary files (TMPDIR) and go with the process. Raises
        StorageError where that has no room.
        """
        shard = shard or plan_shards(manifest.files, 1)[0]
        schema = row_schema(index.storage, manifest)
        in_place: list[PlainColumn | None] = []  # None: the next batch that has ids
        with_ids: list[bool] = []  # whether a batch has
        with _Copy() as whole, _Copy() as beside_ids:
            read = partial(_parts, index, manifest, schema)
            for ids, columns in read_ahead(read, shard.files, readers(shard.files)):
                if ids is not None:
                    in_place.append(ids)
                if columns is not None:
                    with_ids.append("id" in columns.schema.names)
                    in_place.extend([None] * with_ids[-1])
                    (whole if with_ids[-1] else beside_ids).add(columns)
            copied, beside = iter(whole.batches()), iter(beside_ids.batches())
        batches = [next(copied if has else beside) for has in with_ids]
        ids_of = (batch["id"] for batch, has in zip(batches, with_ids, strict=True) if has)
        pieces = [next(ids_of) if piece is None else piece for piece in in_place]
        carried = list(manifest.columns)
        others = [batch.select(carried) for batch in batches] if carried else []
        deleted = deleted_ordinals(index.storage, manifest)
        return cls(pieces, others, schema, shard.base, deleted)

    def take(self, ordinals: np.ndarray, columns: Sequence[str] = ("id",)) -> pa.Table:
        """The named columns of the rows `ordinals` (n,), in that order.

        Raises InputError for a column that is not carried, IntegrityError or StorageError where a
        file was damaged, or cannot be read, since it was loaded.
        """
        missing = set(columns) - set(self.schema.names)
        if missing:
            raise InputError(
                f"the index carries no column {', '.join(sorted(missing))}; "
                f"it carries {', '.join(self.schema.names)}"
            )
        if not len(ordinals):
            return pa.schema([self.schema.field(name) for name in columns]).empty_table()
        found: dict[str, pa.ChunkedArray] = {}
        if others := [name for name in columns if name != "id"]:
            batches = [batch.select(others) for batch in self._batches]
            table = _by_ordinal(batches, self._batch_starts, ordinals, _rows_of)
            found = dict(zip(others, table.columns, strict=True))
        if "id" in columns:
            found["id"] = _by_ordinal(self._ids, self._starts, ordinals, _ids_of)["id"]
        return pa.table({name: found[name] for name in columns})

    def find(self, id: int | str) -> int | None:
        """The ordinal of the first row with this id that is not deleted: a scan of the ids."""
        for start, ids in zip(self._starts, self._ids, strict=False):
            if isinstance(ids, PlainColumn):
                rows = ids.find(int(id))
            else:
                rows = pc.indices_nonzero(pc.equal(ids, pa.scalar(id, ids.type))).to_numpy()
            found = start + rows.astype(np.int64)
            alive = np.setdiff1d(found, self._deleted) if len(found) else found
            if len(alive):
                return int(alive[0])
        return None

    def matching(self, filter: Filter) -> np.ndarray:
        """Which rows satisfy `filter`: (rows,) bool."""
        keep = np.ones(self._starts[-1] - self._starts[0], bool)
        for part, batches in zip(
            filter.split("id"), (self._id_batches(), self._batches), strict=True
        ):
            if part.conditions and len(keep):
                keep &= np.concatenate([part.mask(batch) for batch in batches])
        return keep

    def _id_batches(self) -> Iterator[pa.RecordBatch]:
        """The ids of all rows; a batch is valid until the next."""
        for ids in self._ids:
            for block in ids.blocks() if isinstance(ids, PlainColumn) else [ids]:
                yield pa.RecordBatch.from_arrays([pa.array(block)], ["id"])


T = TypeVar("T")


def _by_ordinal(
    pieces: Sequence[T],
    starts: np.ndarray,
    ordinals: np.ndarray,
    take: Callable[[T, np.ndarray], pa.Table],
) -> pa.Table:
    """The rows `ordinals` (n,), n at least 1, in that order; `take` reads rows of one piece."""
    numbers = np.searchsorted(starts, ordinals, side="right") - 1
    order = np.argsort(numbers, kind="stable")
    used, first = np.unique(numbers[order], return_index=True)
    parts = [
        take(pieces[number], ordinals[rows] - starts[number])
        for number, rows in zip(used, np.split(order, first[1:]), strict=True)
    ]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.concat_tables(parts).combine_chunks().take(pa.array(back))


def _rows_of(batch: pa.RecordBatch, rows: np.ndarray) -> pa.Table:
    return pa.Table.from_batches([batch.take(pa.array(rows))])


def _ids_of(ids: Ids, rows: np.ndarray) -> pa.Table:
    plain = isinstance(ids, PlainColumn)
    return pa.table({"id": pa.array(ids.take(rows)) if plain else ids.take(pa.array(rows))})


def _parts(
    index: Index, manifest: Manifest, schema: pa.Schema, entry: FileEntry
) -> Iterator[_Part]:
    """The rows of a code file, as `schema`: the id, and the carried columns."""
    carried = list(manifest.columns)
    local = index.storage.local(entry.path)
    with open_code_file(
        index.storage, entry, model=manifest.model, geometry=manifest.geometry
    ) as file:
        file_schema(file, carried, f"{index.storage.uri}/{entry.path}")
        runs = plain_runs(file, "id", 8) if manifest.id_type != TEXT else None
        copied = schema
        if local is not None and runs is not None:
            # Whole numbers of a version that fit its type are the same 64 bits, signed or not.
            yield _Part(PlainColumn(local, runs, np.dtype(manifest.id_type)), None)
            copied = schema.remove(0)
        if copied.names:
            for batch in file.iter_batches(_BATCH_ROWS, columns=copied.names):
                yield _Part(None, conform(batch, copied))
