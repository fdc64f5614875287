"""Carried columns: their names, which Arrow types they may have, and which types go together.

Files keep the types they were written with. A version has one type for each column, which holds
the values of all its files exactly; readers cast to it.
"""

import base64
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.types as pt

from dq_cluster.errors import InputError

RESERVED = (
    "id",
    "code",
    "refine_code",
    "cell",
    "feature",
    "view",
    "image",
    "address",
    "fragment",
    "reason",
    "score",
)
_MANTISSA = {16: 11, 32: 24, 64: 53}  # whole numbers of so many bits are exact in a float


def name_problem(names: Sequence[str]) -> str | None:
    """What is wrong with these names of carried columns, or None."""
    seen: dict[str, str] = {}
    for name in names:
        if not name or name != name.strip():
            return f"{name!r} is no name for a carried column: it is empty or begins or ends blank"
        if "." in name:
            return (
                f"carried column '{name}' has a dot in its name, which Parquet reads as a field "
                "of a struct; rename it"
            )
        if name.lower() in RESERVED:
            return (
                f"carried column '{name}' has a reserved name; rename it (reserved in any case: "
                f"{', '.join(RESERVED)})"
            )
        if name.lower() in seen:
            return (
                f"carried columns '{seen[name.lower()]}' and '{name}' do not differ, or only by "
                "case; name each once"
            )
        seen[name.lower()] = name
    return None


def canonical(kind: pa.DataType) -> pa.DataType:
    """The type as which values of `kind` are kept: one for all ways of storing the same values.

    Times with a zone are kept in UTC. A type that cannot be carried is returned as it is.
    """
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
        return canonical(kind.value_type)
    if pt.is_large_string(kind) or pt.is_string_view(kind) or isinstance(kind, pa.JsonType):
        return pa.string()
    if pt.is_large_binary(kind) or pt.is_binary_view(kind) or pt.is_fixed_size_binary(kind):
        return pa.binary()
    if pt.is_float16(kind):
        return pa.float32()
    if pt.is_date64(kind):
        return pa.date32()
    if pt.is_timestamp(kind):
        return pa.timestamp(kind.unit, "UTC" if kind.tz else None)
    if pt.is_decimal(kind):
        return _decimal(kind.precision, kind.scale) or kind
    if pt.is_map(kind):
        return pa.map_(canonical(kind.key_type), canonical(kind.item_type))
    if is_list(kind):
        return pa.list_(canonical(kind.value_type))
    if pt.is_struct(kind):
        return pa.struct([(field.name, canonical(field.type)) for field in kind])
    return kind


