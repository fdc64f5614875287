"""Arrow files (IPC), as Hugging Face `datasets` saves its tables to disk.

A stream, which is what `datasets` writes, has no table of contents: a process reads it through
once, and then each record batch where it begins. The other format has a footer.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dq_cluster.errors import InputError
from dq_cluster.images.damage import is_damage

SUFFIX = ".arrow"
_MAGIC = b"ARROW1"
# What `datasets` keeps of its own work beside a table: other rows, or other columns.
_CACHED = re.compile(r"(?:.*/)?cache-[^/]+\.arrow")


def is_cached(path: str) -> bool:
    """Whether `path` is of the cache of `datasets`, not of a dataset."""
    return _CACHED.fullmatch(path.lower()) is not None


class _Contents(NamedTuple):
    """Of a stream: where each record batch begins, the schema, and the rows of each batch."""

    starts: tuple[int, ...]
    schema: pa.Schema
    rows: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def _contents(path: str, size: int, modified: int) -> _Contents:
    """What is in a stream of this size and time; a picture of one row shall not read it again."""
    starts: list[int] = []
    rows: list[int] = []
    with pa.OSFile(path) as file:
        schema = pa.ipc.read_schema(file)
        while True:
            start = file.tell()
            try:
                message = pa.ipc.read_message(file)
            except EOFError:
                return _Contents(tuple(starts), schema, tuple(rows))
            if message.type != "record batch":
                raise InputError(
                    f"{path} has columns of dictionaries, which a stream cannot be entered with; "
                    "save the table as Parquet"
                )
            starts.append(start)
            rows.append(pa.ipc.read_record_batch(message, schema).num_rows)


class ArrowFile:
    """The record batches of one file on a local disk; a `tables.RowFile`.

    It is read, not mapped: a mapped file that becomes shorter ends the process.
    """

    schema: pa.Schema
    groups: tuple[int, ...]
    _starts: tuple[int, ...] | None  # of a stream

    def __init__(self, file: Path | None, where: str) -> None:
        """Raises InputError for a file in a bucket, and for one that is not readable."""
        if file is None:
            raise InputError(
                f"{where}: Arrow files are read from a local disk only; save the table as Parquet "
                "(Dataset.to_parquet), or copy it to a disk"
            )
        try:
            self._file = pa.OSFile(str(file))
            if self._file.read(len(_MAGIC)) == _MAGIC:
                self._open_footer()
            else:
                stat = file.stat()
                contents = _contents(str(file), stat.st_size, stat.st_mtime_ns)
                self._starts, self.schema, self.groups = contents
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
            raise InputError(f"{where} is not a readable Arrow file: {error}; restore it") from None

    def _open_footer(self) -> None:
        self._reader = pa.ipc.open_file(self._file)
        self._starts = None
        self.schema = self._reader.schema
        self.groups = tuple(
            self._reader.get_batch(number).num_rows
            for number in range(self._reader.num_record_batches)
        )

    def batches(self, start: int, stop: int, columns: list[str], size: int) -> Iterator[pa.Table]:
        """See `tables.RowFile`; a dotted name brings the whole column that it is a part of."""
        names = list(dict.fromkeys(name.partition(".")[0] for name in columns))
        position = 0
        for number, rows in enumerate(self.groups):
            low, high = max(start - position, 0), min(stop - position, rows)
            position += rows
            if low >= high:
                continue
            batch = self._batch(number).select(names)
            for first in range(low, high, size):
                yield pa.Table.from_batches([batch.slice(first, min(size, high - first))])

    def head(self, columns: list[str], rows: int) -> pa.Table:
        """See `tables.RowFile`."""
        stop = min(rows, int(np.sum(self.groups)))
        parts = list(self.batches(0, stop, columns, rows))
        return pa.concat_tables(parts) if parts else self.schema.empty_table()

    def _batch(self, number: int) -> pa.RecordBatch:
        if self._starts is None:
            return self._reader.get_batch(number)
        self._file.seek(self._starts[number])
        return pa.ipc.read_record_batch(pa.ipc.read_message(self._file), self.schema)
