"""The rows of a comparison as tables for people."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dq_cluster.evaluate.rows import Row

Table = list[dict[str, Any]]


def figures(row: Row, k: int) -> dict[str, tuple[float, ...]]:
    """What was measured with each seed, by the name people read."""
    return {f"mAP@{k}": row.map, "recall@10": row.recall, **row.training}


def lines(rows: Sequence[Row], k: int) -> Table:
    """A line per row: every figure's mean and standard deviation over the seeds."""
    names = dict.fromkeys(name for row in rows for name in figures(row, k))
    return [_line(row, names, k) for row in rows]


def by_length(rows: Sequence[Row], names: Sequence[str], k: int) -> Table:
    """A line per method, a column per figure and code length; exact search has one for all."""
    lengths = sorted({row.bits for row in rows if row.bits}) or [0]
    places = {(row.method, row.bits): figures(row, k) for row in rows}
    table = []
    for method in dict.fromkeys(row.method for row in rows):
        line: dict[str, Any] = {"method": method}
        for name in names:
            for bits in lengths:
                values = places.get((method, bits)) or places.get((method, 0)) or {}
                line[f"{name}, {bits} bits"] = _spread(values.get(name, ()))
        table.append(line)
    return table


def _line(row: Row, names: Mapping[str, None], k: int) -> dict[str, Any]:
    line: dict[str, Any] = {"method": row.method, "bits": row.bits}
    measured = figures(row, k)
    for name in names:
        values = measured.get(name, ())
        line[name] = round(statistics.mean(values), 4) if values else None
        line[f"{name} sd"] = round(_deviation(values), 4) if values else None
    return line | {"seconds": row.seconds}


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    digits = 3 if max(values) < 10 else 1
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {_deviation(values):.{digits}f}"


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
