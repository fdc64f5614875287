"""Compaction: the rows of a version in few files, without the deleted ones."""

import contextlib
import uuid
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from dq_cluster import __version__
from dq_cluster.errors import ConflictError
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import (
    carried_schema,
    code_matrix,
    code_table,
    file_schema,
    open_code_file,
    write_code_file,
)
from dq_cluster.index.columns import cast_columns, pack_schema
from dq_cluster.index.ids import concat_rows
from dq_cluster.index.manifest import FileEntry, Manifest, Producer
from dq_cluster.index.stored import check_stored
from dq_cluster.index.thumbnails import merge_thumbnails
from dq_cluster.index.tombstones import read_tombstones
from dq_cluster.progress import Steps
from dq_cluster.run import Run


def compact(index: Index, target_rows: int = 1_000_000) -> Manifest:
    """Publish the current version again with files of about `target_rows` rows.

    Small neighbours are merged, their carried columns cast to the version's types, deleted rows
    are left out, and in an IVF version rows are put in order of their cell again; a file that is
    big enough and has lost nothing is shared. Order of the rows stays otherwise. Returns the
    current version where there is nothing to do.
    """
    old = index.manifest()
    deleted = read_tombstones(index.storage, old)
    groups = list(plan_compaction(old.files, set(deleted), target_rows))
    if all(len(group) == 1 and group[0].path not in deleted for group in groups):
        return old
    name = f"compact-{uuid.uuid4().hex[:12]}"
    folder = f"data/{name}"
    run = Run(index.storage.child(f"runs/{name}"))
    with run.at_work(), contextlib.ExitStack() as stack:
        schema = carried_schema(index.storage, old)
        files: list[FileEntry] = []
        thumbnails: dict[str, FileEntry] = {}
        steps = stack.enter_context(Steps(f"compact {old.version}", old.rows, "rows"))
        for number, group in enumerate(groups):
            if number:
                steps.advance(sum(file.rows for file in groups[number - 1]))
            if len(group) == 1 and group[0].path not in deleted:
                files.append(group[0])
                if group[0].path in old.thumbnails:
                    thumbnails[group[0].path] = old.thumbnails[group[0].path]
                continue
            table, living = _merged(index, old, schema, group, deleted)
            if table.num_rows:
                path = f"{folder}/part-{number:06d}.parquet"
                small = f"{folder}/thumbnails-{number:06d}.parquet"
                pictures = merge_thumbnails(index.storage, old, living, index.storage, small)
                if pictures is not None:
                    thumbnails[path] = pictures
                files.append(
                    write_code_file(
                        index.storage, path, table, model=old.model, geometry=old.geometry
                    )
                )
        run.confirm()
        written = [
            file for file in (*files, *thumbnails.values()) if file.path.startswith(f"{folder}/")
        ]
        check_stored(index.storage, folder, written, "compact again")

        def make(version: int, parent: int | None) -> Manifest:
            if parent != old.version:
                raise ConflictError(
                    f"version {parent} was published while version {old.version} was compacted; "
                    "compact again"
                )
            return Manifest(
                version=version,
                parent=parent,
                model=old.model,
                geometry=old.geometry,
                id_type=old.id_type,
                columns=old.columns,
                arrow_schema=pack_schema(schema),
                files=tuple(files),
                rows=sum(file.rows for file in files),
                thumbnails=thumbnails,
                rejects=old.rejects,
                rejected=old.rejected,
                evaluation=old.evaluation,
                producer=Producer(dq_cluster=__version__, run=name),
            )

        return index.publish(make)


def plan_compaction(
    files: tuple[FileEntry, ...], deleted: set[str], target_rows: int
) -> Iterator[list[FileEntry]]:
    """Groups of consecutive files to merge.

    A file that has half of `target_rows` and no deleted rows is a group of its own.
    """
    group: list[FileEntry] = []
    for file in files:
        alone = 2 * file.rows >= target_rows and file.path not in deleted
        if group and (alone or sum(f.rows for f in group) + file.rows > target_rows):
            yield group
            group = []
        group.append(file)
        if alone:
            yield group
            group = []
    if group:
        yield group


def _merged(
    index: Index,
    manifest: Manifest,
    carried: pa.Schema,
    group: list[FileEntry],
    deleted: dict[str, np.ndarray],
) -> tuple[pa.Table, dict[str, pa.Array]]:
    """The living rows of a group as one table, and their ids by the file they were in."""
    tables = []
    for file in group:
        opened = open_code_file(
            index.storage, file, model=manifest.model, geometry=manifest.geometry
        )
        alive = np.ones(file.rows, bool)
        alive[deleted.get(file.path, [])] = False
        file_schema(opened, manifest.columns, f"{index.storage.uri}/{file.path}")
        rows = opened.read().filter(pa.array(alive))
        tables.append(cast_columns(rows, carried))
    living = {
        file.path: rows.column("id").combine_chunks()
        for file, rows in zip(group, tables, strict=True)
    }
    table = concat_rows(tables).combine_chunks()
    geometry = manifest.geometry
    second = geometry.refine_m  # bytes of the second code, 0 without one
    merged = code_table(
        table.column("id").combine_chunks(),
        code_matrix(table.column("code").combine_chunks(), geometry.code_size),
        geometry,
        table.select(list(manifest.columns)),
        table.column("cell").to_numpy() if geometry.nlist else None,
        code_matrix(table.column("refine_code").combine_chunks(), second) if second else None,
    )
    return merged, living
