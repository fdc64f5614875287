"""Types of carried columns: which can be carried, which go together, and what JSON says of them."""

import itertools
import json
import re
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.config import validate_settings
from dq_cluster.errors import ConfigError, InputError
from dq_cluster.images.config import SourceSettings
from dq_cluster.index.columns import (
    RESERVED,
    can_carry,
    canonical,
    cast_columns,
    check_carried,
    common_type,
    join_schemas,
    pack_schema,
    unpack_schema,
)
from dq_cluster.search.filters import parse_filter
from dq_cluster.search.values import to_json

NOON = datetime(2024, 1, 31, 12, tzinfo=UTC)
EXAMPLES: list[tuple[pa.DataType, Any, Any]] = [  # a type, a value of it, and that as JSON
    *((pa.type_for_alias(f"int{n}"), -(2 ** (n - 1)), -(2 ** (n - 1))) for n in (8, 16, 32, 64)),
    *((pa.type_for_alias(f"uint{n}"), 2**n - 1, 2**n - 1) for n in (8, 16, 32, 64)),
    (pa.float16(), 1.5, 1.5),
    (pa.float32(), 0.1, 0.10000000149011612),
    (pa.float64(), 0.1, 0.1),
    (pa.float64(), float("nan"), None),
    (pa.float64(), float("-inf"), None),
    (pa.bool_(), True, True),
    *((kind, "é\n", "é\n") for kind in (pa.string(), pa.large_string(), pa.string_view())),
    (pa.dictionary(pa.int8(), pa.string()), "x", "x"),
    (pa.null(), None, None),
    (pa.date32(), date(1, 1, 1), "0001-01-01"),
    (pa.date64(), date(2024, 1, 31), "2024-01-31"),
    (pa.timestamp("s"), datetime(1969, 12, 31), "1969-12-31T00:00:00"),
    (pa.timestamp("ms"), datetime(9999, 1, 1), "9999-01-01T00:00:00.000"),
    (pa.timestamp("ns"), datetime(2024, 1, 1), "2024-01-01T00:00:00.000000000"),
    (pa.timestamp("us", "UTC"), NOON, "2024-01-31T12:00:00.000000Z"),
    (pa.timestamp("us", "Asia/Kolkata"), NOON, "2024-01-31T12:00:00.000000Z"),
    (pa.time32("s"), time(23, 59, 59), "23:59:59"),
    (pa.time64("us"), time(0, 0, 0, 1), "00:00:00.000001"),
    (pa.duration("s"), timedelta(1), "PT86400S"),
    (pa.duration("ms"), timedelta(seconds=-1.5), "-PT1.500S"),
    (pa.decimal128(5, 2), Decimal("1.10"), "1.10"),
    (pa.decimal256(60, 20), Decimal("1e-10"), "0.00000000010000000000"),
    *((kind, b"\x00\xff", "AP8=") for kind in (pa.binary(), pa.large_binary(), pa.binary(2))),
    (pa.list_(pa.int64()), [1, None], [1, None]),
    (pa.large_list(pa.date32()), [date(2024, 1, 31)], ["2024-01-31"]),
    (pa.list_(pa.float64(), 2), [1.0, float("inf")], [1.0, None]),
    (pa.list_(pa.list_(pa.bool_())), [[True], None, []], [[True], None, []]),
    (pa.struct([("a", pa.int8()), ("b", pa.date32())]), {"a": 1, "b": None}, {"a": 1, "b": None}),
    (pa.map_(pa.string(), pa.decimal128(3, 1)), [("k", Decimal("1.0"))], [["k", "1.0"]]),
    (pa.uuid(), UUID(int=1).bytes, str(UUID(int=1))),
    (pa.json_(), '{"a": 1}', '{"a": 1}'),
]


