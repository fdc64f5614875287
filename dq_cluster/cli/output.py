"""What a command prints: one result on standard output, everything else on standard error."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO, TypeGuard

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dq_cluster.jsontext import to_json

_PLAIN_WIDTH = 200  # columns of output that no terminal wraps


@contextlib.contextmanager
def results_only() -> Iterator[TextIO]:
    """Keep standard output for results: what Ray and others print inside goes to standard error.

    Yields the real standard output.
    """
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield stdout


def emit(
    result: BaseModel | Mapping[str, Any], *, as_json: bool, file: TextIO | None = None
) -> None:
    """Print `result` as one JSON object, or as lines a person reads, on standard output."""
    file = file or sys.stdout
    if as_json:
        print(to_json(result), file=file, flush=True)
        return
    values = result.model_dump(mode="json") if isinstance(result, BaseModel) else result
    width = None if file.isatty() else _PLAIN_WIDTH
    # Brackets and colons in the name of a file are no markup.
    console = Console(
        file=file, width=width, highlight=False, soft_wrap=True, markup=False, emoji=False
    )
    for name, value in values.items():
        if _is_rows(value):
            console.print(_table(name, value))
        else:
            console.print(f"{name}: {_text(value)}")
    file.flush()


def emit_error(message: str, kind: str, *, as_json: bool, said: bool = False) -> None:
    """One line on standard error, unless it was said; with JSON an object on standard output."""
    message = " ".join(message.split())
    if not said:
        print(f"error: {message}", file=sys.stderr)
    if as_json:
        print(to_json({"error": message, "kind": kind}), flush=True)


def _is_rows(value: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(Text(name))
    for row in rows:
        # As it is: an id or a carried text may look like markup, and an id is shown as it is typed.
        table.add_row(*(Text((str if name == "id" else _text)(row.get(name))) for name in rows[0]))
    return table


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if _is_rows(value):
        return f"{len(value)} in all, the last: {_text(value[-1])}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(v)}" for name, v in value.items())
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)
