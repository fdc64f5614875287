"""Sources of rows: Parquet with images or addresses in it, and features in Parquet or arrays."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dq_cluster.errors import InputError
from dq_cluster.images import values
from dq_cluster.images.columns import (
    LOOK_ROWS,
    ROW,
    URI,
    Column,
    Place,
    Read,
    column_of,
    first_dimension,
    id_column,
    names,
    origin,
    payload_column,
    type_of,
)
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.damage import is_damage
from dq_cluster.images.decode import Reason
from dq_cluster.images.skipped import Skipped, skipped_text
from dq_cluster.images.tables import (
    RowFile,
    open_rows,
    row_files,
    split_uri,
)
from dq_cluster.images.units import Unit, as_planned
from dq_cluster.index.columns import check_carried, join_schemas
from dq_cluster.storage import FileInfo

logger = logging.getLogger(__name__)

_READERS = 16  # of footers: all waiting


class _Payload(NamedTuple):
    """What a row is about: its name in the tables, the name that its column usually has, what such
    a column holds, how it is read, and which columns may be it."""

    name: str
    usual: str
    holds: str
    read: Read
    may_be: Callable[[pa.DataType], bool]


_PAYLOADS = {
    "parquet": _Payload(
        "image", "image", "bytes of images", values.as_images, values.may_be_images
    ),
    "features": _Payload(
        "feature", "feature", "lists of floats", values.as_vectors, values.may_be_vectors
    ),
    "inventory": _Payload("address", "uri", "URIs", values.as_text, lambda kind: False),
}


class ParquetRows:
    """Files of rows with an `image`, a `feature`, or an `address` each, as the kind of source says.

    A unit is a row group. Rows of files without a text column `uri` get the URI `<file>#<row>`.
    """

    def __init__(self, settings: SourceSettings) -> None:
        self._settings, self._payload = settings, _PAYLOADS[settings.kind]
        self._column = str(getattr(settings, f"{self._payload.usual}_column"))
        self._storage, self._name = split_uri(settings.uri)
        self.skipped = Skipped()

    def units(self) -> Iterator[Unit]:
        """List the row groups; log which columns are read where it is not those asked for."""
        first: dict[str, Column] | None = None
        base = 0
        for info in self.listing():
            path = info.path
            file = open_rows(self._storage, path)
            layout = self._layout(file.schema, path)
            if first is None:
                first = layout
                self._log_choices(layout)
                self._check_embedded(file, layout, path)
            self._check_alike(layout, first, path)
            start = 0
            for rows in file.groups:
                if rows:
                    yield Unit(path, start, rows, info.size, info.stamp, base)
                start += rows
            base += start
        if first is None:
            suffixes = ".parquet or .npy" if self._arrays else ".parquet"
            instead = skipped_text(self.skipped.take(), self.skipped.formats)
            raise InputError(
                f"{self._settings.uri} holds no {suffixes} file{instead and f' ({instead})'}; "
                "check source.uri, or convert what it holds"
            )

    def listing(self) -> Iterator[FileInfo]:
        """The files of rows, as a stream; others are counted in `skipped`."""
        if self._name:
            return iter([self._storage.info(self._name)])
        return row_files(self._storage, self.skipped, arrays=self._arrays)

    def holds(self, info: FileInfo) -> bool:
        return True

    def schema(self) -> pa.Schema:
        """`id` and the carried columns, of types that hold what all files have.

        Reads every footer; the types are null where there is no file. Raises InputError, naming
        the file, for types that do not go together or cannot be carried.
        """

        def read(info: FileInfo) -> tuple[str, pa.Schema]:
            layout = self._layout(open_rows(self._storage, info.path).schema, info.path)
            carried = pa.schema([(name, layout[name].reading.kind) for name in kept])
            check_carried(carried, self._where(info.path))
            return self._where(info.path), carried

        kept = ("id", *self._settings.columns)
        with ThreadPoolExecutor(_READERS) as pool:
            parts = list(pool.map(read, self.listing()))
        nothing = pa.schema([(name, pa.null()) for name in kept])
        return join_schemas([("", nothing), *parts], "the files before it")

    def column_names(self) -> list[str]:
        """The columns of the first file."""
        first = next(self.listing(), None)
        return list(open_rows(self._storage, first.path).schema.names) if first else []

    def about(self, key: bytes) -> bytes | None:
        """What the first file says under `key` in its metadata."""
        first = next(self.listing(), None)
        metadata = open_rows(self._storage, first.path).schema.metadata if first else None
        return (metadata or {}).get(key)

    def numbers_rows(self) -> bool:
        """Whether ids are the numbers of the rows."""
        first = next(self.listing(), None)
        if first is None:
            return False
        ids = self._layout(open_rows(self._storage, first.path).schema, first.path)["id"]
        return ids.made and ids.source == ROW

    def dimension(self) -> int | None:
        """How many numbers the first feature of the dataset has, if there is one."""
        for info in self.listing():
            file = open_rows(self._storage, info.path)
            column = self._layout(file.schema, info.path)[self._payload.name]
            try:
                dim = first_dimension(file, column)
            except (pa.ArrowException, OSError) as error:
                if not is_damage(error):
                    raise
                continue  # its rows will be rejects
            if dim is not None:
                return dim
        return None

    def read(self, units: Iterable[Unit], rows: int) -> Iterator[pa.Table]:
        for path, parts in itertools.groupby(units, lambda unit: unit.path):
            units_here = list(parts)
            with as_planned(self._storage, units_here[0]):
                file = open_rows(self._storage, path)
                layout = self._layout(file.schema, path)
                for unit in units_here:
                    yield from self._read_unit(file, layout, unit, rows)

    def _read_unit(
        self, file: RowFile, layout: dict[str, Column], unit: Unit, rows: int
    ) -> Iterator[pa.Table]:
        start, stop = unit.start, unit.start + unit.rows
        sources = dict.fromkeys(c.source for c in layout.values() if not c.made)
        batches = file.batches(start, stop, list(sources), rows)
        while start < stop:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                if not is_damage(error):
                    raise
                batch = None
            if batch is None:
                # Every row of the unit that was not read yet is a reject.
                yield self._unreadable(layout, self._place(unit, start, stop))
                return
            place = self._place(unit, start, start + batch.num_rows)
            table = {name: column.of(batch, place) for name, column in layout.items()}
            yield pa.table(table | {"reason": pa.nulls(batch.num_rows, pa.string())})
            start = place.rows.stop

    def _unreadable(self, layout: dict[str, Column], place: Place) -> pa.Table:
        table = {name: column.at(place) for name, column in layout.items()}
        table["uri"] = Column(URI, values.as_text(pa.string()), made=True).at(place)
        reason = pa.array([Reason.UNREADABLE_FILE.value] * len(place.rows))
        return pa.table(table | {"reason": reason})

    def _layout(self, schema: pa.Schema, path: str) -> dict[str, Column]:
        """How a file with `schema` is read: the columns of its tables.

        Raises InputError, naming the file, where a column is missing or cannot be used.
        """
        where, payload = self._where(path), self._payload
        try:
            column = payload_column(
                schema, self._column, payload.usual, payload.holds, payload.may_be
            )
            features = column if self._arrays else None
            ids = id_column(schema, self._settings.id_column, features)
            for name in self._settings.columns:
                if name != "uri" and type_of(schema, name) is None:
                    raise InputError(f"has no column '{name}'; columns: {names(schema)}")
            uri = type_of(schema, "uri")
        except InputError as error:
            raise InputError(f"{where} {error}") from None
        layout = {
            "id": Column.find(schema, ids, values.as_ids, where),
            payload.name: Column.find(schema, column, payload.read, where),
        }
        for name in self._settings.columns:
            if name != "uri":
                layout[name] = Column.find(schema, name, values.carried, where)
        located = uri is not None and values.may_be_text(uri)
        layout["uri"] = Column.find(schema, "uri" if located else URI, values.as_text, where)
        return layout

    def _check_alike(self, layout: dict[str, Column], first: dict[str, Column], path: str) -> None:
        """Raise InputError where the ids or payloads of two files cannot be of one dataset.

        Carried columns may differ as far as `schema` finds a type for all files.
        """
        for name in ("id", self._payload.name):
            one, other = layout[name], first[name]
            alike = _same_dim if name == self._payload.name else _same_kind
            if one.source != other.source or not alike(one, other):
                raise InputError(
                    f"{self._where(path)}: {name} is {one}, in the files before it {other}; give "
                    "files of one schema"
                )

    def _log_choices(self, layout: dict[str, Column]) -> None:
        payload, ids = layout[self._payload.name].source, layout["id"].source
        if payload != self._column:
            name = self._payload.name
            logger.info("%s: the %s is column '%s'", self._settings.uri, name, payload)
        if ids != self._settings.id_column:
            logger.info("%s: ids are %s", self._settings.uri, origin(ids))

    def _check_embedded(self, file: RowFile, layout: dict[str, Column], path: str) -> None:
        """Raise InputError where a column of structs has the paths of images, not the images."""
        source = layout[self._payload.name].source
        if self._payload.name != "image" or type_of(file.schema, f"{source}.path") is None:
            return
        try:
            table = file.head([source], LOOK_ROWS)
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
            return  # its rows will be rejects
        counts = [
            pc.count(column_of(table, f"{source}.{field}")).as_py() for field in ("bytes", "path")
        ]
        if not counts[0] and counts[1]:
            raise InputError(
                f"{self._where(path)}: column '{source}' has only the paths of its images, not "
                f"their bytes; write the bytes into it, or use kind inventory with uri_column "
                f"{source}.path"
            )

    @property
    def _arrays(self) -> bool:
        """Whether the files may be arrays of NumPy, too."""
        return self._payload.name == "feature"

    def _where(self, path: str) -> str:
        return f"{self._storage.uri}/{path}"

    def _place(self, unit: Unit, start: int, stop: int) -> Place:
        return Place(self._where(unit.path), unit.path, range(start, stop), unit.base)


def _same_kind(one: Column, other: Column) -> bool:
    return bool(one.reading.kind == other.reading.kind)


def _same_dim(one: Column, other: Column) -> bool:
    """Whether two columns may hold vectors of one dimension, or other payloads."""
    kinds = (one.reading.kind, other.reading.kind)
    if not all(map(pa.types.is_fixed_size_list, kinds)):
        return True
    return bool(kinds[0].list_size == kinds[1].list_size)
