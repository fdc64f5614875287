"""Features on storage as one long, read-only matrix whose rows have ordinals.

The rows of a feature set are numbered by the files in the order of their paths, then by the rows
within a file. Any range of rows can be read without reading the others, so work can be cut into
blocks that no machine ever has to hold together.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dq_cluster.errors import InputError, NotFoundError
from dq_cluster.images.backbone import PREPROCESSING
from dq_cluster.storage import FileInfo, Storage


@dataclass(frozen=True)
class FeatureFile:
    """One Parquet file: its name, the ordinal of its first row, and the rows per row group."""

    name: str
    first: int
    groups: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(self.groups)


@dataclass(frozen=True)
class FeatureSet:
    """Parquet files with a `feature` column. Cheap to pickle: it holds no features.

    labelled: there is a `label` column with one class per row. viewed: there is a `view` column,
    the feature of another view of the image, null for most. located: there is a `uri` column,
    where each image lies.
    preprocessing: how the job that wrote the files made a feature out of an image.
    fingerprint: changes when a file is added, removed, or rewritten.
    """

    storage: Storage
    files: tuple[FeatureFile, ...]
    dim: int
    dtype: str
    labelled: bool
    viewed: bool
    located: bool
    preprocessing: dict[str, Any]
    fingerprint: str

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Features of the ordinals [start, stop): (stop - start, dim), in the stored type.

        Raises InputError, naming the file and row, for a feature that is missing or not finite.
        """
        pieces = [
            self._matrix(name, first, column)
            for name, first, column in self._columns("feature", start, stop)
        ]
        return np.concatenate(pieces) if pieces else np.empty((0, self.dim), self.dtype)

    def views(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Which of the ordinals [start, stop) have a view (stop - start,) bool, and those views.

        Raises InputError for a view that is not finite.
        """
        chosen, views = [np.empty(0, bool)], [np.empty((0, self.dim), self.dtype)]
        for name, first, column in self._columns("view", start, stop):
            chosen.append(column.is_valid().to_numpy(zero_copy_only=False))
            views.append(self._matrix(name, first, column.drop_null()))
        return np.concatenate(chosen), np.concatenate(views)

    def labels(self, start: int, stop: int) -> np.ndarray:
        """The `label` column of the ordinals [start, stop), as it is stored."""
        return self._values("label", start, stop)

    def ids(self, start: int, stop: int) -> np.ndarray:
        """The `id` column of the ordinals [start, stop): int64, or strings as objects."""
        return self._values("id", start, stop)

    def uris(self, start: int, stop: int) -> np.ndarray:
        """The `uri` column of the ordinals [start, stop): strings as objects."""
        return self._values("uri", start, stop)

    def _values(self, name: str, start: int, stop: int) -> np.ndarray:
        pieces = [
            column.to_numpy(zero_copy_only=False)
            for _, _, column in self._columns(name, start, stop)
        ]
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def _columns(self, column: str, start: int, stop: int) -> list[tuple[str, int, pa.Array]]:
        """(file, row within the file, values) covering the ordinals [start, stop)."""
        found = []
        for file in self.files:
            low, high = max(start, file.first), min(stop, file.first + file.rows)
            if low >= high:
                continue
            bounds = file.first + np.concatenate([[0], np.cumsum(file.groups)])
            groups = np.flatnonzero((bounds[:-1] < high) & (bounds[1:] > low))
            with self.storage.open(file.name) as handle:
                table = pq.ParquetFile(handle).read_row_groups(groups.tolist(), columns=[column])
            values = table.column(column).combine_chunks()
            if isinstance(values, pa.ChunkedArray):
                values = pa.concat_arrays(values.chunks)
            if isinstance(values, pa.DictionaryArray):
                values = values.dictionary_decode()
            values = values.slice(low - bounds[groups[0]], high - low)
            found.append((file.name, low - file.first, values))
        return found

    def _matrix(self, name: str, first: int, column: pa.Array) -> np.ndarray:
        if column.null_count:
            row = first + column.is_null().to_pylist().index(True)
            raise InputError(f"{self.storage.uri}/{name} row {row}: the feature is null")
        matrix = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), self.dim)
        bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
        if len(bad):
            raise InputError(
                f"{self.storage.uri}/{name} row {first + bad[0]}: the feature is not finite "
                f"({len(bad)} such rows among {len(column)} read); compute these features again"
            )
        return matrix


def open_features(uri: str) -> FeatureSet:
    """Look at the footers of a Parquet file, or of all Parquet files in a folder.

    Raises NotFoundError where there are none, and InputError where their columns are not the
    promised ones or differ between files.
    """
    storage, found = _parquet_files(uri)
    with ThreadPoolExecutor(16) as pool:
        footers = list(pool.map(lambda info: _footer(storage, info.path), found))
    files, first = [], 0
    for info, footer in zip(found, footers, strict=True):
        groups = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
        files.append(FeatureFile(info.path, first, groups))
        first += footer.num_rows
    if not first:
        raise InputError(f"{uri}: {len(files)} Parquet files hold no rows")
    shapes = [
        _shape(storage, file.name, footer) for file, footer in zip(files, footers, strict=True)
    ]
    for file, shape in zip(files, shapes, strict=True):
        if shape != shapes[0]:
            raise InputError(
                f"{storage.uri}/{file.name} differs from {files[0].name} in the size or type of "
                "its features or in how they were made; train on features of one featurize job"
            )
    stamp = [(info.path, info.size, info.modified.timestamp()) for info in found]
    dim, dtype, labelled, viewed, located, preprocessing = shapes[0]
    return FeatureSet(
        storage=storage,
        files=tuple(files),
        dim=dim,
        dtype=dtype,
        labelled=labelled,
        viewed=viewed,
        located=located,
        preprocessing=preprocessing,
        fingerprint=hashlib.sha256(json.dumps(stamp).encode()).hexdigest(),
    )


def _parquet_files(uri: str) -> tuple[Storage, list[FileInfo]]:
    if uri.endswith(".parquet"):
        folder, _, name = Storage(uri).uri.rpartition("/")
        storage = Storage(folder or "/")
        found = [info for info in storage.list() if info.path == name]
    else:
        storage = Storage(uri)
        found = [info for info in storage.list() if info.path.endswith(".parquet")]
    if not found:
        raise NotFoundError(f"{uri}: no Parquet files with features; run a featurize job first")
    return storage, found


def _footer(storage: Storage, name: str) -> pq.FileMetaData:
    with storage.open(name) as handle:
        try:
            return pq.ParquetFile(handle).metadata
        except pa.ArrowInvalid as error:
            raise InputError(f"{storage.uri}/{name} is not Parquet: {error}") from None


def _shape(
    storage: Storage, name: str, footer: pq.FileMetaData
) -> tuple[int, str, bool, bool, bool, dict[str, Any]]:
    """Dimension, type, presence of labels, views, and URIs, and preprocessing a file promises."""
    where = f"{storage.uri}/{name}"
    schema = footer.schema.to_arrow_schema()
    if "feature" not in schema.names:
        raise InputError(f"{where} has no column 'feature'; columns: {', '.join(schema.names)}")
    kind = schema.field("feature").type
    if not pa.types.is_fixed_size_list(kind) or not (
        pa.types.is_float16(kind.value_type) or pa.types.is_float32(kind.value_type)
    ):
        raise InputError(
            f"{where}: column 'feature' is {kind}; "
            "it must be a fixed_size_list of float16 or float32"
        )
    try:
        preprocessing = json.loads((schema.metadata or {}).get(PREPROCESSING, b"{}"))
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: metadata dq.preprocessing is not JSON: {error}") from None
    dtype = np.dtype(kind.value_type.to_pandas_dtype()).name
    labelled = "label" in schema.names and not pa.types.is_nested(schema.field("label").type)
    viewed = "view" in schema.names and schema.field("view").type == kind
    located = "uri" in schema.names and pa.types.is_string(schema.field("uri").type)
    return kind.list_size, dtype, labelled, viewed, located, preprocessing
