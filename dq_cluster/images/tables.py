"""Files of rows: Parquet, Arrow, and arrays that others saved with NumPy, read alike as columns.

An array `<name>.npy` of vectors (rows, dim) has one column, `feature`. In a folder as
clip-retrieval writes it, what `metadata/metadata_<n>.parquet` knows about the rows of
`img_emb/img_emb_<n>.npy` are further columns of it.
"""

import re
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dq_cluster.errors import InputError
from dq_cluster.images.arrow_files import SUFFIX as ARROW
from dq_cluster.images.arrow_files import ArrowFile, is_cached
from dq_cluster.images.damage import is_damage
from dq_cluster.images.skipped import Skipped, list_named
from dq_cluster.storage import FileInfo, Storage, translated

# Of Parquet files, as their writers name them, and of Arrow files.
PARQUET = (".parquet", ".parq", ".pq", ".parquet.gzip", ".parquet.snappy", ".parquet.zstd")
SUFFIXES = (*PARQUET, ARROW)
FEATURE = "feature"  # the column that an array is
ARRAY = ".npy"
_ARRAY_GROUP = 8192  # rows of an array that are read together
_LOOK_BYTES = 1 << 18
_EMBEDDINGS = re.compile(r"((?:.*/)?)img_emb/img_emb_([^/]+)\.npy")
_NUMBERS = (np.float16, np.float32, np.float64, np.int8, np.uint8)


class RowFile(Protocol):
    """The rows of one file. schema: their columns; groups: rows of the parts best read whole."""

    schema: pa.Schema
    groups: tuple[int, ...]

    def batches(self, start: int, stop: int, columns: list[str], size: int) -> Iterator[pa.Table]:
        """The named columns of the rows [start, stop), in order, at most `size` at a time.

        Raises pa.ArrowException or OSError where the file is damaged; see `is_damage`.
        """

    def head(self, columns: list[str], rows: int) -> pa.Table:
        """The named columns of the first `rows` rows; little more of the file is read."""


def open_rows(storage: Storage, path: str) -> RowFile:
    """Open a file of rows. Raises InputError, naming it, for one that is not what it should be."""
    if path.lower().endswith(ARROW):
        return ArrowFile(storage.local(path), f"{storage.uri}/{path}")
    if not _is_array(path):
        return _Parquet(storage, path)
    about = _about(path)
    if about is None or not storage.exists(about):
        return _Array(storage, path)
    return _Beside(_Array(storage, path), _Parquet(storage, about), f"{storage.uri}/{path}")


def row_files(storage: Storage, skipped: Skipped, *, arrays: bool) -> Iterator[FileInfo]:
    """The files of rows below a folder, in the order of their paths; others are counted.

    arrays: `.npy` files count, too. Where there are both kinds, it must be plain which of them
    holds the features: raises InputError.
    """
    if not arrays:
        yield from _without_caches(list_named(storage, SUFFIXES, skipped), skipped)
        return
    named = list_named(storage, (*SUFFIXES, ARRAY), skipped)
    files = list(_without_caches(named, skipped))
    vectors = [info for info in files if _is_array(info.path)]
    if not any(_about(info.path) for info in vectors):
        if vectors and len(vectors) < len(files):
            raise InputError(
                f"{storage.uri} holds {len(vectors)} .npy and {len(files) - len(vectors)} other "
                f"files ({vectors[0].path}, …); name the folder of those that hold the features"
            )
        yield from files
        return
    used = {_about(info.path) for info in vectors}
    for info in files:
        if _about(info.path):
            yield info
        elif info.path not in used:
            skipped.add_file(info.path)


def _without_caches(files: Iterator[FileInfo], skipped: Skipped) -> Iterator[FileInfo]:
    for info in files:
        if is_cached(info.path):
            skipped.add_file(info.path)
        else:
            yield info


def split_uri(uri: str) -> tuple[Storage, str]:
    """The folder to list and "", or the folder of a single file of rows and its name.

    Spark names its folders like files: `images.parquet/part-00000.parquet`.
    """
    storage = Storage(uri)
    if not uri.lower().endswith((*SUFFIXES, ARRAY)):
        return storage, ""
    with translated(storage, ""):
        if storage.filesystem.isdir(storage.path()):
            return storage, ""
    folder, _, name = storage.uri.rpartition("/")
    return Storage(folder or "/"), name