@pytest.mark.parametrize(("kind", "value", "wanted"), EXAMPLES, ids=lambda value: str(value))
def test_json_says_every_value(kind: pa.DataType, value: Any, wanted: Any) -> None:
    assert can_carry(canonical(kind))
    values = [None, value, None, value]
    column = (
        pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
        if isinstance(kind, pa.BaseExtensionType)
        else pa.array(values, kind)
    )
    expected = [None, wanted, None, wanted]
    assert to_json(column) == expected
    assert to_json(column.slice(1, 2)) == expected[1:3]
    assert json.loads(json.dumps(to_json(column), allow_nan=False)) == expected
    pq.write_table(pa.table({"x": column}), file := pa.BufferOutputStream())
    stored = pq.read_table(pa.BufferReader(file.getvalue())).column("x")
    again = cast_columns(pa.table({"x": stored}), pa.schema([("x", canonical(stored.type))]))
    values = to_json(again.column("x"))
    if kind in (pa.timestamp("s"), pa.time32("s")):  # Parquet begins at milliseconds
        values = [value and value.removesuffix(".000") for value in values]
    assert values == expected


@pytest.mark.parametrize(
    "kind",
    [
        pa.month_day_nano_interval(),
        pa.struct([]),
        pa.struct([("a", pa.int8()), ("a", pa.int8())]),
        pa.dense_union([pa.field("a", pa.int8())]),
        pa.list_(pa.month_day_nano_interval()),
        pa.list_view(pa.int64()),
        pa.opaque(pa.binary(), "x", "y"),
        pa.fixed_shape_tensor(pa.float32(), [2]),
    ],
    ids=str,
)
def test_what_json_cannot_say_is_refused(kind: pa.DataType) -> None:
    with pytest.raises(InputError, match=r"a\.parquet: column 'x' is .* cannot be carried; leave"):
        check_carried(pa.schema([("x", kind)]), "a.parquet")


def test_values_beyond_what_python_has_are_no_stack() -> None:
    far = pa.array([2**62, -(2**62)], pa.int64())
    for kind in (pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("us", "Mars/Phobos")):
        assert all(isinstance(value, str) for value in to_json(far.view(kind)))
    assert len(to_json(pa.array([2**31 - 1], pa.int32()).view(pa.date32()))) == 1
    broken = pa.array([b"a\xff", None]).view(pa.string())
    assert to_json(broken) == ["a\ufffd", None]
    assert to_json(pa.chunked_array([], pa.int64())) == []


KINDS = list(dict.fromkeys(canonical(kind) for kind, _, _ in EXAMPLES))


@pytest.mark.parametrize(("one", "other"), list(itertools.product(KINDS, KINDS)), ids=str)
def test_a_common_type_holds_the_values_of_both(one: pa.DataType, other: pa.DataType) -> None:
    common = common_type(one, other)
    assert common == common_type(other, one)
    if one == other:
        assert common == one
    if common is None:
        return
    assert canonical(common) == common
    for kind, value, _ in EXAMPLES:
        if canonical(kind) not in (one, other) or isinstance(kind, pa.BaseExtensionType):
            continue
        column = pa.array([value, None], kind)
        if value != value:
            continue
        table = cast_columns(pa.table({"x": column}), pa.schema([("x", common)]))
        assert table.column("x").to_pylist() == column.cast(canonical(kind)).to_pylist()


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ("int32", "int64", "int64"),
        ("int8", "uint8", "int16"),
        ("uint32", "int8", "int64"),
        ("uint64", "int8", None),
        ("int16", "float32", "float32"),
        ("int32", "float32", "float64"),
        ("uint32", "float64", "float64"),
        ("int64", "float64", None),
        ("float32", "float64", "float64"),
        ("null", "string", "string"),
        ("int64", "string", None),
        ("bool", "int8", None),
        ("date32", "timestamp[us]", None),
        ("timestamp[ms]", "timestamp[us]", "timestamp[us]"),
        ("timestamp[us]", "timestamp[ns]", None),
    ],
)
def test_which_types_go_together(one: str, other: str, wanted: str | None) -> None:
    kinds = pa.type_for_alias(one), pa.type_for_alias(other)
    assert common_type(*kinds) == (None if wanted is None else pa.type_for_alias(wanted))


