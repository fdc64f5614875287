"""Filters keep exactly the rows they describe, and statistics never rule out a row they keep."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.errors import InputError
from dq_cluster.index.manifest import ColumnStats, FileEntry
from dq_cluster.search.filters import parse_filter

COLUMNS = ("label", "name")
PYTHON: dict[str, Any] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "in": lambda a, b: a in b,
}
labels = st.lists(st.none() | st.integers(-5, 5), min_size=1, max_size=30)


@given(labels, st.sampled_from(list(PYTHON)), st.data())
def test_rows_and_statistics(values: list[int | None], operator: str, data: st.DataObject) -> None:
    number = st.integers(-7, 7)
    value = data.draw(st.lists(number, max_size=4) if operator == "in" else number)
    found = parse_filter({"label": {operator: value}}, COLUMNS)
    batch = pa.record_batch({"label": pa.array(values, pa.int64())})
    wanted = [v is not None and PYTHON[operator](v, value) for v in values]
    np.testing.assert_array_equal(found.mask(batch), wanted)
    known = [v for v in values if v is not None]
    if known:
        stats = {"label": ColumnStats(min=min(known), max=max(known))}
        entry = FileEntry(path="", rows=len(values), size=1, sha256="", stats=stats)
        assert found.may_match(entry) or not any(wanted)


def test_conditions_all_hold_and_a_plain_value_means_equality() -> None:
    batch = pa.record_batch({"label": [1, 2, 2, 3], "name": ["a", "a", "b", "b"]})
    found = parse_filter({"label": {"ge": 2}, "name": "b"}, COLUMNS)
    assert found.mask(batch).tolist() == [False, False, True, True]


def test_statistics_rule_out_files() -> None:
    entry = FileEntry(
        path="", rows=1, size=1, sha256="", stats={"label": ColumnStats(min=3, max=5)}
    )
    assert not parse_filter({"label": 2}, COLUMNS).may_match(entry)
    assert not parse_filter({"label": {"gt": 5}}, COLUMNS).may_match(entry)
    assert parse_filter({"label": {"gt": 4}}, COLUMNS).may_match(entry)
    assert parse_filter({"name": "x"}, COLUMNS).may_match(entry)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"colour": 1}, "carries no column 'colour'"),
        ({"label": {"like": 1}}, "operator 'like'"),
        ({"label": {"in": 3}}, "takes a list"),
        ({"label": None}, "compared with numbers"),
        ({"label": {"eq": {"a": 1}}}, "compared with numbers"),
    ],
)
def test_bad_filters_say_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_filter(spec, COLUMNS)


@pytest.mark.parametrize("spec", [{"label": "three"}, {"label": {"in": ["x"]}}])
def test_a_value_of_another_type_is_refused_not_ignored(spec: dict[str, Any]) -> None:
    batch = pa.record_batch({"label": [1, 2]})
    with pytest.raises(InputError, match="cannot be compared"):
        parse_filter(spec, COLUMNS).mask(batch)
