"""Choosing the columns of a file, and reading them by name.

A name with dots is a field of a struct: `image.bytes`. If the usual column is missing and only one
other fits, that one is used.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dq_cluster.errors import InputError
from dq_cluster.images import values
from dq_cluster.images.tables import RowFile

ROW, PATH = "row", "path"  # ids for files without a column of ids: see `id_column`
URI = "#"  # `<uri of the file>#<row>`
_MADE = {ROW: pa.int64(), PATH: pa.string(), URI: pa.string()}
LOOK_ROWS = 64  # that say what the others of a file will be like
Read = Callable[[pa.DataType], values.Reading]

_ID, _IMAGE_PATH = "id", "image_path"  # clip-retrieval and img2dataset name images by their path


def type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
    """The type of a column or of a field within one; None where there is none of that name."""
    place = _find(schema, name)
    return place and place[2]


def column_of(table: pa.Table, name: str) -> pa.Array:
    """The values of a column, or of a field within one, in one piece. Raises KeyError."""
    place = _find(table.schema, name)
    if place is None:
        raise KeyError(name)
    top, inner, _ = place
    column = table.column(top).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of an extension type
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    return pc.struct_field(column, inner) if inner else column


def payload_column(
    schema: pa.Schema, name: str, usual: str, holds: str, may_be: Callable[[pa.DataType], bool]
) -> str:
    """The column `name`, or where that is the `usual` one and missing, the only one that
    `may_be` it. Raises InputError, naming what there is to choose from; `holds`: what a column
    must hold."""
    if type_of(schema, name) is not None:
        return name
    likely = [field.name for field in schema if may_be(field.type)]
    if name == usual and len(likely) == 1:
        return likely[0]
    for field in schema:
        if pa.types.is_struct(field.type) and field.name not in likely:
            likely += [f"{field.name}.{inner.name}" for inner in field.type if may_be(inner.type)]
    choice = f"set {usual}_column to {' or '.join(likely)}" if likely else f"none holds {holds}"
    raise InputError(f"has no column '{name}'; columns: {names(schema)}; {choice}")


def id_column(schema: pa.Schema, name: str, feature: str | None = None) -> str:
    """The column of ids: `name`, or ROW for the row's number in the dataset, or PATH for
    `<file>#<row>`, each of which a column of that name comes before.

    feature: the column of features, in files that may do without ids: where there is no `id`,
    they are named by `image_path`, or where there is nothing to name them by, by number.
    Raises InputError, naming what there is to choose from.
    """
    if type_of(schema, name) is not None or name in (ROW, PATH):
        return name
    if name == _ID and feature is not None:
        if type_of(schema, _IMAGE_PATH) is not None:
            return _IMAGE_PATH
        if all(field.name == feature or values.may_be_vectors(field.type) for field in schema):
            return ROW
    raise InputError(
        f"has no column '{name}'; columns: {names(schema)}; set id_column to one of them, to "
        f"'{ROW}' for the number of the row, or to '{PATH}' for <file>#<row>"
    )


@dataclass(frozen=True)
class Place:
    """Consecutive rows of a file: of the file `path` at `uri`, the rows `rows` of it; `base` rows
    of the dataset come before the file."""

    uri: str
    path: str
    rows: range
    base: int


@dataclass(frozen=True)
class Column:
    """A column that is read from files. made: from the place of the rows, as `source` says
    (ROW, PATH, or URI)."""

    source: str
    reading: values.Reading
    made: bool = False

    @classmethod
    def find(cls, schema: pa.Schema, source: str, read: Read, where: str) -> "Column":
        """The column `source`; where there is none, ROW, PATH, and URI are made from the place.

        Raises InputError, beginning with `where`, for any other that is missing, and for a type
        that `read` refuses.
        """
        kind = type_of(schema, source)
        if kind is None and source in _MADE:
            return cls(source, values.carried(_MADE[source]), made=True)
        if kind is None:
            raise InputError(f"{where} has no column '{source}'; columns: {names(schema)}")
        try:
            return cls(source, read(kind))
        except InputError as error:
            raise InputError(f"{where}: column '{source}' {error}") from None

    def of(self, table: pa.Table, place: Place) -> pa.Array:
        """The values for the rows of `table`, which lie at `place`.

        Raises InputError, naming file and row, for a value that cannot be converted.
        """
        if self.made:
            return self.at(place)
        column = column_of(table, self.source)
        try:
            return self.reading.read(column)
        except pa.ArrowInvalid as error:
            row = next((r for r in range(len(column)) if not self._fits(column.slice(r, 1))), None)
            where = f"rows {place.rows.start} to {place.rows.stop}: values"
            if row is not None:
                where = f"row {place.rows[row]}: the value"
            raise InputError(
                f"{place.uri} {where} of column '{self.source}' ({column.type}) cannot be read as "
                f"{self.reading.kind}: {error}"
            ) from None

    def _fits(self, column: pa.Array) -> bool:
        try:
            self.reading.read(column)
        except pa.ArrowInvalid:
            return False
        return True

    def at(self, place: Place) -> pa.Array:
        """What is known of the rows without reading them: nulls, but where it is made."""
        if not self.made:
            return pa.nulls(len(place.rows), self.reading.kind)
        if self.source == ROW:
            rows = range(place.base + place.rows.start, place.base + place.rows.stop)
            return pa.array(rows, pa.int64())
        of = place.path if self.source == PATH else place.uri
        return pa.array((f"{of}#{row}" for row in place.rows), pa.string())

    def __str__(self) -> str:
        return f"{self.reading.kind} from {'the place, ' * self.made}'{self.source}'"


def first_dimension(file: RowFile, column: Column) -> int | None:
    """How many numbers the first feature in the file has, if one of the first rows has one."""
    kind = column.reading.kind
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    rows = column_of(file.head([column.source], LOOK_ROWS), column.source)
    lengths = pc.list_value_length(column.reading.read(rows)).drop_null()
    return int(lengths[0].as_py()) if len(lengths) else None


def origin(ids: str) -> str:
    """Where ids come from, for people; see `id_column`."""
    return "the numbers of the rows, from 0" if ids == ROW else f"from column '{ids}'"


def names(schema: pa.Schema) -> str:
    """The names of the columns, for people."""
    shown = schema.names[:40]
    more = len(schema.names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def _find(schema: pa.Schema, name: str) -> tuple[str, list[str], pa.DataType] | None:
    """The column that a dotted name means, the fields within it, and their type.

    A column with dots in its own name comes before a field. Raises InputError where several
    columns have the name.
    """
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        top, inner = ".".join(parts[:count]), parts[count:]
        if schema.names.count(top) > 1:
            raise InputError(f"has more than one column '{top}'; rename all but one")
        if top not in schema.names:
            continue
        kind = schema.field(top).type
        for field in inner:
            if not pa.types.is_struct(kind) or kind.get_field_index(field) < 0:
                break
            kind = kind.field(field).type
        else:
            return top, inner, kind
    return None
