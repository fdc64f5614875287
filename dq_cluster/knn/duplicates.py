"""Duplicates: groups of images that are nearly the same, which one stays, and the others' end."""

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dq_cluster.document import Document
from dq_cluster.errors import ConfigError, InputError
from dq_cluster.evaluate.report import GridRow, Report
from dq_cluster.index.catalog import Index
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.tombstones import delete_ids
from dq_cluster.knn.config import DuplicatesSettings
from dq_cluster.knn.groups import Leaders, kept
from dq_cluster.knn.report import captions, grid, histogram
from dq_cluster.knn.result import NeighboursManifest, parts
from dq_cluster.knn.rows import values_of
from dq_cluster.knn.run import find_neighbours
from dq_cluster.storage import Storage

GROUPS = "duplicates.parquet"
NAME = "duplicates.json"
_SHOWN = 50  # groups with pictures in the report


class DuplicatesManifest(Document):
    """What was found. groups, images: in groups of at least two; others: of these, not kept.

    full: images with k neighbours that near; groups around them may have more members.
    """

    NAME: ClassVar[str] = "duplicates manifest"

    version: int
    within: float
    keep: str
    groups: int
    images: int
    others: int
    full: int


def duplicates(settings: DuplicatesSettings) -> dict[str, Any]:
    """Find groups, write them, and delete the others if asked. The same settings continue a run.

    Returns a summary. Raises what `neighbours` raises, and InputError for a column that the version
    does not carry.
    """
    if settings.features is not None:
        raise ConfigError("duplicates are of the version itself; leave out features")
    index = Index.at(settings.index)
    column, largest = _rule(settings.keep)
    _check_column(index, index.manifest(settings.version), column)
    result = find_neighbours(settings)
    version, storage = index.manifest(result.version), Storage(settings.output)
    leaders = _leaders(storage, result, version.rows)
    rows = leaders.members()
    names = {"id", *([column] if column else []), *({"uri"} & set(version.columns))}
    values = values_of(index, version, rows, sorted(names))
    keep = kept(leaders.of[rows], values.get(column or ""), largest=largest)
    table = _table(values["id"], leaders.of[rows], leaders.scores[rows], keep)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write(GROUPS, memoryview(sink.getvalue()).tobytes())
    manifest = DuplicatesManifest(
        version=result.version,
        within=settings.within,
        keep=settings.keep,
        groups=int(keep.sum()),
        images=len(rows),
        others=int((~keep).sum()),
        full=result.full,
    )
    storage.write(NAME, manifest.model_dump_json(indent=1).encode())
    _report(manifest, table, values.get("uri")).write(storage)
    summary = manifest.model_dump(exclude={"format"}) | {"output": settings.output}
    if settings.delete and manifest.others:
        gone = values["id"].filter(pa.array(~keep))
        summary["published"] = delete_ids(index, gone).version
    return summary


def _leaders(storage: Storage, result: NeighboursManifest, rows: int) -> Leaders:
    leaders = Leaders(rows)
    for part in parts(storage, result):
        near = part.column("scores").combine_chunks()
        to = part.column("rows").combine_chunks()
        leaders.add(
            part.column("row").to_numpy(),
            to.offsets.to_numpy() - to.offsets[0].as_py(),
            near.flatten().to_numpy(),
            to.flatten().to_numpy(),
        )
    return leaders


def _rule(keep: str) -> tuple[str | None, bool]:
    """The column that decides, if any, and whether its largest value stays."""
    how, _, column = keep.partition(":")
    return column or None, how == "max"


def _check_column(index: Index, version: Manifest, column: str | None) -> None:
    if column is not None and column not in version.columns:
        raise InputError(
            f"keep: version {version.version} carries no column {column}; "
            f"it carries {', '.join(version.columns) or 'none'}"
        )


def _table(ids: pa.Array, groups: np.ndarray, scores: np.ndarray, keep: np.ndarray) -> pa.Table:
    """Rows of all groups: `group` (the id that stays), `id`, `score` with the leader, `keep`."""
    _, group = np.unique(groups, return_inverse=True)
    stays = np.empty(group.max(initial=-1) + 1, np.int64)
    stays[group[keep]] = np.flatnonzero(keep)
    return pa.table(
        {
            "group": ids.take(pa.array(stays[group], pa.int64())),
            "id": ids,
            "score": pa.array(scores, pa.float32(), from_pandas=True),
            "keep": pa.array(keep),
        }
    )


def _report(manifest: DuplicatesManifest, table: pa.Table, uris: pa.Array | None) -> Report:
    """Counts, a histogram of the scores, and the largest groups as grids of pictures."""
    stays = table.column("group").combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(stays, prepend=-1))
    sizes = np.diff([*starts, len(stays)])
    scores = table.column("score").drop_null().to_numpy()
    kept = table.column("keep").to_numpy()
    grids: dict[str, list[GridRow]] = {}
    for group in np.argsort(-sizes, kind="stable")[:_SHOWN]:
        some = slice(int(starts[group]), int(starts[group] + sizes[group]))
        part = table.slice(some.start, some.stop - some.start)
        notes = ["" if s is None else f"{s:.3f}" for s in part.column("score").to_pylist()]
        pictures = captions(uris[some] if uris is not None else None, part.column("id"), notes)
        order = np.argsort(~kept[some], kind="stable")  # the one that stays comes first
        row = grid([pictures[place] for place in order], "stays:")
        if row is not None:
            grids[f"{sizes[group]:,} images"] = [*grids.get(f"{sizes[group]:,} images", []), row]
    lengths, counts = np.unique(sizes, return_counts=True)
    spread = [
        {"images of a group": int(n), "groups": int(c)}
        for n, c in zip(lengths, counts, strict=True)
    ]
    return Report(
        title=f"Duplicates in version {manifest.version}",
        summary=f"{manifest.images:,} images in {manifest.groups:,} groups score at least "
        f"{manifest.within:g} with the leader of theirs; {manifest.others:,} of them are others "
        f"than the one that stays (keep: {manifest.keep}). The largest groups come first.",
        tables={"Sizes": spread} if spread else {},
        figures={"Scores": histogram(scores)} if len(scores) else {},
        grids=grids,
    )
