"""What columns made by others hold, and how it is read: as ids, encoded images, vectors, text.

Each function takes the Arrow type of a column and returns how it is read, or raises InputError
saying what is wrong with the type and what to convert it to. docs/input.md has them as a table.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dq_cluster.errors import InputError
from dq_cluster.index.ids import narrowed

_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


@dataclass(frozen=True)
class Reading:
    """How a column is read: `kind` is the type that `read` gives.

    Ids are the exception: those of an int64 reading come as uint64 where one needs it.
    `read` raises pa.ArrowInvalid for a value that cannot be converted.
    """

    kind: pa.DataType
    read: Callable[[pa.Array], pa.Array]


def as_ids(kind: pa.DataType) -> Reading:
    """Whole numbers of any width as int64 or uint64, text as string."""
    kind, plain = _plain(kind)
    if pa.types.is_uint64(kind):
        return Reading(pa.int64(), lambda column: narrowed(plain(column)))
    if pa.types.is_integer(kind):
        return Reading(pa.int64(), lambda column: plain(column).cast(pa.int64()))
    if pa.types.is_decimal(kind) and kind.scale == 0:
        return Reading(pa.int64(), lambda column: _whole_numbers(plain(column)))
    if _is(kind, _TEXT):
        return as_text(kind, plain)
    if isinstance(kind, pa.UuidType):
        return Reading(pa.string(), lambda column: _uuids(plain(column)))
    hints = [
        (pa.types.is_null, "every value is null"),
        (pa.types.is_floating, "floats do not name an image exactly; write them as int64 or text"),
        (pa.types.is_decimal, "only decimals of scale 0 are whole; write them as text"),
        (lambda kind: _is(kind, _BYTES), "write the bytes as text, for example in hexadecimal"),
        (pa.types.is_struct, f"name one of its fields: {_fields(kind)}"),
    ]
    raise InputError(f"holds {kind}, not integers or strings: {_hint(kind, hints)}")


def as_images(kind: pa.DataType) -> Reading:
    """Encoded images: bytes, lists of bytes, and structs with a field `bytes` (Hugging Face)."""
    kind, plain = _plain(kind)
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = as_images(kind.field("bytes").type)
        return Reading(inner.kind, lambda column: inner.read(pc.struct_field(column, "bytes")))
    if _is(kind, _BYTES):
        to = kind if kind in (pa.binary(), pa.large_binary()) else pa.large_binary()
        return Reading(to, lambda column: plain(column).cast(to))
    if _is(kind, _LISTS) and kind.value_type in (pa.uint8(), pa.int8()):
        return Reading(pa.large_binary(), lambda column: _joined_bytes(plain(column)))
    hints = [
        (lambda kind: _is(kind, _TEXT), "decode base64 first; for paths use kind inventory"),
        (lambda kind: _is(kind, _LISTS), "write one row per encoded image"),
        (pa.types.is_struct, f"name one of its fields: {_fields(kind)}"),
    ]
    raise InputError(f"holds {kind}, not bytes of images: {_hint(kind, hints)}")


def as_vectors(kind: pa.DataType) -> Reading:
    """Lists of numbers, of a fixed size or not, as lists of float16 or float32."""
    kind, plain = _plain(kind)
    if _is_vector(kind):
        value = kind.value_type if pa.types.is_float16(kind.value_type) else pa.float32()
        if pa.types.is_fixed_size_list(kind):
            to = pa.list_(value, kind.list_size)
            return Reading(to, lambda column: plain(column).cast(to))
        to = pa.large_list(value)
        return Reading(to, lambda column: _large_list(plain(column), value))
    hints = [
        (lambda kind: _is(kind, _BYTES), "write each vector as a list of float32"),
        (lambda kind: _is(kind, _LISTS), "write each vector as one flat list of float32"),
        (pa.types.is_floating, "write all numbers of a vector into one list column"),
        (pa.types.is_struct, f"name one of its fields: {_fields(kind)}"),
    ]
    raise InputError(f"holds {kind}, not lists of floats: {_hint(kind, hints)}")


def as_text(kind: pa.DataType, plain: Callable[[pa.Array], pa.Array] | None = None) -> Reading:
    """Text as string; it must be UTF-8."""
    if plain is None:
        kind, plain = _plain(kind)
    if not _is(kind, _TEXT):
        raise InputError(f"holds {kind}, not text")
    # By way of bytes: Arrow looks at text that it read from Parquet only when it makes it.
    return Reading(
        pa.string(), lambda column: plain(column).cast(pa.large_binary()).cast(pa.string())
    )


def carried(kind: pa.DataType) -> Reading:
    """What is only carried along stays as it is, but that dictionaries are decoded."""
    if may_be_text(kind):
        return as_text(kind)
    if not pa.types.is_dictionary(kind):
        return Reading(kind, lambda column: column)
    return Reading(kind.value_type, lambda column: column.cast(kind.value_type))


def may_be_vectors(kind: pa.DataType) -> bool:
    """Whether a column of this type is likely one of features."""
    kind, _ = _plain(kind)
    return _is_vector(kind) and pa.types.is_floating(kind.value_type)


def may_be_images(kind: pa.DataType) -> bool:
    """Whether a column of this type is likely one of encoded images."""
    kind, _ = _plain(kind)
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is(kind.field(place).type, _BYTES)
    return _is(kind, _BYTES) and not pa.types.is_fixed_size_binary(kind)


def may_be_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    return _is(_plain(kind)[0], _TEXT)


def matrix(column: pa.Array, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of `column` (see `as_vectors`) that have `dim` numbers, null or finite or not:
    (kept, dim), and which of its rows those are, (rows,) bool. A null among them is NaN."""
    fits = pc.equal(pc.list_value_length(column), dim).fill_null(False)
    kept = fits.to_numpy(zero_copy_only=False).copy()
    whole = column if kept.all() else column.filter(fits)
    values = pc.list_flatten(whole).to_numpy(zero_copy_only=False)
    return values.reshape(int(kept.sum()), dim), kept


