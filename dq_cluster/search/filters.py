"""Filters on carried columns: `{"label": 3, "year": {"ge": 2000, "lt": 2010}}`.

All conditions must hold. A plain value means equality. A null satisfies no condition.

A filter is parsed against the types of the version. What a condition asks is brought to the
column's own values first (`search.operands`): a value that the column cannot have, 2.5 or 1000
among int8, becomes one that it can, or no value, so that nothing is rounded when rows are compared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dq_cluster.errors import InputError
from dq_cluster.index.manifest import ColumnStats, FileEntry
from dq_cluster.search.operands import Domain, domain_of

_COMPARE: dict[str, Callable[..., Any]] = {
    "lt": pc.less,
    "le": pc.less_equal,
    "gt": pc.greater,
    "ge": pc.greater_equal,
}
_OPERATORS = ("eq", "ne", *_COMPARE, "in")
_MAX_VALUES = 1000
_ANY, _NONE = ("not in", ()), ("in", ())


@dataclass(frozen=True)
class Condition:
    """`column operator value`: lt, le, gt, ge with one value of the column's domain, `in` and
    `not in` with a tuple of them."""

    column: str
    operator: str
    value: Any
    bounded: bool
    """Whether the statistics of a file are in the domain of the value."""


@dataclass(frozen=True)
class Filter:
    """Conditions that all must hold; hashable, so that equal questions can share a batch.

    Filters of one version are equal only if they mean the same: the values are of the columns'
    types, so that 1 and true never stand in the same place. `spec` is what the user wrote, for
    another process that reads the same version.
    """

    conditions: tuple[Condition, ...]
    spec: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def may_match(self, entry: FileEntry) -> bool:
        """False only when the file's statistics rule out every row."""
        return all(
            _possible(condition, entry.stats[condition.column])
            for condition in self.conditions
            if condition.bounded and condition.column in entry.stats
        )

    def split(self, column: str) -> tuple["Filter", "Filter"]:
        """The conditions on `column`, and those on others."""
        on = tuple(c for c in self.conditions if c.column == column)
        return Filter(on), Filter(tuple(c for c in self.conditions if c.column != column))

    def mask(self, batch: pa.RecordBatch) -> np.ndarray:
        """Which rows of `batch`, of the version's types, satisfy every condition: (rows,) bool."""
        keep = np.ones(batch.num_rows, bool)
        for condition in self.conditions:
            column = batch.column(condition.column)
            keep &= _holds(condition, column).fill_null(False).to_numpy(zero_copy_only=False)
        return keep


def parse_filter(spec: Mapping[str, Any], schema: pa.Schema) -> Filter:
    """Validate a filter as users write it against `id` and the columns that the version carries.

    Raises InputError that says the column's type and what it can be compared with.
    """
    conditions = []
    for column, condition in spec.items():
        if column not in schema.names:
            names = ", ".join(schema.names)
            raise InputError(f"filter: the index carries no column '{column}'; it has {names}")
        operands = condition if isinstance(condition, Mapping) else {"eq": condition}
        if not operands:
            raise InputError(f"filter: '{column}' has no operator; known: {', '.join(_OPERATORS)}")
        kind = schema.field(column).type
        domain = domain_of(kind)
        if domain is None:
            raise InputError(f"filter: column '{column}' is {kind}, which cannot be compared")
        for operator, value in operands.items():
            if operator not in _OPERATORS:
                raise InputError(
                    f"filter: '{column}' has operator '{operator}'; known: {', '.join(_OPERATORS)}"
                )
            values = value if operator == "in" else [value]
            if not isinstance(values, list | tuple) or len(values) > _MAX_VALUES:
                raise InputError(
                    f"filter: '{column}' in takes a list of at most {_MAX_VALUES} values"
                )
            read = [_read(domain, kind, column, each) for each in values]
            conditions.append(Condition(column, *_exact(operator, read, domain), domain.bounded))
    return Filter(tuple(conditions), spec)


def _read(domain: Domain, kind: pa.DataType, column: str, value: Any) -> Any:
    if isinstance(value, date | time):  # in Python, where nothing went through JSON
        value = value.isoformat()
    elif isinstance(value, Decimal):
        value = str(value)
    try:
        return domain.read(value)
    except (ValueError, OverflowError) as error:
        more = f": {error}" if str(error) else ""
        raise InputError(
            f"filter: column '{column}' is {kind}; it is compared with {domain.takes}, "
            f"not {_short(value)}{more}"
        ) from None


def _short(value: Any) -> str:
    try:
        text = ascii(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _exact(operator: str, values: list[Any], domain: Domain) -> tuple[str, Any]:
    """The condition as operator and value(s) that the column can have."""
    if operator in ("eq", "ne", "in"):
        near = [(domain.below(value), domain.above(value)) for value in values]
        exact = {low for low, high in near if low is not None and low == high}
        return "not in" if operator == "ne" else "in", tuple(sorted(exact))
    (value,) = values
    bound = domain.above(value) if operator in ("lt", "ge") else domain.below(value)
    if bound is None:  # the value lies beyond all that the column can have
        return _ANY if operator in ("lt", "gt") else _NONE
    return operator, bound


def _holds(condition: Condition, column: pa.Array) -> pa.Array:
    domain = domain_of(column.type)
    assert domain is not None
    comparable = domain.comparable(column)
    if condition.operator in _COMPARE:
        (bound,) = domain.array([condition.value], comparable.type)
        return _COMPARE[condition.operator](comparable, bound)
    values = domain.array(list(condition.value), comparable.type)
    if len(values) == 1:
        matches = pc.equal(comparable, values[0])
    else:
        matches = pc.is_in(comparable, value_set=values)
    if condition.operator == "not in":
        matches = pc.invert(matches)
    return pc.and_(matches, column.is_valid())


def _possible(condition: Condition, stats: ColumnStats) -> bool:
    low, high, value = stats.min, stats.max, condition.value
    try:
        match condition.operator:
            case "in":
                return any(low <= one <= high for one in value)
            case "lt":
                return low < value
            case "le":
                return low <= value
            case "gt":
                return high > value
            case "ge":
                return high >= value
    except TypeError:  # statistics of another type, or none: the rows will tell
        return True
    return True