def is_list(kind: pa.DataType) -> bool:
    """Whether the values are lists; maps are not, nor list views: Arrow 26 casts them wrongly."""
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def can_carry(kind: pa.DataType) -> bool:
    """Whether JSON can say every value of a canonical type."""
    if pt.is_map(kind):
        return can_carry(kind.key_type) and can_carry(kind.item_type)
    if is_list(kind):
        return can_carry(kind.value_type)
    if pt.is_struct(kind):
        names = [field.name for field in kind]
        return 0 < len(names) == len(set(names)) and all(can_carry(field.type) for field in kind)
    return bool(
        pt.is_null(kind)
        or pt.is_boolean(kind)
        or pt.is_integer(kind)
        or pt.is_floating(kind)
        or pt.is_decimal(kind)
        or pt.is_string(kind)
        or pt.is_binary(kind)
        or pt.is_date(kind)
        or pt.is_time(kind)
        or pt.is_timestamp(kind)
        or pt.is_duration(kind)
        or isinstance(kind, pa.UuidType)
    )


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The canonical type that holds every value of both canonical types exactly, or None."""
    if one == other or pt.is_null(other):
        return one
    if pt.is_null(one):
        return other
    if pt.is_integer(one) and pt.is_integer(other):
        return _integer(one, other)
    if _is_number(one) and _is_number(other):
        return _floating(one, other)
    if pt.is_decimal(one) and pt.is_decimal(other):
        scale = max(one.scale, other.scale)
        return _decimal(
            max(one.precision - one.scale, other.precision - other.scale) + scale, scale
        )
    if pt.is_time(one) and pt.is_time(other):
        return max(one, other, key=_fineness)
    # Of these, nanoseconds end in the year 2262 (or after 292 years): they hold not every value.
    if pt.is_timestamp(one) and pt.is_timestamp(other) and one.tz == other.tz:
        return None if "ns" in (one.unit, other.unit) else max(one, other, key=_fineness)
    if pt.is_duration(one) and pt.is_duration(other):
        return None if "ns" in (one.unit, other.unit) else max(one, other, key=_fineness)
    if pt.is_map(one) and pt.is_map(other):
        key = common_type(one.key_type, other.key_type)
        item = common_type(one.item_type, other.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if is_list(one) and is_list(other):
        value = common_type(one.value_type, other.value_type)
        return None if value is None else pa.list_(value)
    if pt.is_struct(one) and pt.is_struct(other):
        return _struct(one, other)
    return None


def join_schemas(parts: Iterable[tuple[str, pa.Schema]], source: str) -> pa.Schema:
    """One schema for the columns of all `parts`, each with its name.

    Raises InputError, naming the first part that does not go with `source` or those before it.
    """
    joined: pa.Schema | None = None
    for where, schema in parts:
        if joined is None:
            joined = pa.schema([(field.name, canonical(field.type)) for field in schema])
            continue
        fields = []
        for before in joined:
            stored = schema.field(before.name).type
            common = common_type(before.type, canonical(stored))
            if common is None:
                raise InputError(
                    f"{where}: column '{before.name}' is {stored}, but {before.type} in {source}: "
                    "no type holds both exactly"
                )
            fields.append(pa.field(before.name, common))
        joined = pa.schema(fields)
    return pa.schema([]) if joined is None else joined


def check_carried(schema: pa.Schema, where: str) -> None:
    """Raise InputError for a column whose values an answer in JSON could not say."""
    for field in schema:
        if not can_carry(canonical(field.type)):
            raise InputError(
                f"{where}: column '{field.name}' is {field.type}, which cannot be carried; leave "
                "it out of source.columns, or cast it to a number, text, a time, or a list or "
                "struct of those"
            )


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of `schema` out of `batch`, cast to its types."""
    arrays = [
        batch.column(f.name)
        if batch.schema.field(f.name).type == f.type
        else batch.column(f.name).cast(f.type)
        for f in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def cast_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with the columns that `schema` names cast to its types; the others stay.

    Raises InputError where a value does not fit: a time beyond the years that a finer unit counts.
    """
    for field in schema:
        place = table.schema.get_field_index(field.name)
        values = table.column(place)
        if values.type == field.type:
            continue
        try:
            table = table.set_column(place, field, values.cast(field.type))
        except pa.ArrowInvalid as error:
            raise InputError(
                f"column '{field.name}' is {values.type} and becomes {field.type}, which does not "
                f"hold all its values: {error}"
            ) from None
    return table


def pack_schema(schema: pa.Schema) -> str:
    """A schema as text: an Arrow IPC message, base64."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def unpack_schema(text: str) -> pa.Schema:
    """What `pack_schema` packed. Raises ValueError for anything else."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind))


def _integer(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    signed = [k.bit_width for k in (one, other) if pt.is_signed_integer(k)]
    unsigned = [k.bit_width for k in (one, other) if pt.is_unsigned_integer(k)]
    if not signed or not unsigned:
        return one if one.bit_width > other.bit_width else other
    width = max(signed[0], 2 * unsigned[0])
    return None if width > 64 else pa.type_for_alias(f"int{width}")


def _floating(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    # The sign is not in the mantissa: a signed integer needs one bit less, or is a power of two.
    bits = max(
        (k.bit_width - pt.is_signed_integer(k) for k in (one, other) if pt.is_integer(k)),
        default=0,
    )
    width = max(k.bit_width for k in (one, other) if pt.is_floating(k))
    while _MANTISSA[width] < bits:
        width *= 2
        if width > 64:
            return None
    return pa.type_for_alias(f"float{width}")


def _decimal(precision: int, scale: int) -> pa.DataType | None:
    if precision > 76:
        return None
    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)


def _struct(one: pa.StructType, other: pa.StructType) -> pa.DataType | None:
    if [field.name for field in one] != [field.name for field in other]:
        return None
    pairs = zip(one, other, strict=True)
    kinds = [(a.name, common_type(a.type, b.type)) for a, b in pairs]
    return None if any(kind is None for _, kind in kinds) else pa.struct(kinds)


def _fineness(kind: pa.DataType) -> int:
    return ("s", "ms", "us", "ns").index(kind.unit)
