"""Filters on carried columns: `{"label": 3, "year": {"ge": 2000, "lt": 2010}}`.

All conditions must hold. A plain value means equality. A null satisfies no condition.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dq_cluster.errors import InputError
from dq_cluster.index.manifest import ColumnStats, FileEntry

_COMPARE: dict[str, Callable[..., Any]] = {
    "eq": pc.equal,
    "ne": pc.not_equal,
    "lt": pc.less,
    "le": pc.less_equal,
    "gt": pc.greater,
    "ge": pc.greater_equal,
}
_OPERATORS = (*_COMPARE, "in")
_MAX_VALUES = 1000


@dataclass(frozen=True)
class Condition:
    """`column operator value`; the value of `in` is a tuple."""

    column: str
    operator: str
    value: Any


@dataclass(frozen=True)
class Filter:
    """Conditions that all must hold; hashable, so that equal questions can share a batch."""

    conditions: tuple[Condition, ...]

    def may_match(self, entry: FileEntry) -> bool:
        """False only when the file's statistics rule out every row."""
        return all(
            _possible(condition, entry.stats[condition.column])
            for condition in self.conditions
            if condition.column in entry.stats
        )

    def mask(self, batch: pa.RecordBatch) -> np.ndarray:
        """Which rows of `batch` satisfy every condition: (rows,) bool. Raises InputError."""
        keep = np.ones(batch.num_rows, bool)
        for condition in self.conditions:
            column = batch.column(condition.column)
            try:
                keep &= _holds(condition, column).fill_null(False).to_numpy(zero_copy_only=False)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
                raise InputError(
                    f"filter: column '{condition.column}' is {column.type}; it cannot be "
                    f"compared with {condition.value!r}"
                ) from error
        return keep


def parse_filter(spec: Mapping[str, Any], columns: tuple[str, ...]) -> Filter:
    """Validate a filter as users write it against the columns that the version carries."""
    conditions = []
    for column, wanted in spec.items():
        if column not in ("id", *columns):
            known = ", ".join(("id", *columns))
            raise InputError(f"filter: the index carries no column '{column}'; it has {known}")
        for operator, value in (wanted if isinstance(wanted, Mapping) else {"eq": wanted}).items():
            if operator not in _OPERATORS:
                raise InputError(
                    f"filter: '{column}' has operator '{operator}'; known: {', '.join(_OPERATORS)}"
                )
            values = value if operator == "in" else [value]
            if not isinstance(values, list | tuple) or len(values) > _MAX_VALUES:
                raise InputError(
                    f"filter: '{column}' in takes a list of at most {_MAX_VALUES} values"
                )
            if not all(isinstance(v, int | float | str | bool) for v in values):
                raise InputError(f"filter: '{column}' is compared with numbers, text, or booleans")
            conditions.append(
                Condition(column, operator, tuple(values) if operator == "in" else value)
            )
    return Filter(tuple(conditions))


def _holds(condition: Condition, column: pa.Array) -> pa.Array:
    if condition.operator != "in":
        return _COMPARE[condition.operator](column, pa.scalar(condition.value))
    wanted = pa.array(list(condition.value)).cast(column.type)
    return pc.and_(pc.is_in(column, value_set=wanted), pc.is_valid(column))


def _possible(condition: Condition, stats: ColumnStats) -> bool:
    low, high, value = stats.min, stats.max, condition.value
    try:
        match condition.operator:
            case "eq":
                return low <= value <= high
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
