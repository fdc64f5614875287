"""Ids and carried columns of one segment: on local disk, read only for the results."""

import contextlib
import mmap
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dq_cluster.index.ahead import read_ahead, readers
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import file_schema, open_code_file
from dq_cluster.index.columns import conform
from dq_cluster.index.ids import TEXT
from dq_cluster.index.manifest import FileEntry, Manifest
from dq_cluster.index.plain import PlainColumn, plain_runs
from dq_cluster.search.lookup import IdIndex, Ids
from dq_cluster.search.segments import Segment
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


class StoredRows:
    """The rows of a segment without their codes. Read-only, safe between threads.

    Ids and columns come in pieces of consecutive rows, not always the same ones. `by_id` says where
    an id is.
    """

    def __init__(self, ids: Sequence[Ids], batches: Sequence[pa.RecordBatch]) -> None:
        self.ids, self.batches = ids, batches
        self.by_id = IdIndex(ids)

    @classmethod
    def load(
        cls, index: Index, manifest: Manifest, segment: Segment, schema: pa.Schema
    ) -> "StoredRows":
        """Make the columns of `segment` ready to be looked up, as `schema`, with the id first.

        Ids that lie plainly in files on a local disk are read where they are. What has to be
        decoded, or lies elsewhere, is first copied to unnamed local files and mapped into memory;
        they lie in the folder for temporary files (TMPDIR) and go with the process. Raises
        StorageError where that has no room.
        """
        in_place: list[PlainColumn | None] = []  # None: the next batch that has ids
        with_ids: list[bool] = []  # whether a batch has
        with _Copy() as whole, _Copy() as beside_ids:
            read = partial(_parts, index, manifest, schema)
            for ids, columns in read_ahead(read, segment.files, readers(segment.files)):
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
        return cls(pieces, [batch.select(carried) for batch in batches] if carried else [])


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
