"""Ids as people give them: as text, as numbers, or many in a file."""

import sys
from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dq_cluster.errors import InputError

MOST = 10_000_000  # ids in one request; all of them are in memory
_CHUNK = 100_000
_PARQUET = b"PAR1"


def to_ids(given: Sequence[int] | Sequence[str] | pa.Array, id_type: str) -> pa.Array:
    """The distinct ids among `given` as an array of `id_type`, in their order.

    Text is read as whole numbers where ids are numbers. Raises InputError, naming the first that
    cannot be an id.
    """
    try:
        ids = given if isinstance(given, pa.Array) else pa.array(given)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        raise InputError(
            f"ids of this index are {id_type}; found others, or larger ones, among those given"
        ) from None
    if not len(ids):
        return pa.array([], pa.type_for_alias(id_type))
    if ids.null_count:
        raise InputError(f"{ids.null_count:,} of the {len(ids):,} ids given are null")
    text = pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)
    if id_type == "string" and text:
        return pc.unique(ids.cast(pa.string()))
    if id_type == "string" or not (text or pa.types.is_integer(ids.type)):
        raise InputError(f"ids of this index are {id_type}, not {ids.type}")
    if text:
        strange = ids.filter(pc.invert(pc.match_substring_regex(ids, r"^-?[0-9]+$")))
        if len(strange):
            raise InputError(
                f"ids of this index are whole numbers; found {strange[0].as_py()!r}"
                + (f" and {len(strange) - 1:,} more" if len(strange) > 1 else "")
            )
    try:
        return pc.unique(ids.cast(pa.int64()))
    except pa.ArrowInvalid:
        large = next(each for each in ids.to_pylist() if not -(2**63) <= int(each) < 2**63)
        raise InputError(f"id {large} does not fit 64 bits") from None


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
        found = opened.read(columns=[column]).column(column)
    except pa.ArrowException as error:
        raise InputError(f"ids file {path} is damaged: {error}") from None
    if pa.types.is_dictionary(found.type):
        found = found.cast(found.type.value_type)
    return found.combine_chunks()


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
