"""Features on storage as one long, read-only matrix whose rows have ordinals.

The rows of a feature set are numbered by the files in the order of their paths, then by the rows
within a file. Any range of rows can be read without reading the others, so work can be cut into
blocks that no machine ever has to hold together.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dq_cluster.errors import InputError, NotFoundError
from dq_cluster.images import values
from dq_cluster.images.backbone import PREPROCESSING
from dq_cluster.images.columns import (
    Column,
    Place,
    Read,
    first_dimension,
    id_column,
    origin,
    payload_column,
    type_of,
)
from dq_cluster.images.damage import is_damage
from dq_cluster.images.skipped import Skipped, skipped_text
from dq_cluster.images.tables import open_rows, row_files, split_uri
from dq_cluster.index.ids import joined
from dq_cluster.storage import Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureFile:
    """One file of features: its name, the ordinal of its first row, and its number of rows."""

    name: str
    first: int
    rows: int


@dataclass(frozen=True)
class FeatureSet:
    """Files with a column of features. Cheap to pickle: it holds no features.

    column: the column of features; dim: numbers of each; dtype: float16 or float32, as which they
    are read. ids_from: the column of ids that was asked for.
    labelled: there is a `label` column with one class per row. viewed: there is a `view` column,
    the feature of another view of the image, null for most. located: there is a `uri` column,
    where each image lies.
    preprocessing: how the job that wrote the files made a feature out of an image.
    fingerprint: changes when a file is added, removed, or rewritten.
    """

    storage: Storage
    files: tuple[FeatureFile, ...]
    column: str
    ids_from: str
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

    def check_dim(self, dim: int, of: str) -> None:
        """Raise InputError unless the features have as many numbers as those of `of`: `dim`."""
        if self.dim != dim:
            raise InputError(
                f"the features at {self.storage.uri} have {self.dim} numbers, those of {of} "
                f"{dim}; give features of one kind"
            )

    def read(self, start: int, stop: int) -> np.ndarray:
        """Features of the ordinals [start, stop): (stop - start, dim) of `dtype`.

        Raises InputError, naming the file and row, for a feature that is missing, of another
        dimension, or not finite.
        """
        pieces = [np.empty((0, self.dim), self.dtype)]
        for place, column in self._columns(self.column, values.as_vectors, start, stop):
            pieces.append(self._matrix(place.uri, np.array(place.rows), column))
        return np.concatenate(pieces)

    def views(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Which of the ordinals [start, stop) have a view (stop - start,) bool, and those views.

        Raises InputError for a view that is not finite.
        """
        chosen, views = [np.empty(0, bool)], [np.empty((0, self.dim), self.dtype)]
        for place, column in self._columns("view", values.as_vectors, start, stop):
            viewed = column.is_valid().to_numpy(zero_copy_only=False)
            chosen.append(viewed)
            views.append(self._matrix(place.uri, np.array(place.rows)[viewed], column.drop_null()))
        return np.concatenate(chosen), np.concatenate(views)

    def labels(self, start: int, stop: int) -> np.ndarray:
        """The `label` column of the ordinals [start, stop), as it is stored."""
        return self._values("label", values.carried, start, stop)

    def uris(self, start: int, stop: int) -> np.ndarray:
        """The `uri` column of the ordinals [start, stop): strings as objects."""
        return self._values("uri", values.as_text, start, stop)

    def texts(self, column: str, start: int, stop: int) -> list[str | None]:
        """A column of text of the ordinals [start, stop). Raises InputError where there is none."""
        found: list[str | None] = []
        for _, part in self._columns(column, values.as_text, start, stop):
            found += part.to_pylist()
        return found

    def ids(self, start: int, stop: int) -> np.ndarray:
        """Ids of the ordinals [start, stop): int64, uint64, or strings as objects.

        The same that encoding gives these rows. Raises InputError where there are none.
        """
        if not self.files:
            return np.empty(0, np.int64)
        where = f"{self.storage.uri}/{self.files[0].name}"
        schema = open_rows(self.storage, self.files[0].name).schema
        try:
            from_column = id_column(schema, self.ids_from, self.column)
        except InputError as error:
            raise InputError(f"{where} {error}") from None
        if from_column != self.ids_from:
            logger.info("%s: ids are %s", self.storage.uri, origin(from_column))
        parts = []
        for place, column in self._columns(from_column, values.as_ids, start, stop):
            if column.null_count:
                row = place.rows[column.is_null().to_pylist().index(True)]
                raise InputError(f"{place.uri} row {row}: the id is null; leave such rows out")
            parts.append(column)
        return joined(parts).to_numpy(zero_copy_only=False) if parts else np.empty(0, np.int64)

    def _values(self, name: str, read: Read, start: int, stop: int) -> np.ndarray:
        pieces = [
            column.to_numpy(zero_copy_only=False)
            for _, column in self._columns(name, read, start, stop)
        ]
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def _columns(
        self, name: str, read: Read, start: int, stop: int
    ) -> Iterator[tuple[Place, pa.Array]]:
        """Places and values, one of each file, that cover the ordinals [start, stop)."""
        for file in self.files:
            low, high = max(start, file.first) - file.first, min(stop - file.first, file.rows)
            if low >= high:
                continue
            uri = f"{self.storage.uri}/{file.name}"
            place = Place(uri, file.name, range(low, high), file.first)
            rows = open_rows(self.storage, file.name)
            column = Column.find(rows.schema, name, read, uri)
            if column.made:
                yield place, column.at(place)
                continue
            with _damage_named(uri, place.rows):
                batches = list(rows.batches(low, high, [name], high - low))
            yield place, column.of(pa.concat_tables(batches), place)

    def _matrix(self, uri: str, rows: np.ndarray, column: pa.Array) -> np.ndarray:
        """The features in `column`, which are those of `rows` of the file at `uri`."""
        if column.null_count:
            first = column.is_null().to_pylist().index(True)
            raise InputError(f"{uri} row {rows[first]}: the feature is null")
        matrix, fits = values.matrix(column, self.dim)
        if not fits.all():
            first = int(np.flatnonzero(~fits)[0])
            raise InputError(
                f"{uri} row {rows[first]}: the feature has {len(column[first])} numbers, "
                f"others have {self.dim}"
            )
        bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
        if len(bad):
            raise InputError(
                f"{uri} row {rows[bad[0]]}: the feature is not finite in {matrix.dtype} "
                f"({len(bad)} such rows among {len(column)} read); compute these features again"
            )
        return matrix.astype(self.dtype, copy=False)


