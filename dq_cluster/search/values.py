"""Carried values in JSON: docs/input.md has the table."""

import base64
from collections.abc import Callable
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from dq_cluster.index.columns import canonical, is_list

DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
"""Digits after the point of a second."""


def to_json(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values, each as None, bool, int, float, str, list, or dict.

    Nothing is rounded. A float that is not finite becomes None, which JSON has no number for.
    """
    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in to_json(chunk)]
    kind = canonical(column.type)
    if kind != column.type:
        column = column.cast(kind)
    if pt.is_map(kind):
        pairs = pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))
        lists = to_json(column.cast(pairs))
        return [None if v is None else [[p["key"], p["value"]] for p in v] for v in lists]
    if is_list(kind):
        values = iter(to_json(column.flatten()))
        sizes = pc.list_value_length(column).to_pylist()
        return [None if size is None else list(islice(values, size)) for size in sizes]
    if pt.is_struct(kind):
        names = [field.name for field in kind]
        rows = zip(*map(to_json, column.flatten()), strict=True)
        valid = column.is_valid().to_pylist()
        return [
            dict(zip(names, row, strict=True)) if there else None
            for row, there in zip(rows, valid, strict=True)
        ]
    return _leaves(column)


def _leaves(column: pa.Array) -> list[Any]:
    """`to_json` of values that have no parts."""
    kind = column.type
    if pt.is_floating(kind):
        return pc.if_else(pc.is_finite(column), column, None).to_pylist()
    if pt.is_null(kind) or pt.is_boolean(kind) or pt.is_integer(kind):
        return column.to_pylist()
    if pt.is_string(kind):
        try:
            return column.to_pylist()
        except UnicodeDecodeError:  # bytes that call themselves text
            raw = column.cast(pa.binary())
            return _each(raw, lambda value: value.decode("utf-8", "replace"))
    if pt.is_binary(kind):
        return _each(column, lambda value: base64.b64encode(value).decode())
    # Times by Arrow, not as Python's objects: those end in the year 9999, and at microseconds.
    if pt.is_date(kind) or pt.is_time(kind):
        return column.cast(pa.string()).to_pylist()
    if pt.is_timestamp(kind):
        return _each(column.cast(pa.string()), lambda text: text.replace(" ", "T", 1))
    if pt.is_duration(kind):
        return _each(column.view(pa.int64()), lambda steps: _duration(steps, kind.unit))
    if pt.is_decimal(kind):
        return _each(column, lambda value: format(value, "f"))
    return _each(column, str)


def _each(column: pa.Array, say: Callable[[Any], str]) -> list[str | None]:
    return [None if value is None else say(value) for value in column.to_pylist()]


def _duration(steps: int, unit: str) -> str:
    """ISO 8601, in seconds: -1500 ms are -PT1.500S."""
    digits = DIGITS[unit]
    whole, rest = divmod(abs(steps), 10**digits)
    return f"{'-' * (steps < 0)}PT{whole}{f'.{rest:0{digits}d}' if digits else ''}S"