def test_nested_types_go_together_by_their_parts() -> None:
    def kinds(number: pa.DataType) -> list[pa.DataType]:
        return [
            pa.list_(number),
            pa.struct([("a", number), ("b", pa.string())]),
            pa.map_(pa.string(), number),
        ]

    for small, large, text in zip(*map(kinds, (pa.int8(), pa.int64(), pa.string())), strict=True):
        assert common_type(small, large) == large
        assert common_type(small, text) is None
    assert common_type(pa.struct([("a", pa.int8())]), pa.struct([("b", pa.int8())])) is None
    assert common_type(pa.decimal128(5, 2), pa.decimal128(4, 3)) == pa.decimal128(6, 3)
    assert common_type(pa.decimal256(76, 0), pa.decimal256(76, 9)) is None


def test_the_first_file_that_does_not_go_with_the_others_is_named() -> None:
    def part(kind: pa.DataType) -> pa.Schema:
        return pa.schema([("x", kind)])

    parts = [("a", part(pa.null())), ("b", part(pa.int8())), ("c", part(pa.int64()))]
    assert join_schemas(parts, "") == part(pa.int64())
    with pytest.raises(InputError, match=r"^d: column 'x' is large_string, but int64 in these"):
        join_schemas([*parts, ("d", part(pa.large_string()))], "these")


def test_a_value_that_does_not_fit_is_no_stack() -> None:
    table = pa.table({"x": pa.array([2**62], pa.int64()).view(pa.timestamp("ms"))})
    with pytest.raises(InputError, match="column 'x' is timestamp"):
        cast_columns(table, pa.schema([("x", pa.timestamp("us"))]))


def test_schemas_survive_as_text() -> None:
    schema = pa.schema([(f"{number}", kind) for number, kind in enumerate(KINDS)])
    assert unpack_schema(pack_schema(schema)) == schema
    with pytest.raises((ValueError, pa.ArrowException)):
        unpack_schema("nonsense")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        *(([name], "reserved name") for name in RESERVED),
        (["Score"], "reserved name"),
        ([""], "no name"),
        ([" label"], "no name"),
        (["a.b"], "dot"),
        (["label", "label"], "name each once"),
        (["label", "Label"], "'label' and 'Label' do not differ, or only by case"),
    ],
)
def test_names_that_cannot_be_carried(columns: list[str], message: str) -> None:
    source = {"kind": "parquet", "uri": "/x", "columns": columns}
    with pytest.raises(ConfigError, match=message):
        validate_settings(SourceSettings, source, "test")


def test_names_that_can_be_carried() -> None:
    names = ("uri", "label", "größe", "with space", "a/b", "select")
    assert SourceSettings(kind="parquet", uri="/x", columns=names).columns == names


