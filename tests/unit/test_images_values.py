"""The table of docs/input.md, row by row; and any column is read as what it holds."""

import re
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_cluster.errors import InputError
from dq_cluster.images.columns import column_of, type_of
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.sources import open_source
from dq_cluster.images.values import as_ids, as_images, as_vectors, matrix

DOCS = Path(__file__).parents[2] / "docs" / "input.md"
BIG = 2**63 + 5
HALVES = [[0.5, -2.0], None, [1.0, 4.0]]
BYTES = [b"\x01\x02", None, b"\xff\xfe"]
UUIDS = [uuid.UUID(int=7), None, uuid.UUID(int=2**100)]


def lists(build: Any, value: pa.DataType, values: Any = HALVES) -> pa.Array:
    return pa.array(values, build(value))


def fixed(value: pa.DataType) -> pa.DataType:
    return pa.list_(value, 2)


def ray_tensor() -> pa.Array:
    """What Ray's columns of tensors are to a reader without Ray."""
    name = "ray.data.arrow_tensor_v2"

    class Tensor(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.large_list(pa.float32()), name)

        def __arrow_ext_serialize__(self) -> bytes:
            return b"[2]"

    return pa.ExtensionArray.from_storage(Tensor(), lists(pa.large_list, pa.float32()))


def decimals(kind: pa.DataType, *values: Any) -> tuple[pa.Array, list[Any]]:
    return pa.array([Decimal(v) if v is not None else None for v in values], kind), list(values)


def plain(kind: pa.DataType, values: list[Any]) -> tuple[pa.Array, list[Any]]:
    return pa.array(values, kind), values


# Every type of the table: an array of it, and the values that it means.
EXAMPLES: dict[str, tuple[pa.Array, list[Any]]] = {
    **{f"int{n}": plain(getattr(pa, f"int{n}")(), [-3, None, 7]) for n in (8, 16, 32, 64)},
    **{f"uint{n}": plain(getattr(pa, f"uint{n}")(), [3, None, 7]) for n in (8, 16, 32)},
    "uint64": plain(pa.uint64(), [3, None, BIG]),
    "decimal32(9, 0)": decimals(pa.decimal32(9, 0), 3, None, -7),
    "decimal128(20, 0)": decimals(pa.decimal128(20, 0), 3, None, BIG),
    "decimal256(60, 0)": decimals(pa.decimal256(60, 0), 3, None, BIG),
    "decimal128(20, 2)": decimals(pa.decimal128(20, 2), "0.25"),
    "string": plain(pa.string(), ["é", None, ""]),
    "large_string": plain(pa.large_string(), ["é", None, ""]),
    "string_view": plain(pa.string_view(), ["é", None, "a text of more than twelve bytes"]),
    "dictionary of string": (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
    "dictionary of uint64": (
        pa.array([1, None, BIG], pa.uint64()).dictionary_encode(),
        [1, None, BIG],
    ),
    "uuid": (
        pa.array([u and u.bytes for u in UUIDS], pa.uuid()),
        [u and str(u) for u in UUIDS],
    ),
    "binary": plain(pa.binary(), BYTES),
    "large_binary": plain(pa.large_binary(), BYTES),
    "binary_view": plain(pa.binary_view(), BYTES),
    "fixed_size_binary": plain(pa.binary(2), BYTES),
    "struct with bytes": (
        pa.array([{"bytes": BYTES[0]}, None, {"bytes": BYTES[2]}]),
        BYTES,
    ),
    "struct with bytes and path": (
        pa.array([{"bytes": BYTES[0], "path": None}, {"path": "p"}, {"bytes": BYTES[2]}]),
        BYTES,
    ),
    "list of uint8": (lists(pa.list_, pa.uint8(), [[1, 2], None, [255, 254]]), BYTES),
    "list of int8": (lists(pa.list_, pa.int8(), [[1, 2], None, [-1, -2]]), BYTES),
    "fixed_size_list of uint8": (lists(fixed, pa.uint8(), [[1, 2], None, [255, 254]]), BYTES),
    **{
        f"{name} of float{bits}": (lists(build, value), HALVES)
        for bits, value in ((16, pa.float16()), (32, pa.float32()), (64, pa.float64()))
        for name, build in (
            ("list", pa.list_),
            ("large_list", pa.large_list),
            ("fixed_size_list", fixed),
        )
        if (name, bits) != ("large_list", 16)
    },
    "list_view of float32": (lists(pa.list_view, pa.float32()), HALVES),
    "large_list_view of float32": (lists(pa.large_list_view, pa.float32()), HALVES),
    "arrow.fixed_shape_tensor": (
        pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.float32(), [2]), lists(fixed, pa.float32())
        ),
        HALVES,
    ),
    "ray.data.arrow_tensor_v2": (ray_tensor(), HALVES),
    "float16": plain(pa.float16(), [1.5]),
    "float32": plain(pa.float32(), [1.5]),
    "float64": plain(pa.float64(), [1.5]),
    "bool": plain(pa.bool_(), [True]),
    "date32": plain(pa.date32(), [0]),
    "timestamp": plain(pa.timestamp("us"), [0]),
    "null": plain(pa.null(), [None]),
    "struct of others": plain(pa.struct([("a", pa.int64())]), [{"a": 1}]),
    "list of int64": plain(pa.list_(pa.int64()), [[1]]),
    "list of string": plain(pa.list_(pa.string()), [["a"]]),
    "list of binary": plain(pa.list_(pa.binary()), [[b"a"]]),
    "list of lists": plain(pa.list_(pa.list_(pa.float32())), [[[0.5]]]),
}
ROLES = {"ids": as_ids, "images": as_images, "features": as_vectors}
UNUSABLE = "–"


