"""Columns that lie in a code file as they lie in memory, read without decoding Parquet.

`write_code_file` gives every column chunk a single page. The values of a column that is stored
plainly, uncompressed, and without nulls are then the last bytes of its chunk, whatever headers
come before. On a local disk they can be read straight from there; decoding them costs several
times as much.
"""

import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from dq_cluster.errors import IntegrityError
from dq_cluster.storage import Storage, translated

SINGLE_PAGES = {b"dq.pages": b"one per column chunk"}  # in the metadata of a file written so
_BLOCK = 1 << 20  # bytes copied at once: what stays in a processor's cache


class Run(NamedTuple):
    """Values of `rows` consecutive rows, from `offset` (bytes) in the file on."""

    offset: int
    rows: int


def plain_runs(file: pq.ParquetFile, name: str, width: int) -> list[Run] | None:
    """Where the values of a column, of `width` bytes each, lie: a run for each row group.

    None where they have to be decoded.
    """
    if not SINGLE_PAGES.items() <= (file.schema_arrow.metadata or {}).items():
        return None
    place = file.schema_arrow.get_field_index(name)
    runs = []
    for group in range(file.num_row_groups):
        chunk = file.metadata.row_group(group).column(place)
        nulls = chunk.statistics.null_count if chunk.is_stats_set else None
        plain = chunk.compression == "UNCOMPRESSED" and set(chunk.encodings) <= {"PLAIN", "RLE"}
        if not plain or nulls != 0:
            return None
        end = chunk.data_page_offset + chunk.total_compressed_size
        runs.append(Run(end - chunk.num_values * width, chunk.num_values))
    return runs


def read_runs(path: Path, runs: list[Run], width: int) -> Iterator[np.ndarray]:
    """Consecutive values (rows, width) uint8; a block is overwritten by the next one."""
    with open(path, "rb", buffering=0) as file:
        yield from _blocks(file, path, runs, width)


def _blocks(file: FileIO, path: Path, runs: list[Run], width: int) -> Iterator[np.ndarray]:
    room = np.empty((max(1, _BLOCK // width), width), np.uint8)
    for run in runs:
        offset = run.offset
        for start in range(0, run.rows, len(room)):
            block = room[: run.rows - start]
            left = block.data.cast("B")
            while left:
                # At a place, not from where the last one ended: several threads may be reading.
                count = os.preadv(file.fileno(), [left], offset)
                if not count:
                    raise OSError(f"{path} ends within its values")
                left, offset = left[count:], offset + count
            yield block


class PlainColumn:
    """Values of a plain column that are read from their file when they are asked for.

    The file stays open: removing it harms nothing. It is read and not mapped: where somebody cuts
    it off, or a network file system loses it, reading is an error, while a map ends the process.
    Raises IntegrityError where the file ends within its values, StorageError where it cannot be
    read.
    """

    def __init__(self, path: Path, runs: list[Run], dtype: np.dtype) -> None:
        self._path, self._runs, self._dtype = path, runs, dtype
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with its last user
        self._starts = np.cumsum([0, *(run.rows for run in runs)])
        self._offsets = np.array([run.offset for run in runs], np.int64)
        ends = self._offsets + np.diff(self._starts) * dtype.itemsize
        if max(ends, default=0) > os.fstat(self._file.fileno()).st_size:
            raise self._short()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The values (n,) of `rows` (n,)."""
        runs = np.searchsorted(self._starts, rows, side="right") - 1
        file, width = self._file.fileno(), self._dtype.itemsize
        offsets = self._offsets[runs] + (rows - self._starts[runs]) * width
        with translated(Storage(str(self._path.parent)), self._path.name):
            data = b"".join(os.pread(file, width, offset) for offset in offsets.tolist())
        if len(data) != width * len(rows):
            raise self._short()
        return np.frombuffer(data, self._dtype)

    def blocks(self) -> Iterator[np.ndarray]:
        """All values in order, (rows,) each; a block is overwritten by the next one."""
        with translated(Storage(str(self._path.parent)), self._path.name):
            for block in _blocks(self._file, self._path, self._runs, self._dtype.itemsize):
                yield block.view(self._dtype)[:, 0]

    def at(self, row: int) -> int:
        """The value of one row, a whole number."""
        return int(self.take(np.array([row]))[0])

    def slice(self, start: int, rows: int) -> np.ndarray:
        """The values (rows,) from row `start` on."""
        values = []
        with translated(Storage(str(self._path.parent)), self._path.name):
            for run, first in zip(self._runs, self._starts, strict=False):
                skipped = max(start - first, 0)
                here = Run(
                    run.offset + skipped * self._dtype.itemsize,
                    min(run.rows, start + rows - first) - skipped,
                )
                if here.rows > 0:
                    read = _blocks(self._file, self._path, [here], self._dtype.itemsize)
                    values += [block.view(self._dtype)[:, 0].copy() for block in read]
        return np.concatenate([np.empty(0, self._dtype), *values])

    def _short(self) -> IntegrityError:
        return IntegrityError(f"{self._path} ends within its values; 'index verify' names others")
