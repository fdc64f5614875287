"""Deletes: a version whose tombstones take rows out of the files it shares with its parent.

A tombstone names a place, `path` and `row`, not an id: readers need not look at ids, and an id
that is encoded again later lives. `index.compact` writes the files anew without the rows.
"""

import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dq_cluster import __version__
from dq_cluster.errors import NotFoundError
from dq_cluster.index.ahead import read_ahead
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import open_code_file, write_parquet
from dq_cluster.index.ids import as_type, to_ids
from dq_cluster.index.manifest import FileEntry, Manifest, Producer
from dq_cluster.run import Run
from dq_cluster.storage import Storage

_READERS = 8


def delete_ids(index: Index, ids: Sequence[int] | Sequence[str] | pa.Array) -> Manifest:
    """Publish a version of the current one without the rows of `ids`; every row of an id goes.

    Reads the ids of those files only whose statistics allow one of them. Raises NotFoundError,
    changing nothing, when an id is not in the version, and InputError for ids of another type.
    """
    run = f"delete-{uuid.uuid4().hex[:12]}"

    def make(version: int, parent: int | None) -> Manifest:
        old = index.manifest(parent)
        requested = to_ids(ids, old.id_type)
        places = _places(index.storage, old, requested)
        absent = pc.filter(requested, pc.invert(pc.is_in(requested, places.column("id"))))
        if len(absent):
            some = ", ".join(map(str, absent[:3].to_pylist()))
            raise NotFoundError(
                f"{len(absent)} of {len(requested)} ids are not in version {old.version} ({some}"
                f"{', …' if len(absent) > 3 else ''}); nothing was deleted"
            )
        path = f"data/{run}/tombstones-{version}.parquet"
        entry = write_parquet(index.storage, path, places)
        return old.model_copy(
            update={
                "version": version,
                "parent": old.version,
                "created": datetime.now(UTC),
                "tombstones": (*old.tombstones, entry),
                "deleted": old.deleted + entry.rows,
                "producer": Producer(dq_cluster=__version__, run=run),
            }
        )

    with Run(index.storage.child(f"runs/{run}")).at_work():
        return index.publish(make)


def read_tombstones(storage: Storage, manifest: Manifest) -> dict[str, np.ndarray]:
    """Deleted rows (int64, ascending) by the path of their file."""
    rows: dict[str, list[np.ndarray]] = {}
    for entry in manifest.tombstones:
        table = pq.read_table(storage.open(entry.path), columns=["path", "row"])
        table = table.combine_chunks()
        for path in pc.unique(table.column("path")):
            mine = table.filter(pc.equal(table.column("path"), path))
            rows.setdefault(path.as_py(), []).append(mine.column("row").to_numpy())
    return {path: np.unique(np.concatenate(parts)) for path, parts in rows.items()}


def deleted_ordinals(storage: Storage, manifest: Manifest) -> np.ndarray:
    """Ordinals (int64, ascending) of the version's deleted rows."""
    deleted = read_tombstones(storage, manifest)
    base, ordinals = 0, [np.empty(0, np.int64)]
    for file in manifest.files:
        if file.path in deleted:
            ordinals.append(base + deleted[file.path])
        base += file.rows
    return np.concatenate(ordinals)


def live_ids(storage: Storage, manifest: Manifest) -> Iterator[tuple[FileEntry, pa.Array]]:
    """The ids of each file's rows that are not deleted."""
    deleted = read_tombstones(storage, manifest)
    for file, ids in _read_ids(storage, manifest, manifest.files):
        yield file, _without(ids, deleted.get(file.path))


def _without(ids: pa.Array, rows: np.ndarray | None) -> pa.Array:
    if rows is None:
        return ids
    alive = np.ones(len(ids), bool)
    alive[rows] = False
    return ids.filter(pa.array(alive))


def _read_ids(
    storage: Storage, manifest: Manifest, files: Sequence[FileEntry]
) -> Iterator[tuple[FileEntry, pa.Array]]:
    def read(file: FileEntry) -> list[tuple[FileEntry, pa.Array]]:
        opened = open_code_file(storage, file, model=manifest.model, geometry=manifest.geometry)
        ids = opened.read(columns=["id"]).column("id").combine_chunks()
        return [(file, as_type(ids, manifest.id_type))]

    yield from read_ahead(read, files, _READERS)


def _places(storage: Storage, manifest: Manifest, requested: pa.Array) -> pa.Table:
    """`path`, `row`, and `id` of every live row with one of the ids `requested`."""
    ordered = np.sort(requested.to_numpy(zero_copy_only=False))
    files = [file for file in manifest.files if _may_hold(file, ordered)]
    deleted = read_tombstones(storage, manifest)
    parts = []
    for file, ids in _read_ids(storage, manifest, files):
        rows = np.flatnonzero(pc.is_in(ids, requested).to_numpy(zero_copy_only=False))
        rows = np.setdiff1d(rows, deleted.get(file.path, ()))
        parts.append(
            pa.table(
                {
                    "path": pa.array([file.path] * len(rows), pa.string()),
                    "row": pa.array(rows, pa.int64()),
                    "id": ids.take(pa.array(rows)),
                }
            )
        )
    empty = {"path": pa.array([], pa.string()), "row": pa.array([], pa.int64())}
    return pa.concat_tables([pa.table(empty | {"id": requested[:0]}), *parts])


def _may_hold(file: FileEntry, ordered: np.ndarray) -> bool:
    stats = file.stats.get("id")
    if stats is None or stats.min is None:
        return True
    # As an array of their type: numpy would compare Python's numbers with uint64 as floats.
    first = np.searchsorted(ordered, np.array(stats.min, ordered.dtype))
    return bool(first < len(ordered) and ordered[first] <= stats.max)
