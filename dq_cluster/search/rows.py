"""Ids and carried columns of a shard, by ordinal."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa

from dq_cluster.errors import InputError
from dq_cluster.index.plain import PlainColumn
from dq_cluster.search.filters import Filter
from dq_cluster.search.lookup import Ids, key_of
from dq_cluster.search.placement import Places
from dq_cluster.search.selection import Selection
from dq_cluster.search.stored_rows import StoredRows


class Rows:
    """The rows of a shard without their codes, by ordinal. Read-only, safe between threads.

    live: the rows that are not deleted (default: all). Only `find` and `matching` pass over others.
    """

    def __init__(
        self,
        segments: Sequence[StoredRows],
        schema: pa.Schema,
        places: Places,
        live: Selection | None = None,
    ) -> None:
        self.schema = schema
        self._segments, self._places, self._live = segments, places, live
        sizes = [sum(map(len, segment.ids)) for segment in segments]
        self._segment_starts = np.cumsum([0, *sizes])
        self._ids = [piece for segment in segments for piece in segment.ids]
        self._id_at = [_reader(piece) for piece in self._ids]
        self._batches = [batch for segment in segments for batch in segment.batches]
        self._starts = np.cumsum([0, *map(len, self._ids)])
        self._batch_starts = np.cumsum([0, *map(len, self._batches)])

    def take(self, ordinals: np.ndarray, columns: Sequence[str] = ("id",)) -> pa.Table:
        """The named columns of the rows `ordinals` (n,), in that order.

        Raises InputError for a column that is not carried, IntegrityError or StorageError where a
        file was damaged, or cannot be read, since it was loaded.
        """
        missing = set(columns) - set(self.schema.names)
        if missing:
            raise InputError(
                f"the index carries no column {', '.join(sorted(missing))}; "
                f"it carries {', '.join(self.schema.names)}"
            )
        if not len(ordinals):
            return pa.schema([self.schema.field(name) for name in columns]).empty_table()
        rows = self._places.rows_of(ordinals)
        columns_by_name: dict[str, pa.ChunkedArray] = {}
        if others := [name for name in columns if name != "id"]:
            table = _by_row(self._batches, self._batch_starts, rows, partial(_rows_of, others))
            columns_by_name = dict(zip(others, table.columns, strict=True))
        if "id" in columns:
            columns_by_name["id"] = _by_row(self._ids, self._starts, rows, _ids_of)["id"]
        return pa.table({name: columns_by_name[name] for name in columns})

    def ids(self, ordinals: np.ndarray) -> list[int | str]:
        """The ids of the rows `ordinals` (n,), as `take` has them; quicker for a few."""
        rows = self._places.rows_of(ordinals)
        numbers = self._starts.searchsorted(rows, side="right") - 1
        places = rows - self._starts[numbers]
        return [
            self._id_at[number](row)
            for number, row in zip(numbers.tolist(), places.tolist(), strict=True)
        ]

    def find(self, id: int | str) -> int | None:
        """The ordinal of the first row with this id that is not deleted."""
        key = key_of(id)
        for start, segment in zip(self._segment_starts, self._segments, strict=False):
            rows = segment.by_id.find(key)
            if not len(rows):
                continue
            rows = start + rows
            if self._live is not None:
                rows = rows[self._live.holds(rows)]
            ordinals = self._places.ordinals(rows)
            for ordinal, stored in zip(ordinals.tolist(), self.ids(ordinals), strict=True):
                if stored == id:
                    return ordinal
        return None

    def matching(self, filter: Filter) -> Selection:
        """The rows that satisfy `filter` and are not deleted."""
        keep = []
        for number, segment in enumerate(self._segments):
            rows = int(np.diff(self._segment_starts[number : number + 2])[0])
            kept = np.ones(rows, bool) if self._live is None else self._live.keeps(number)
            for part, batches in zip(
                filter.split("id"), (_id_batches(segment), segment.batches), strict=True
            ):
                if part.conditions and rows:
                    kept = kept & np.concatenate([part.mask(batch) for batch in batches])
            keep.append(kept)
        return Selection(keep)


def _id_batches(segment: StoredRows) -> Iterator[pa.RecordBatch]:
    """The ids of all rows; a batch is valid until the next."""
    for ids in segment.ids:
        for block in ids.blocks() if isinstance(ids, PlainColumn) else [ids]:
            yield pa.RecordBatch.from_arrays([pa.array(block)], ["id"])


def _reader(ids: Ids) -> Callable[[int], int | str]:
    """What gives the id of a row of a piece."""
    if isinstance(ids, PlainColumn):
        return ids.at
    if pa.types.is_integer(ids.type):
        return ids.to_numpy().item
    return lambda row: ids[row].as_py()


T = TypeVar("T")


def _by_row(
    pieces: Sequence[T],
    starts: np.ndarray,
    rows: np.ndarray,
    take: Callable[[T, np.ndarray], pa.Table],
) -> pa.Table:
    """The `rows` (n,), n at least 1, in that order; `take` reads rows of one piece."""
    numbers = np.searchsorted(starts, rows, side="right") - 1
    order = np.argsort(numbers, kind="stable")
    used, first = np.unique(numbers[order], return_index=True)
    parts = [
        take(pieces[number], rows[here] - starts[number])
        for number, here in zip(used, np.split(order, first[1:]), strict=True)
    ]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.concat_tables(parts).combine_chunks().take(pa.array(back))


def _rows_of(columns: list[str], batch: pa.RecordBatch, rows: np.ndarray) -> pa.Table:
    return pa.Table.from_batches([batch.select(columns).take(pa.array(rows))])


def _ids_of(ids: Ids, rows: np.ndarray) -> pa.Table:
    plain = isinstance(ids, PlainColumn)
    return pa.table({"id": pa.array(ids.take(rows)) if plain else ids.take(pa.array(rows))})
