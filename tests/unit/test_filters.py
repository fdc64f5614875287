"""Filters keep exactly the rows they describe, and statistics never rule out a row they keep."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_cluster.errors import InputError
from dq_cluster.index.codefile import write_parquet
from dq_cluster.index.manifest import ColumnStats, FileEntry
from dq_cluster.index.statistics import column_stats
from dq_cluster.search.filters import parse_filter
from dq_cluster.search.values import to_json
from dq_cluster.storage import Storage

SCHEMA = pa.schema([("id", pa.int64()), ("label", pa.int64()), ("name", pa.string())])
PYTHON: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "in": lambda a, b: a in b,
}


@dataclass(frozen=True)
class Kind:
    """An ordered type: values a column may have, others to compare with, how those are written."""

    type: pa.DataType
    values: st.SearchStrategy[Any]
    asked: st.SearchStrategy[Any]
    written: Callable[[Any], Any] = lambda value: value


def integers(name: str) -> Kind:
    kind = pa.type_for_alias(name)
    info = np.iinfo(kind.to_pandas_dtype())
    values = st.integers(int(info.min), int(info.max)) | st.integers(0, 3)
    edges = st.sampled_from([info.min - 1, info.max + 1, 2**53 + 1, 10**400, 2.5, -0.0, 1e300])
    return Kind(kind, values, values | edges | st.floats(-4, 4))


floats = st.floats(width=32) | st.sampled_from([0.0, -0.0, math.inf, 2.0**53])
moments = st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)) | st.datetimes(
    datetime(2024, 1, 1), datetime(2024, 1, 1, 0, 0, 1)
)
decimals = st.decimals(-999, 999, places=2)
spans = st.timedeltas(timedelta(-9), timedelta(9)) | st.timedeltas(timedelta(0), timedelta(0, 1))


def seconds(value: timedelta) -> str:
    steps = value // timedelta(microseconds=1)
    return f"{'-' * (steps < 0)}PT{abs(steps) // 10**6}.{abs(steps) % 10**6:06d}S"


KINDS = {
    **{name: integers(name) for name in ("int8", "int16", "int32", "int64")},
    **{name: integers(name) for name in ("uint8", "uint16", "uint32", "uint64")},
    "float32": Kind(
        pa.float32(), floats, st.floats(allow_nan=False, allow_infinity=False) | st.integers()
    ),
    "float64": Kind(
        pa.float64(),
        floats | st.floats(),
        st.floats(allow_nan=False, allow_infinity=False)
        | st.integers()
        | st.sampled_from([2**53 + 1, 10**400, -(10**400), 0.1]),
    ),
    "bool": Kind(pa.bool_(), st.booleans(), st.booleans()),
    "string": Kind(pa.string(), st.text(max_size=3), st.text(max_size=3)),
    "decimal": Kind(pa.decimal128(5, 2), decimals, st.decimals(-2000, 2000, places=4), str),
    "date": Kind(pa.date32(), st.dates(), st.dates(), date.isoformat),
    "naive": Kind(pa.timestamp("us"), moments, moments, datetime.isoformat),
    "aware": Kind(
        pa.timestamp("us", "UTC"),
        moments.map(lambda value: value.replace(tzinfo=UTC)),
        moments.map(lambda value: value.replace(tzinfo=UTC)),
        datetime.isoformat,
    ),
    "ms": Kind(
        pa.timestamp("ms"),
        moments.map(lambda value: value.replace(microsecond=value.microsecond // 1000 * 1000)),
        moments,
        datetime.isoformat,
    ),
    "time": Kind(pa.time64("us"), st.times(), st.times(), time.isoformat),
    "duration": Kind(pa.duration("us"), spans, spans, seconds),
}


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=30)
@given(data=st.data(), operator=st.sampled_from(list(PYTHON)))
def test_rows_are_those_that_python_finds_and_statistics_keep_them(
    name: str, operator: str, data: st.DataObject
) -> None:
    kind = KINDS[name]
    values = data.draw(st.lists(st.none() | kind.values, min_size=1, max_size=12))
    # What is asked for is often among the values.
    one = kind.asked
    if known := [v for v in values if v is not None and v == v and abs_finite(v)]:
        one = one | st.sampled_from(known)
    asked = data.draw(st.lists(one, max_size=4) if operator == "in" else one)
    written = [kind.written(v) for v in asked] if operator == "in" else kind.written(asked)
    column = pa.array(values, kind.type)
    found = parse_filter({"x": {operator: written}}, pa.schema([("x", kind.type)]))
    stored = column.to_pylist()
    wanted = [v is not None and PYTHON[operator](v, asked) for v in stored]
    np.testing.assert_array_equal(found.mask(pa.record_batch({"x": column})), wanted)
    pq.write_table(pa.table({"x": column}), file := pa.BufferOutputStream())
    stats = column_stats(pq.read_metadata(pa.BufferReader(file.getvalue())), ["x"])
    entry = FileEntry.model_validate_json(entry_of(**stats).model_dump_json())  # as it is kept
    assert found.may_match(entry) or not any(wanted)


def abs_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=15)
@given(data=st.data())
def test_what_an_answer_says_finds_its_row(name: str, data: st.DataObject) -> None:
    kind = KINDS[name]
    value = data.draw(kind.values.filter(lambda v: v == v and abs_finite(v)))
    column = pa.array([value], kind.type)
    found = parse_filter({"x": to_json(column)[0]}, pa.schema([("x", kind.type)]))
    assert found.mask(pa.record_batch({"x": column})).tolist() == [True]


def keeps(kind: pa.DataType, values: list[Any], condition: Any) -> list[bool]:
    found = parse_filter({"x": condition}, pa.schema([("x", kind)]))
    return found.mask(pa.record_batch({"x": pa.array(values, kind)})).tolist()


def test_nothing_is_rounded() -> None:
    big = 2**53
    assert keeps(pa.int64(), [big, big + 1], float(big)) == [True, False]
    assert keeps(pa.int64(), [big, big + 1], big + 1) == [False, True]
    assert keeps(pa.int64(), [big, big + 1], str(big + 1)) == [False, True]
    assert keeps(pa.float64(), [big + 0.0, big + 2.0], {"gt": big + 1}) == [False, True]
    assert keeps(pa.uint64(), [2**64 - 1, 2**64 - 2], {"ge": 2**64 - 1}) == [True, False]
    assert keeps(pa.int32(), [1, 2], {"in": [1.5, 2, 2.0, 1000**9]}) == [False, True]
    assert keeps(pa.decimal128(5, 2), [Decimal("0.10"), Decimal("0.11")], 0.1) == [True, False]
    nanoseconds = pa.array([0, 1], pa.int64()).view(pa.timestamp("ns"))
    found = parse_filter(
        {"x": {"gt": "1970-01-01T00:00:00.000000000"}}, pa.schema([("x", pa.timestamp("ns"))])
    )
    assert found.mask(pa.record_batch({"x": nanoseconds})).tolist() == [False, True]


def test_what_the_type_cannot_have_matches_nothing_or_everything() -> None:
    values = [-128, 127, None]
    assert keeps(pa.int8(), values, 1000) == [False, False, False]
    assert keeps(pa.int8(), values, {"ne": 1000}) == [True, True, False]
    assert keeps(pa.int8(), values, {"lt": 1000}) == [True, True, False]
    assert keeps(pa.int8(), values, {"ge": -1000}) == [True, True, False]
    assert keeps(pa.int8(), values, {"gt": 1000}) == [False, False, False]
    assert keeps(pa.int8(), values, {"in": []}) == [False, False, False]


def test_nan_and_zero() -> None:
    values = [math.nan, -0.0, 0.0, None]
    assert keeps(pa.float64(), values, {"in": [0, 5]}) == [False, True, True, False]
    assert keeps(pa.float64(), values, {"ne": 5}) == [True, True, True, False]
    assert keeps(pa.float64(), values, {"lt": 5}) == [False, True, True, False]


@pytest.mark.parametrize("operator", PYTHON)
@pytest.mark.parametrize("value", [3, "x", True, 1.5])
def test_an_all_null_column_matches_nothing(operator: str, value: Any) -> None:
    condition = {operator: [value] if operator == "in" else value}
    assert keeps(pa.null(), [None, None], condition) == [False, False]


def test_moments_are_the_same_in_any_zone() -> None:
    kind = pa.timestamp("ms", "UTC")
    noon = datetime(2024, 1, 31, 12, tzinfo=UTC)
    for text in ("2024-01-31T12:00:00Z", "2024-01-31T13:00:00+01:00", "2024-01-31 06:30-05:30"):
        assert keeps(kind, [noon, noon + timedelta(0, 1)], text) == [True, False]
    assert keeps(pa.timestamp("s"), [datetime(2024, 1, 31)], "2024-01-31") == [True]


def test_values_that_python_has_but_json_has_not() -> None:
    assert keeps(pa.date32(), [date(2024, 1, 31)], date(2024, 1, 31)) == [True]
    assert keeps(pa.decimal128(5, 2), [Decimal("1.10")], Decimal("1.1")) == [True]


def test_conditions_all_hold_and_a_plain_value_means_equality() -> None:
    batch = pa.record_batch({"label": [1, 2, 2, 3], "name": ["a", "a", "b", "b"]})
    found = parse_filter({"label": {"ge": 2}, "name": "b"}, SCHEMA)
    assert found.mask(batch).tolist() == [False, False, True, True]


def test_filters_are_equal_only_if_they_mean_the_same() -> None:
    assert parse_filter({"label": 1}, SCHEMA) == parse_filter({"label": {"in": [1.0, 1]}}, SCHEMA)
    assert parse_filter({"label": 1}, SCHEMA) != parse_filter({"label": {"ne": 1}}, SCHEMA)
    assert parse_filter({"label": 1}, SCHEMA) != parse_filter({"id": 1}, SCHEMA)
    flags = pa.schema([("x", pa.bool_())])
    assert parse_filter({"x": True}, flags) != parse_filter({"x": False}, flags)
    with pytest.raises(InputError):  # and nothing means 1 in one column and true in another
        parse_filter({"label": True}, SCHEMA)
    with pytest.raises(InputError):
        parse_filter({"x": 1}, flags)


def entry_of(**stats: ColumnStats) -> FileEntry:
    return FileEntry(path="", rows=1, size=1, sha256="", stats=stats)


def test_statistics_rule_out_files() -> None:
    entry = entry_of(label=ColumnStats(min=3, max=5))
    assert not parse_filter({"label": 2}, SCHEMA).may_match(entry)
    assert not parse_filter({"label": {"gt": 5}}, SCHEMA).may_match(entry)
    assert not parse_filter({"label": {"in": [1, 9]}}, SCHEMA).may_match(entry)
    assert parse_filter({"label": {"gt": 4}}, SCHEMA).may_match(entry)
    assert parse_filter({"name": "x"}, SCHEMA).may_match(entry)


def test_statistics_of_other_values_rule_out_nothing() -> None:
    # Parquet keeps a duration as a plain number, in the unit of its file.
    schema = pa.schema([("x", pa.duration("us"))])
    assert parse_filter({"x": 5}, schema).may_match(entry_of(x=ColumnStats(min=5, max=5)))
    assert parse_filter({"label": 5}, SCHEMA).may_match(entry_of(label=ColumnStats()))
    assert parse_filter({"name": "x"}, SCHEMA).may_match(entry_of(name=ColumnStats(min=1, max=2)))


def test_a_file_whose_statistics_do_not_bound_all_its_values_has_none(tmp_path: Path) -> None:
    storage, group = Storage(str(tmp_path)), 1 << 20
    long = pa.array(["a"] * group + ["z" * 5000])  # too long for Parquet's statistics
    broken = pa.array([b"\xff"] * 3).view(pa.string())
    for column in (long, broken):
        entry = write_parquet(storage, "x.parquet", pa.table({"x": column}), stats=["x"])
        assert entry.stats == {}
    nulls = pa.array([1] * group + [None], pa.int64())
    entry = write_parquet(storage, "x.parquet", pa.table({"x": nulls}), stats=["x"])
    assert entry.stats == {"x": ColumnStats(min=1, max=1, nulls=1)}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"colour": 1}, "carries no column 'colour'; it has id, label, name"),
        ({"label": {"like": 1}}, "operator 'like'"),
        ({"label": {}}, "no operator"),
        ({"label": {"in": 3}}, "takes a list"),
        ({"label": {"in": [1] * 1001}}, "at most 1000"),
        ({"label": None}, "is int64; it is compared with numbers, not None"),
        ({"label": {"eq": {"a": 1}}}, "compared with numbers"),
        ({"label": "three"}, "compared with numbers, not 'three'"),
        ({"label": "3"}, "compared with numbers, not '3'"),
        ({"label": {"in": [1, "x"]}}, "not 'x'"),
        ({"label": math.nan}, "must be finite"),
        ({"label": math.inf}, "must be finite"),
        ({"name": 3}, "is string; it is compared with text, not 3"),
        ({"name": "\ud800"}, "compared with text"),
        ({"id": "x" * 1000}, r"\.\.\."),
        ({"name": 10**5000}, "not a number of thousands of digits"),
    ],
)
def test_bad_filters_say_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_filter(spec, SCHEMA)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (pa.bool_(), 1, "compared with true or false, not 1"),
        (pa.float64(), True, "compared with numbers"),
        (pa.date32(), 5, "a date, as in"),
        (pa.date32(), "2024-02-31", "day is out of range"),
        (pa.timestamp("us"), 5, "without a zone"),
        (pa.timestamp("us"), "2024-01-31T12:00:00Z", "it has a zone"),
        (pa.timestamp("us", "UTC"), "2024-01-31T12:00:00", "its zone is missing"),
        (pa.timestamp("us", "UTC"), "0001-01-01T00:00:00+99:00", "with a zone"),
        (pa.time64("us"), "25:00", "time of day"),
        (pa.duration("s"), "1 hour", "seconds"),
        (pa.decimal128(5, 2), "1e9999999", "numbers, or text"),
        (pa.decimal128(5, 2), "٣", "numbers, or text"),
        (pa.null(), None, "not None"),
        (pa.list_(pa.int64()), 5, "cannot be compared"),
        (pa.struct([("a", pa.int64())]), 5, "cannot be compared"),
        (pa.map_(pa.string(), pa.int64()), 5, "cannot be compared"),
        (pa.binary(), "AA==", "cannot be compared"),
    ],
)
def test_values_of_another_type_are_refused(kind: pa.DataType, value: Any, message: str) -> None:
    for condition in ({"eq": value}, {"in": [value]}):
        with pytest.raises(InputError, match=f"column 'x' is .*{message}"):
            parse_filter({"x": condition}, pa.schema([("x", kind)]))