def documented() -> list[tuple[str, str, str]]:
    """(type, role, how it is read) of every cell of the table."""
    section = DOCS.read_text().partition("## Parquet and features")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    return [
        (name, role, cell)
        for row in rows
        for name in re.findall(r"`([^`]+)`", row[0])
        for role, cell in zip(ROLES, row[1:], strict=True)
    ]


def test_every_type_of_the_table_has_an_example() -> None:
    assert sorted({name for name, _, _ in documented()}) == sorted(EXAMPLES)


@pytest.mark.parametrize(("name", "role", "cell"), documented())
def test_the_table_tells_how_a_type_is_read(
    tmp_path: Path, name: str, role: str, cell: str
) -> None:
    array, meant = EXAMPLES[name]
    table = pa.table({"a": array})
    pq.write_table(table, tmp_path / "a.parquet")
    (stored,) = pq.ParquetFile(tmp_path / "a.parquet").iter_batches()
    for column in (array, array.slice(0), column_of(pa.Table.from_batches([stored]), "a")):
        if cell == UNUSABLE:
            with pytest.raises(InputError, match=r"^holds .*, not "):
                ROLES[role](column.type)
            continue
        reading = ROLES[role](column.type)
        for start in range(len(column)):
            found = reading.read(column.slice(start))
            assert found.to_pylist() == expected(role, column, meant)[start:]
            found.validate(full=True)
            if role == "ids":
                wide = any(isinstance(v, int) and v >= 2**63 for v in found.to_pylist())
                assert str(found.type) == ("uint64" if wide else str(reading.kind))
                assert str(found.type) in cell.split(" or ")
            else:
                assert found.type == reading.kind
                inner = "bytes" if role == "images" else numpy_name(found.type.value_type)
                assert inner == cell


def expected(role: str, column: pa.Array, meant: list[Any]) -> list[Any]:
    """Bytes are features, too, where they are lists of numbers."""
    if role == "features" and meant is BYTES:
        return [v and [float(n) for n in v] for v in column.to_pylist()]
    return meant


def numpy_name(kind: pa.DataType) -> str:
    return np.dtype(kind.to_pandas_dtype()).name