class _Promise(NamedTuple):
    """What a file says about its features; dim is None where it holds none."""

    column: str
    dim: int | None
    dtype: str
    labelled: bool
    viewed: bool
    located: bool
    preprocessing: dict[str, Any]


def open_features(uri: str, column: str = "feature", *, ids: str = "id") -> FeatureSet:
    """Look at a file of features, Parquet or `.npy`, or at all of them in a folder.

    column: the column of features. Where there is none of the usual name, and only one with lists
    of floats, it is that one, and the log says so. ids: the column of ids, of which only
    `FeatureSet.ids` needs one.

    Raises NotFoundError where there are no such files, and InputError where their columns are not
    the promised ones or differ between files.
    """
    storage, name = split_uri(uri)
    skipped = Skipped()
    infos = [storage.info(name)] if name else list(row_files(storage, skipped, arrays=True))
    left_out = skipped_text(skipped.take(), skipped.formats)
    if not infos:
        raise NotFoundError(
            f"{uri}: no Parquet or .npy files with features{left_out and f' ({left_out})'}; run a "
            "featurize job first, or convert what is there"
        )
    if left_out:
        logger.info("%s: %s", storage.uri, left_out)
    with ThreadPoolExecutor(16) as pool:
        looked = list(pool.map(lambda info: _look(storage, info.path, column), infos))
    files, first = [], 0
    for info, (rows, _) in zip(infos, looked, strict=True):
        files.append(FeatureFile(info.path, first, rows))
        first += rows
    promises = [promise for _, promise in looked]
    if not first:
        raise InputError(f"{uri}: {len(files)} files of features hold no rows")
    dim, dim_of = next(
        ((p.dim, info.path) for p, info in zip(promises, infos, strict=True) if p.dim is not None),
        (0, infos[0].path),
    )
    if not dim:
        raise InputError(f"{storage.uri}/{dim_of}: its features are null or have no numbers")
    one = promises[0]
    for info, other in zip(infos, promises, strict=True):
        if other.dim not in (None, dim):
            raise InputError(
                f"{storage.uri}/{info.path} has features of {other.dim} numbers, {dim_of} of "
                f"{dim}; give features of one kind"
            )
        # A run that an older release began has files without `uri`, and goes on with it.
        if other._replace(dim=None, dtype="", located=True) != one._replace(
            dim=None, dtype="", located=True
        ):
            raise InputError(
                f"{storage.uri}/{info.path} differs from {infos[0].path} in its columns or in how "
                "its features were made; train on features of one featurize job"
            )
    if one.column != column:
        logger.info("%s: the feature is column '%s'", storage.uri, one.column)
    stamp: list[Any] = [(info.path, info.size, info.modified.timestamp()) for info in infos]
    if one.column != "feature":
        stamp.append(one.column)
    return FeatureSet(
        storage=storage,
        files=tuple(files),
        column=one.column,
        ids_from=ids,
        dim=dim,
        dtype="float16" if {p.dtype for p in promises} == {"float16"} else "float32",
        labelled=one.labelled,
        viewed=one.viewed,
        located=all(promise.located for promise in promises),
        preprocessing=one.preprocessing,
        fingerprint=hashlib.sha256(json.dumps(stamp).encode()).hexdigest(),
    )


def _look(storage: Storage, path: str, given: str) -> tuple[int, _Promise]:
    """The rows of a file, and what it promises of its features."""
    where = f"{storage.uri}/{path}"
    file = open_rows(storage, path)
    try:
        name = payload_column(
            file.schema, given, "feature", "lists of floats", values.may_be_vectors
        )
        label, view, uri = (type_of(file.schema, other) for other in ("label", "view", "uri"))
    except InputError as error:
        raise InputError(f"{where} {error}") from None
    column = Column.find(file.schema, name, values.as_vectors, where)
    try:
        preprocessing = json.loads((file.schema.metadata or {}).get(PREPROCESSING, b"{}"))
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: metadata dq.preprocessing is not JSON: {error}") from None
    rows = sum(file.groups)
    with _damage_named(where, range(rows)):
        dim = first_dimension(file, column)
    return rows, _Promise(
        column=name,
        dim=dim,
        dtype=np.dtype(column.reading.kind.value_type.to_pandas_dtype()).name,
        labelled=label is not None and not pa.types.is_nested(label),
        viewed=view is not None and view == type_of(file.schema, name),
        located=uri is not None and values.may_be_text(uri),
        preprocessing=preprocessing,
    )


@contextlib.contextmanager
def _damage_named(where: str, rows: range) -> Iterator[None]:
    """Say which rows of which file cannot be read."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if not is_damage(error):
            raise
        raise InputError(
            f"{where} rows {rows.start} to {rows.stop} cannot be read: {error}; restore the file"
        ) from None