DOCUMENTED: dict[str, tuple[pa.DataType, Any]] = {
    **{
        f"{sign}int{bits}": (pa.type_for_alias(f"{sign}int{bits}"), 7)
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    "float16": (pa.float16(), 0.5),
    "float32": (pa.float32(), 0.5),
    "float64": (pa.float64(), 0.5),
    "bool": (pa.bool_(), True),
    "string": (pa.string(), "cat"),
    "large_string": (pa.large_string(), "cat"),
    "string_view": (pa.string_view(), "cat"),
    "dictionary": (pa.dictionary(pa.int8(), pa.large_string()), "cat"),
    "json": (pa.json_(), "cat"),
    "date32": (pa.date32(), date(2024, 1, 31)),
    "date64": (pa.date64(), date(2024, 1, 31)),
    "timestamp without a zone": (pa.timestamp("us"), NOON.replace(tzinfo=None)),
    "timestamp with a zone": (pa.timestamp("us", "Europe/Paris"), NOON),
    "time32": (pa.time32("ms"), time(12, 30)),
    "time64": (pa.time64("us"), time(12, 30)),
    "duration": (pa.duration("ms"), timedelta(seconds=1.5)),
    "decimal32": (pa.decimal32(5, 2), Decimal("1.10")),
    "decimal64": (pa.decimal64(12, 2), Decimal("1.10")),
    "decimal128": (pa.decimal128(20, 2), Decimal("1.10")),
    "decimal256": (pa.decimal256(50, 2), Decimal("1.10")),
    "null": (pa.null(), None),
    "binary": (pa.binary(), b"\x00\xff"),
    "large_binary": (pa.large_binary(), b"\x00\xff"),
    "binary_view": (pa.binary_view(), b"\x00\xff"),
    "fixed_size_binary": (pa.binary(2), b"\x00\xff"),
    "list": (pa.list_(pa.int8()), [7, None]),
    "large_list": (pa.large_list(pa.int8()), [7, None]),
    "fixed_size_list": (pa.list_(pa.int8(), 2), [7, None]),
    "struct": (pa.struct([("a", pa.int8())]), {"a": 7}),
    "map": (pa.map_(pa.string(), pa.int8()), [("a", 7)]),
    "uuid": (pa.uuid(), UUID(int=1).bytes),
}
KEPT = {
    "the same": None,
    "in UTC": pa.timestamp("us", "UTC"),
    "a decimal": None,
    "`float32`": pa.float32(),
    "`string`": pa.string(),
    "`date32`": pa.date32(),
    "`binary`": pa.binary(),
    "`list`": pa.list_(pa.int8()),
}
OPERATORS = ("eq", "ne", "lt", "le", "gt", "ge", "in")


def documented() -> dict[str, list[str]]:
    """The table in docs/input.md: the cells of a row by each name of a type that it has."""
    text = (Path(__file__).parents[2] / "docs/input.md").read_text()
    table = text.split("| Arrow type |")[1].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    found = {}
    for first, *others in rows:
        names, more = re.findall(r"`([^`]+)`", first), first.rpartition("`")[2].strip()
        for name in names:
            found[f"{name} {more}" if more.startswith("with") else name] = others
    return found


def test_the_table_of_types_is_whole() -> None:
    assert documented().keys() == DOCUMENTED.keys()


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_table_of_types_is_true(name: str) -> None:
    kind, value = DOCUMENTED[name]
    kept, said, compared = documented()[name]
    wanted = KEPT[kept]
    assert can_carry(canonical(kind))
    if wanted is not None:
        assert canonical(kind) == wanted
    elif kept == "a decimal":
        assert pa.types.is_decimal(canonical(kind))
    else:
        assert canonical(kind) == kind
    if isinstance(kind, pa.BaseExtensionType):
        column = pa.ExtensionArray.from_storage(kind, pa.array([value], kind.storage_type))
    else:
        column = pa.array([value], kind)
    if name == "time64":
        said = said.replace('.000"', '.000000"')
    assert to_json(column) == [json.loads(re.findall(r"`([^`]+)`", said)[0])]
    schema = pa.schema([("x", canonical(kind))])
    rows = cast_columns(pa.table({"x": column}), schema).to_batches()[0]
    examples = [json.loads(text) for text in re.findall(r"`([^`]+)`", compared)]
    if compared == "matches nothing":
        examples = [7, "cat", True]
    for example, operator in itertools.product(examples, OPERATORS):
        asked = [example] if operator == "in" else example
        keeps = parse_filter({"x": {operator: asked}}, schema).mask(rows).tolist()
        assert keeps == [value is not None and operator in ("eq", "le", "ge", "in")]
    if not examples:
        with pytest.raises(InputError, match="cannot be compared"):
            parse_filter({"x": 7}, schema)


def test_the_reserved_names_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs/input.md").read_text()
    assert all(f"`{name}`" in text.split("### Names\n")[1] for name in RESERVED)
