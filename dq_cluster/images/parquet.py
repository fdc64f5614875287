"""Sources that are Parquet: rows with an image's bytes, or with a feature."""

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dq_cluster.errors import InputError
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.decode import Reason
from dq_cluster.images.units import Unit
from dq_cluster.index.columns import check_carried, join_schemas
from dq_cluster.storage import Storage

_READERS = 16  # of footers: all waiting


class ParquetRows:
    """Parquet files whose `column` is the payload, named `payload` in the tables read.

    A unit is a row group. The id may be of any integer or string type; ids of files without
    a `uri` column get the URI `<file>#<row>`.
    """

    def __init__(self, settings: SourceSettings, column: str, payload: str) -> None:
        self._settings, self._payload = settings, payload
        self._storage, self._name = Storage(settings.uri), ""
        if settings.uri.endswith(".parquet"):
            folder, _, self._name = self._storage.uri.rpartition("/")
            self._storage = Storage(folder or "/")
        self._source_of = {"id": settings.id_column, payload: column}
        self._source_of |= {name: name for name in settings.columns if name not in ("uri", payload)}

    def units(self) -> Iterator[Unit]:
        first = None
        for path in self._paths():
            file = self._open(path)
            schema = self._schema(file.schema_arrow, path)
            first = first or schema
            # Carried columns may differ as far as `schema` finds a type for all files.
            if any(schema[name] != first[name] for name in ("id", self._payload)):
                raise InputError(
                    f"{self._storage.uri}/{path} has columns {_spell(schema)}, the files before "
                    f"it {_spell(first)}; give files of one schema"
                )
            start = 0
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if rows:
                    yield Unit(path, start, rows)
                start += rows
        if first is None:
            raise InputError(f"{self._settings.uri} holds no .parquet file; check source.uri")

    def schema(self) -> pa.Schema:
        """`id` and the carried columns, of types that hold what all files have.

        Reads every footer; the types are null where there is no file. Raises InputError, naming
        the file, for types that do not go together or cannot be carried.
        """

        def read(path: str) -> tuple[str, pa.Schema]:
            where = f"{self._storage.uri}/{path}"
            types = self._schema(self._open(path).schema_arrow, path) | {"uri": pa.string()}
            found = pa.schema([(name, types[name]) for name in names])
            check_carried(found, where)
            return where, found

        names = ("id", *self._settings.columns)
        with ThreadPoolExecutor(_READERS) as pool:
            parts = list(pool.map(read, self._paths()))
        nothing = pa.schema([(name, pa.null()) for name in names])
        return join_schemas([("", nothing), *parts], "the files before it")

    def about(self, key: bytes) -> bytes | None:
        """What the first file says under `key` in its metadata."""
        first = next(self._paths(), None)
        metadata = self._open(first).schema_arrow.metadata if first else None
        return (metadata or {}).get(key)

    def read(self, units: Iterable[Unit], rows: int) -> Iterator[pa.Table]:
        for path, parts in itertools.groupby(units, lambda unit: unit.path):
            file = self._open(path)
            for unit in parts:
                yield from self._read_unit(file, unit, rows)

    def _read_unit(self, file: pq.ParquetFile, unit: Unit, rows: int) -> Iterator[pa.Table]:
        position, stop = unit.start, unit.start + unit.rows
        try:
            for batch in self._batches(file, unit, rows):
                yield self._table(batch, unit.path, position)
                position += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            if not _is_damage(error):
                raise
            # Every row of the unit that was not read yet is a reject.
            yield self._unreadable(file.schema_arrow, unit.path, position, stop)

    def _batches(self, file: pq.ParquetFile, unit: Unit, rows: int) -> Iterator[pa.RecordBatch]:
        """The rows of the unit, and of no other, in batches of at most `rows`."""
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        ends = np.cumsum(sizes, dtype=np.int64)
        stop = unit.start + unit.rows
        first, last = np.searchsorted(ends, [unit.start, stop - 1], side="right")
        position = int(ends[first]) - sizes[first]
        names = set(file.schema_arrow.names)
        columns = [name for name in {*self._source_of.values(), "uri"} if name in names]
        groups = list(range(first, last + 1))
        for batch in file.iter_batches(rows, row_groups=groups, columns=columns):
            skip = max(0, unit.start - position)
            kept = batch.slice(skip, max(0, stop - position - skip))
            position += batch.num_rows
            if kept.num_rows:
                yield kept

    def _table(self, batch: pa.RecordBatch, path: str, position: int) -> pa.Table:
        rows = batch.num_rows
        columns = {}
        for name, field in self._schema(batch.schema, path).items():
            columns[name] = batch.column(self._source_of[name]).cast(field)
        uris = (f"{self._storage.uri}/{path}#{position + row}" for row in range(rows))
        known = "uri" in batch.schema.names
        columns["uri"] = batch.column("uri").cast(pa.string()) if known else pa.array(uris)
        columns["reason"] = pa.nulls(rows, pa.string())
        return pa.table(columns)

    def _unreadable(self, schema: pa.Schema, path: str, start: int, stop: int) -> pa.Table:
        count = stop - start
        columns = {n: pa.nulls(count, t) for n, t in self._schema(schema, path).items()}
        columns["uri"] = pa.array(f"{self._storage.uri}/{path}#{row}" for row in range(start, stop))
        columns["reason"] = pa.array([Reason.UNREADABLE_FILE.value] * count)
        return pa.table(columns)

    def _schema(self, found: pa.Schema, path: str) -> dict[str, pa.DataType]:
        """Types of the columns read from a file with the schema `found`."""
        where = f"{self._storage.uri}/{path}"
        for column in self._source_of.values():
            if found.names.count(column) != 1:
                known = ", ".join(found.names)
                many = "more than one" if column in found.names else "no"
                raise InputError(f"{where} has {many} column '{column}'; columns: {known}")
        types = {name: found.field(column).type for name, column in self._source_of.items()}
        types = {
            name: kind.value_type if pa.types.is_dictionary(kind) else kind
            for name, kind in types.items()
        }
        if pa.types.is_integer(types["id"]):
            types["id"] = pa.int64()
        elif pa.types.is_string(types["id"]) or pa.types.is_large_string(types["id"]):
            types["id"] = pa.string()
        else:
            raise InputError(
                f"{where}: ids in '{self._settings.id_column}' must be integers or strings, "
                f"not {types['id']}; set source.id_column"
            )
        fits, wanted = _PAYLOADS[self._payload]
        if not fits(types[self._payload]):
            column, found_type = self._source_of[self._payload], types[self._payload]
            raise InputError(f"{where}: column '{column}' holds {found_type}, not {wanted}")
        return types

    def _paths(self) -> Iterator[str]:
        if self._name:
            yield self._name
            return
        for info in self._storage.list():
            if info.path.endswith(".parquet"):
                yield info.path

    def _open(self, path: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._storage.open(path), pre_buffer=True)
        except (pa.ArrowException, OSError) as error:
            if not _is_damage(error):
                raise
            raise InputError(
                f"{self._storage.uri}/{path} is not readable Parquet: {error}; restore it"
            ) from None


def _is_damage(error: Exception) -> bool:
    """Whether the file is at fault, and not the road to it.

    Arrow reports damage, too, as OSError; a filesystem's has a number, a cause, or a kind.
    """
    if not isinstance(error, OSError):
        return True
    return type(error) is OSError and not error.errno and not error.__cause__


def _is_numbers(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and pa.types.is_floating(kind.value_type)


_PAYLOADS = {
    "image": (lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t), "bytes of images"),
    "feature": (_is_numbers, "lists of floats"),
    "address": (lambda t: pa.types.is_string(t) or pa.types.is_large_string(t), "URIs"),
}


def _spell(schema: dict[str, pa.DataType]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in schema.items())