WHOLE = [
    pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(),
    pa.uint64(), pa.decimal128(19, 0), pa.decimal256(40, 0),
]  # fmt: skip


def bounds(kind: pa.DataType) -> tuple[int, int]:
    if pa.types.is_decimal(kind):
        return -(2**63) + 1, 2**63 - 1
    bits = kind.bit_width
    return (0, 2**bits - 1) if "u" in str(kind) else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@settings(max_examples=150)
@given(st.data())
def test_no_whole_number_changes(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(WHOLE))
    values = data.draw(st.lists(st.none() | st.integers(*bounds(kind)), max_size=8))
    if pa.types.is_decimal(kind):
        array = pa.array([v if v is None else Decimal(v) for v in values], kind)
    else:
        array = pa.array(values, kind)
    if data.draw(st.booleans()) and not pa.types.is_decimal(kind):
        array = array.dictionary_encode()
    start = data.draw(st.integers(0, len(values)))
    assert as_ids(array.type).read(array.slice(start)).to_pylist() == values[start:]


WIDTHS: list[Literal[16, 32, 64]] = [16, 32, 64]
LISTS = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view, fixed]


@settings(max_examples=150)
@given(st.data())
def test_a_vector_is_rounded_to_float32_at_most(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from(WIDTHS))
    build = data.draw(st.sampled_from(LISTS))
    size = st.just(2) if build is fixed else st.integers(0, 4)
    numbers = st.none() | st.floats(width=bits)
    rows = data.draw(
        st.lists(st.none() | size.flatmap(lambda n: st.lists(numbers, min_size=n, max_size=n)))
    )
    array = pa.array(
        [
            row and [v if v is None else np.dtype(f"f{bits // 8}").type(v) for v in row]
            for row in rows
        ],
        build({16: pa.float16(), 32: pa.float32(), 64: pa.float64()}[bits]),
    )
    start = data.draw(st.integers(0, len(rows)))
    column = as_vectors(array.type).read(array.slice(start))
    vectors, fits = matrix(column, 2)
    wanted = [row is not None and len(row) == 2 for row in rows[start:]]
    assert fits.tolist() == wanted
    with np.errstate(over="ignore"):
        kept = [
            [np.nan if v is None else np.float32(v) for v in row]
            for row in rows[start:]
            if row is not None and len(row) == 2
        ]
    np.testing.assert_array_equal(vectors, np.array(kept, np.float32).reshape(-1, 2))


@settings(max_examples=60)
@given(st.lists(st.none() | st.binary(max_size=6), max_size=6), st.sampled_from(LISTS[:4]))
def test_lists_of_bytes_are_bytes(values: list[bytes | None], build: Any) -> None:
    array = pa.array([v if v is None else list(v) for v in values], build(pa.uint8()))
    for start in range(len(values) + 1):
        read = as_images(array.type).read(array.slice(start))
        read.validate(full=True)
        assert read.to_pylist() == values[start:]


def test_a_null_within_a_list_of_bytes_is_said(tmp_path: Path) -> None:
    column = pa.array([[1], [2, None]], pa.list_(pa.uint8()))
    pq.write_table(pa.table({"id": [1, 2], "image": column}), tmp_path / "a.parquet")
    source = open_source(SourceSettings(kind="parquet", uri=str(tmp_path)))
    with pytest.raises(InputError, match=r"a\.parquet row 1: the value of column 'image' .list"):
        list(source.read(source.units(), 10))


def test_names_with_dots() -> None:
    inner = pa.array([{"b": {"c": 2}, "x": 5}, None])
    table = pa.table({"a": inner, "a.b": [3, 4]})
    wanted = {"a.b": [3, 4], "a.b.c": [2, None], "a.x": [5, None], "a": inner.to_pylist()}
    for name, values in wanted.items():
        assert column_of(table, name).to_pylist() == values
    assert type_of(table.schema, "a.b.d") is type_of(table.schema, "b") is None
