"""Code files: ordinary Parquet that any tool can read, and faiss can load without re-encoding.

Columns: `id` (int64, uint64, or string), `code` (fixed_size_binary), `refine_code` where the
model has a second code, the columns the user asked to carry, and in an IVF version `cell` (int32,
rows ordered by it). The key-value metadata names the model digest and the geometry, because codes
without their codebook are noise.

Carried columns keep the types they came with; `carried_schema` says as what they are read.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dq_cluster.errors import InputError, IntegrityError, NotFoundError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.ahead import read_ahead
from dq_cluster.index.columns import join_schemas, unpack_schema
from dq_cluster.index.manifest import FileEntry, Manifest
from dq_cluster.index.plain import SINGLE_PAGES, plain_runs, read_runs
from dq_cluster.index.statistics import column_stats
from dq_cluster.storage import Storage

_OWN = ("id", "code", "refine_code", "cell")
_CODES = ("code", "refine_code")
_MODEL, _GEOMETRY = b"dq.model", b"dq.geometry"
_ID_TYPES = (pa.int64(), pa.uint64(), pa.string())
_GROUP_ROWS = 1 << 20
_ONE_PAGE = {"data_page_size": 1 << 30, "max_rows_per_page": _GROUP_ROWS}  # per column chunk
_SAMPLE_ROWS = 1 << 16
_READERS = 16  # of footers: all waiting
_BATCH_ROWS = 1 << 16  # a batch of codes stays in a processor's cache until it is copied


def code_table(
    ids: pa.Array,
    codes: np.ndarray,
    geometry: CodeGeometry,
    columns: pa.Table | None = None,
    cells: np.ndarray | None = None,
    refine_codes: np.ndarray | None = None,
) -> pa.Table:
    """Assemble the rows of a code file: ids (n), codes (n, code_size) uint8, cells (n), and
    refine_codes (n, refine_m) uint8.

    Rows of an IVF geometry are put in order of their cell.
    """
    if ids.type not in _ID_TYPES:
        raise InputError(f"ids must be int64, uint64, or string, not {ids.type}")
    if (cells is not None) != (geometry.nlist > 0):
        raise InputError("cells must be given exactly for an IVF geometry")
    if (refine_codes is not None) != (geometry.refine_m > 0):
        raise InputError("refine_codes must be given exactly for a geometry with a second code")
    table = pa.table({"id": ids, "code": _packed(codes, len(ids), geometry.code_size)})
    if refine_codes is not None:
        second = _packed(refine_codes, len(ids), geometry.refine_m)
        table = table.append_column("refine_code", second)
    for name in columns.column_names if columns is not None else ():
        if name in _OWN:
            raise InputError(f"carried column '{name}' has a reserved name ({', '.join(_OWN)})")
        table = table.append_column(name, columns.column(name))  # type: ignore[union-attr]
    if cells is not None:
        order = np.argsort(cells, kind="stable")
        table = table.append_column("cell", pa.array(cells.astype(np.int32)))
        table = table.take(pa.array(order))
    return table


def _packed(codes: np.ndarray, rows: int, size: int) -> pa.FixedSizeBinaryArray:
    """Codes (rows, size) uint8 as a column."""
    if codes.shape != (rows, size) or codes.dtype != np.uint8:
        raise InputError(
            f"{rows} ids need uint8 codes of shape ({rows}, {size}), "
            f"found {codes.dtype} {codes.shape}"
        )
    data = pa.py_buffer(np.ascontiguousarray(codes))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), rows, [None, data])


def write_code_file(
    storage: Storage, path: str, table: pa.Table, *, model: str, geometry: CodeGeometry
) -> FileEntry:
    """Write `table` (see `code_table`) as an immutable code file and return its entry."""
    metadata = {
        _MODEL: model.encode(),
        _GEOMETRY: geometry.model_dump_json().encode(),
        **SINGLE_PAGES,
    }
    # Codes look random: compressing them costs reading speed and saves nothing.
    raw = _CODES if _shrinks(table.select(["id"])) else ("id", *_CODES)
    return write_parquet(
        storage,
        path,
        table.replace_schema_metadata(metadata),
        raw=raw,
        plain=[name for name in _OWN if name not in raw],
        stats=[name for name in table.column_names if name not in _CODES],
    )


def _shrinks(column: pa.Table) -> bool:
    """Whether encoding a column of ids saves a quarter of it. Random 64-bit numbers do not."""
    if not pa.types.is_integer(column.schema.field(0).type):
        return True
    sample, sink = column.slice(0, _SAMPLE_ROWS), pa.BufferOutputStream()
    _write(sample, sink, raw=(), plain=column.column_names)
    return sink.getvalue().size < 0.75 * sample.nbytes


def write_parquet(
    storage: Storage,
    path: str,
    table: pa.Table,
    *,
    raw: Sequence[str] = (),
    plain: Sequence[str] = (),
    stats: Sequence[str] = (),
) -> FileEntry:
    """Write any Parquet file of the index.

    `raw` columns are stored as they lie in memory, so that `index.plain` can read them; `plain`
    ones without a dictionary, integers as differences.
    """
    sink = pa.BufferOutputStream()
    _write(table, sink, raw=raw, plain=plain)
    data = sink.getvalue()
    storage.write(path, memoryview(data).tobytes())
    return FileEntry(
        path=path,
        rows=table.num_rows,
        size=data.size,
        sha256=hashlib.sha256(data).hexdigest(),
        stats=column_stats(pq.read_metadata(pa.BufferReader(data)), stats),
    )


def _write(
    table: pa.Table, sink: pa.NativeFile, *, raw: Sequence[str], plain: Sequence[str]
) -> None:
    names = table.column_names
    integers = [n for n in plain if n in names and pa.types.is_integer(table.schema.field(n).type)]
    pq.write_table(
        table,
        sink,
        compression={name: "NONE" if name in raw else "ZSTD" for name in names},
        use_dictionary=[name for name in names if name not in (*raw, *plain)] or False,
        column_encoding=dict.fromkeys(integers, "DELTA_BINARY_PACKED") or None,
        row_group_size=_GROUP_ROWS,
        **(_ONE_PAGE if raw else {}),
    )


def open_code_file(
    storage: Storage, entry: FileEntry, *, model: str, geometry: CodeGeometry
) -> pq.ParquetFile:
    """Open a code file after checking its size, rows, model, and geometry against the manifest.

    Raises IntegrityError naming the file and both values where they disagree.
    """
    where = f"{storage.uri}/{entry.path}"
    try:
        if storage.is_local:
            source = storage.arrow.open_input_file(storage.path(entry.path))
        else:
            source = storage.open(entry.path)  # one request less than through Arrow
        file = pq.ParquetFile(source)
    except (FileNotFoundError, NotFoundError):
        raise IntegrityError(
            f"{where} is named by the manifest but missing; restore it or roll back"
        ) from None
    except (pa.ArrowInvalid, OSError) as error:
        raise IntegrityError(f"{where} is not readable Parquet: {error}") from error
    metadata = file.schema_arrow.metadata or {}
    checks = {
        "rows": (entry.rows, file.metadata.num_rows),
        "model": (model, metadata.get(_MODEL, b"none").decode()),
        "geometry": (geometry.model_dump_json(), metadata.get(_GEOMETRY, b"none").decode()),
    }
    for what, (expected, actual) in checks.items():
        if expected != actual:
            raise IntegrityError(f"{where}: {what} is {actual}, the manifest says {expected}")
    return file


def carried_schema(storage: Storage, manifest: Manifest) -> pa.Schema:
    """The types as which the carried columns of a version are read, whatever its files have.

    A manifest that does not say is as old as the rule that it must: then the footers of all files
    are read. Raises IntegrityError, naming the file, where no type holds what the files have.
    """
    if manifest.arrow_schema is not None:
        try:
            schema = unpack_schema(manifest.arrow_schema)
        except (ValueError, pa.ArrowException) as error:
            raise IntegrityError(
                f"{storage.uri}: arrow_schema of version {manifest.version} cannot be read: {error}"
            ) from None
        if tuple(schema.names) != manifest.columns:
            raise IntegrityError(
                f"{storage.uri}: version {manifest.version} carries "
                f"{', '.join(manifest.columns)}, its arrow_schema has {', '.join(schema.names)}"
            )
        return schema
    if not manifest.columns:
        return pa.schema([])

    def read(entry: FileEntry) -> list[tuple[str, pa.Schema]]:
        with open_code_file(
            storage, entry, model=manifest.model, geometry=manifest.geometry
        ) as file:
            where = f"{storage.uri}/{entry.path}"
            return [(where, file_schema(file, manifest.columns, where))]

    try:
        return join_schemas(read_ahead(read, manifest.files, _READERS), "the files before it")
    except InputError as error:
        raise IntegrityError(
            f"version {manifest.version} cannot be read: {error}; go back to a version without "
            "that file: 'dq-cluster index rollback'"
        ) from None


def row_schema(storage: Storage, manifest: Manifest) -> pa.Schema:
    """What a row has beside its codes: `id` and the carried columns. Raises IntegrityError."""
    id = pa.field("id", pa.type_for_alias(manifest.id_type))
    return pa.schema([id, *carried_schema(storage, manifest)])


def file_schema(file: pq.ParquetFile, columns: Sequence[str], where: str) -> pa.Schema:
    """The carried `columns` as the code file `where` has them.

    Raises IntegrityError where one is missing.
    """
    schema = file.schema_arrow
    for name in columns:
        if schema.names.count(name) != 1:
            raise IntegrityError(
                f"{where} has {schema.names.count(name)} columns '{name}', the version carries "
                f"one; its columns: {', '.join(schema.names)}"
            )
    return pa.schema([schema.field(name) for name in columns])


def read_codes(
    file: pq.ParquetFile, geometry: CodeGeometry, local: Path | None
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Batches of consecutive rows: codes (n, code_size) uint8, for an IVF geometry cells (n,).

    local: where the file lies if it does so on a local disk. A batch is valid until the next.
    """
    if not geometry.nlist:
        yield from ((codes, None) for codes in _read(file, "code", geometry.code_size, local))
        return
    for batch in _decoded(file, ["code", "cell"]):
        codes = code_matrix(batch.column("code"), geometry.code_size)
        yield codes, batch.column("cell").to_numpy()


