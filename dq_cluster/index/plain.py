"""Columns that lie in a code file as they lie in memory, read without decoding Parquet.

`write_code_file` gives every column chunk a single page. The values of a column that is stored
plainly, uncompressed, and without nulls are then the last bytes of its chunk, whatever headers
come before. On a local disk they can be copied or mapped straight from there; decoding them costs
several times as much.
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

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
    room = np.empty((max(1, _BLOCK // width), width), np.uint8)
    with open(path, "rb", buffering=0) as file:
        for run in runs:
            file.seek(run.offset)
            for start in range(0, run.rows, len(room)):
                block = room[: run.rows - start]
                left = block.data.cast("B")
                while left:
                    count = file.readinto(left)
                    if not count:
                        raise OSError(f"{path} ends within its values")
                    left = left[count:]
                yield block


def map_runs(path: Path, runs: list[Run], dtype: np.dtype) -> list[np.ndarray]:
    """The values of every run, (rows,) each, mapped into memory: read when looked at.

    Raises OSError where the file ends before them. One that is cut off later ends the process that
    looks there, as with every map: code files are never changed, and removing one harms no map of
    a local disk.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if any(run.offset + run.rows * dtype.itemsize > size for run in runs):
            raise OSError(f"{path} ends within its values")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # Rows are looked up anywhere: reading ahead would read what nobody asked for.
    mapped.madvise(mmap.MADV_RANDOM)
    return [np.frombuffer(mapped, dtype, run.rows, run.offset) for run in runs]