def _plain(kind: pa.DataType) -> tuple[pa.DataType, Callable[[pa.Array], pa.Array]]:
    """The type below dictionaries and extensions, and how to get at its values.

    A tensor of any shape is a list of its numbers, and so are Ray's own columns of tensors.
    """
    if pa.types.is_dictionary(kind):
        inner, read = _plain(kind.value_type)
        return inner, lambda column: read(column.dictionary_decode())
    if isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.UuidType):
        inner, read = _plain(kind.storage_type)
        return inner, lambda column: read(column.storage)
    return kind, lambda column: column


def _is(kind: pa.DataType, tests: Sequence[Callable[[pa.DataType], bool]]) -> bool:
    return any(test(kind) for test in tests)


def _is_vector(kind: pa.DataType) -> bool:
    if not _is(kind, _LISTS):
        return False
    return pa.types.is_floating(kind.value_type) or kind.value_type in (pa.int8(), pa.uint8())


def _hint(kind: pa.DataType, hints: Sequence[tuple[Callable[[pa.DataType], bool], str]]) -> str:
    return next((hint for fits, hint in hints if fits(kind)), "name another column")


def _fields(kind: pa.DataType) -> str:
    if not pa.types.is_struct(kind):
        return ""
    return ", ".join(f"<column>.{field.name}" for field in kind)


def _whole_numbers(column: pa.Array) -> pa.Array:
    wide = column.cast(pa.decimal256(76, 0))  # Arrow cannot convert the narrow ones to integers
    try:
        return wide.cast(pa.int64())
    except pa.ArrowInvalid:
        return wide.cast(pa.uint64())


def _uuids(column: pa.Array) -> pa.Array:
    values = column.storage.to_pylist()
    return pa.array((v if v is None else str(uuid.UUID(bytes=v)) for v in values), pa.string())


def _joined_bytes(column: pa.Array) -> pa.Array:
    """Lists of bytes as binary, in the layout that both share."""
    lists = _large_list(column, column.type.value_type)
    values = lists.values
    if values.null_count:
        raise pa.ArrowInvalid("a list of bytes has a null in it")
    data = values.buffers()[1].slice(values.offset, len(values))
    valid = lists.is_valid().buffers()[1]
    return pa.Array.from_buffers(
        pa.large_binary(), len(lists), [valid, lists.offsets.buffers()[1], data]
    )


def _large_list(column: pa.Array, value: pa.DataType) -> pa.Array:
    """Lists of any layout as large_list, without what lies between and behind them."""
    lengths = pc.list_value_length(column)
    ends = np.cumsum(lengths.fill_null(0).to_numpy().astype(np.int64), dtype=np.int64)
    offsets = pa.array(np.concatenate([np.zeros(1, np.int64), ends]))
    values = pc.list_flatten(column).cast(value)
    mask = pc.is_null(lengths) if lengths.null_count else None
    return pa.LargeListArray.from_arrays(offsets, values, mask=mask)