def read_bare_codes(
    file: pq.ParquetFile, geometry: CodeGeometry, local: Path | None
) -> Iterator[np.ndarray]:
    """The codes (n, code_size) uint8 of consecutive rows without their cells, as `read_codes`."""
    yield from _read(file, "code", geometry.code_size, local)


def read_cells(file: pq.ParquetFile) -> Iterator[np.ndarray]:
    """The cells (n,) int32 of consecutive rows."""
    for batch in _decoded(file, ["cell"]):
        yield batch.column("cell").to_numpy()


def read_second_codes(
    file: pq.ParquetFile, geometry: CodeGeometry, local: Path | None
) -> Iterator[np.ndarray]:
    """The second codes (n, refine_m) uint8 of consecutive rows, otherwise as `read_codes`."""
    yield from _read(file, "refine_code", geometry.refine_m, local)


def _read(file: pq.ParquetFile, name: str, size: int, local: Path | None) -> Iterator[np.ndarray]:
    runs = plain_runs(file, name, size)
    if local is not None and runs is not None:
        yield from read_runs(local, runs, size)
        return
    for batch in _decoded(file, [name]):
        yield code_matrix(batch.column(name), size)


def _decoded(file: pq.ParquetFile, names: list[str]) -> Iterator[pa.RecordBatch]:
    # Threads would decode one column, in one row group: the callers read several files instead.
    return file.iter_batches(_BATCH_ROWS, columns=names, use_threads=False)


def code_matrix(chunk: pa.FixedSizeBinaryArray, size: int) -> np.ndarray:
    """A column of codes as it lies in memory: (rows, size) uint8, not copied."""
    flat = np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * size, chunk.offset * size)
    return flat.reshape(len(chunk), size)