class _Parquet:
    """A Parquet file and its row groups."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._where = f"{storage.uri}/{path}"
        try:
            self._source = storage.open(path)
            self._file = pq.ParquetFile(self._source, pre_buffer=True)
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
            raise InputError(
                f"{self._where} is not readable Parquet: {error}; restore it"
            ) from None
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        self.groups = tuple(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))

    def batches(self, start: int, stop: int, columns: list[str], size: int) -> Iterator[pa.Table]:
        if start >= stop:
            return
        ends = np.cumsum(self.groups, dtype=np.int64)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        position = int(ends[first]) - self.groups[first]
        groups = list(range(first, last + 1))
        try:
            for batch in self._file.iter_batches(size, row_groups=groups, columns=columns):
                skip = max(0, start - position)
                kept = batch.slice(skip, max(0, stop - position - skip))
                position += batch.num_rows
                if kept.num_rows:
                    yield pa.Table.from_batches([kept])
        except (pa.ArrowNotImplementedError, pa.ArrowCapacityError) as error:
            raise InputError(
                f"{self._where}: Arrow cannot read {', '.join(columns)}: {error}; write plain "
                "columns, or smaller row groups"
            ) from None

    def head(self, columns: list[str], rows: int) -> pa.Table:
        # Not the file that reads ahead: that one takes whole row groups.
        file = pq.ParquetFile(
            self._source,
            metadata=self._file.metadata,
            pre_buffer=False,
            buffer_size=_LOOK_BYTES,
        )
        batches = file.iter_batches(rows, columns=columns)
        first = next(batches, None)
        if first is None:
            return file.schema_arrow.empty_table()
        return pa.Table.from_batches([first])


class _Array:
    """A two-dimensional array in NumPy's format, of which only the rows asked for are read."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage, self._path = storage, path
        where = f"{storage.uri}/{path}"
        with storage.open(path) as file, translated(storage, path):
            shape, fortran, self._dtype = _header(file, where)
            self._offset = file.tell()
        if len(shape) != 2 or not shape[1] or self._dtype.newbyteorder("=") not in _NUMBERS:
            raise InputError(
                f"{where} holds {self._dtype} of shape {shape}, not float16, float32 or float64 "
                "of shape (rows, dim); save one vector per row"
            )
        if fortran and min(shape) > 1:
            raise InputError(
                f"{where} is stored by columns; save it again with numpy.ascontiguousarray"
            )
        count, self._dim = shape
        expected, size = self._offset + count * self._row_bytes, storage.size(path)
        if size != expected:
            raise InputError(f"{where} has {size} bytes, its header says {expected}; restore it")
        value = pa.from_numpy_dtype(self._dtype.newbyteorder("="))
        self.schema = pa.schema([(FEATURE, pa.list_(value, self._dim))])
        whole, rest = divmod(count, _ARRAY_GROUP)
        self.groups = (_ARRAY_GROUP,) * whole + ((rest,) if rest else ())

    @property
    def _row_bytes(self) -> int:
        return self._dim * self._dtype.itemsize

    def batches(self, start: int, stop: int, columns: list[str], size: int) -> Iterator[pa.Table]:
        with self._storage.open(self._path) as file, translated(self._storage, self._path):
            file.seek(self._offset + start * self._row_bytes)
            for first in range(start, stop, size):
                rows = min(size, stop - first)
                data = file.read(rows * self._row_bytes)
                if len(data) != rows * self._row_bytes:
                    raise pa.ArrowInvalid(f"{self._path} ends before row {first + rows}")
                values = np.frombuffer(data, self._dtype)
                native = pa.array(values.astype(self._dtype.newbyteorder("="), copy=False))
                lists = pa.FixedSizeListArray.from_arrays(native, type=self.schema.field(0).type)
                yield pa.table({FEATURE: lists}).select(columns)

    def head(self, columns: list[str], rows: int) -> pa.Table:
        count = min(rows, sum(self.groups))
        return pa.concat_tables(self.batches(0, count, columns, rows)) if count else _none(self)


class _Beside:
    """An array, and the Parquet file that has a row about each of its rows."""

    def __init__(self, array: _Array, about: _Parquet, where: str) -> None:
        if sum(array.groups) != sum(about.groups):
            raise InputError(
                f"{where} has {sum(array.groups):,} rows, the metadata beside it "
                f"{sum(about.groups):,}; they must be of the same rows"
            )
        self._array, self._about = array, about
        others = [field for field in about.schema if field.name != FEATURE]
        self.schema = pa.schema([*array.schema, *others])
        self.groups = array.groups

    def batches(self, start: int, stop: int, columns: list[str], size: int) -> Iterator[pa.Table]:
        others = [name for name in columns if name.partition(".")[0] != FEATURE]
        for first in range(start, stop, size):
            end = min(first + size, stop)
            parts: list[pa.Table] = []
            if len(others) < len(columns):
                parts += self._array.batches(first, end, [FEATURE], size)
            if others:
                parts.append(pa.concat_tables(self._about.batches(first, end, others, size)))
            joined = {name: part.column(name) for part in parts for name in part.column_names}
            yield pa.table(joined)

    def head(self, columns: list[str], rows: int) -> pa.Table:
        count = min(rows, sum(self.groups))
        return pa.concat_tables(self.batches(0, count, columns, rows)) if count else _none(self)


def _none(file: RowFile) -> pa.Table:
    return file.schema.empty_table()


def _is_array(path: str) -> bool:
    return path.lower().endswith(ARRAY)


def _about(path: str) -> str | None:
    """Where clip-retrieval keeps what it knows about the rows of an array."""
    match = _EMBEDDINGS.fullmatch(path)
    return f"{match[1]}metadata/metadata_{match[2]}.parquet" if match else None


def _header(file: Any, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type of the array that `file` holds."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        return readers[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError) as error:
        raise InputError(f"{where} is not a readable .npy file: {error}; save it again") from None
