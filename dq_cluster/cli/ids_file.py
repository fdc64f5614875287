"""Many ids from a file: text with one id per line, or a column of Parquet."""

import sys
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from dq_cluster.errors import InputError

MOST = 10_000_000  # ids in one request; all of them are in memory
_CHUNK = 100_000
_PARQUET = b"PAR1"


def read_ids(path: str, column: str = "id") -> pa.Array:
    """The ids in a file: a column of Parquet, or text with one id a line; `-` is standard input.

    Empty lines are passed over. Raises InputError for a file that cannot be read or has more than
    `MOST` ids.
    """
    if path == "-":
        return _lines(sys.stdin.buffer, "standard input")
    try:
        with open(path, "rb") as file:
            return _column(file, path, column) if _is_parquet(file) else _lines(file, path)
    except OSError as error:
        raise InputError(f"ids file {path}: {error.strerror or error}") from None


def _is_parquet(file: BinaryIO) -> bool:
    if not file.seekable():
        return False
    first = file.read(len(_PARQUET))
    size = file.seek(0, 2)
    file.seek(max(0, size - len(_PARQUET)))
    last = file.read()
    file.seek(0)
    return first == last == _PARQUET


def _column(file: BinaryIO, path: str, column: str) -> pa.Array:
    try:
        opened = pq.ParquetFile(file)
        if column not in opened.schema_arrow.names:
            raise InputError(
                f"ids file {path} has no column '{column}'; columns: "
                f"{', '.join(opened.schema_arrow.names)}; name one with --ids-column"
            )
        _check_count(opened.metadata.num_rows, path)
        ids = opened.read(columns=[column]).column(column)
    except pa.ArrowException as error:
        raise InputError(f"ids file {path} is damaged: {error}") from None
    if pa.types.is_dictionary(ids.type):
        ids = ids.cast(ids.type.value_type)
    return ids.combine_chunks()


def _lines(file: BinaryIO, name: str) -> pa.Array:
    parts, ids, count = [], [], 0
    for number, line in enumerate(file, 1):
        try:
            id = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise InputError(f"ids file {name}: line {number:,} is not UTF-8 text") from None
        if id:
            ids.append(id)
            count += 1
        if len(ids) == _CHUNK:
            parts.append(pa.array(ids, pa.string()))
            ids = []
            _check_count(count, name)
    _check_count(count, name)
    return pa.chunked_array([*parts, pa.array(ids, pa.string())]).combine_chunks()


def _check_count(count: int, name: str) -> None:
    if count > MOST:
        raise InputError(
            f"ids file {name} has more than {MOST:,} ids; divide it and give one part at a time"
        )
