"""Coarse groups: the cells of a version, their sizes, and some images of each.

The cells are those of the version, or, where it has none, of k-means over a sample of what its
codes stand for.
"""

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dq_cluster.errors import InputError
from dq_cluster.evaluate.report import Report
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import open_code_file, read_codes
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.tombstones import deleted_ordinals
from dq_cluster.knn.config import GroupsSettings
from dq_cluster.knn.report import captions, grid
from dq_cluster.knn.rows import values_of
from dq_cluster.search.codebooks import Codebooks
from dq_cluster.storage import Storage

GROUPS = "groups.parquet"
_PER_CENTROID = 256  # sampled codes that k-means sees
_SHOWN = 50  # groups with pictures in the report


class Part(NamedTuple):
    """Codes of a file, and their ordinals (n,); those that are deleted are left out."""

    ordinals: np.ndarray
    embeddings: np.ndarray
    cells: np.ndarray | None


def groups(settings: GroupsSettings) -> dict[str, Any]:
    """Sort every image of a version into its cell; write sizes, samples, and a report.

    Reads one code file at a time. Returns a summary. Raises NotFoundError for an absent version
    and InputError for one with fewer images than groups.
    """
    index, storage = Index.at(settings.index), Storage(settings.output)
    version = index.manifest(settings.version)
    books = Codebooks.load(index.storage, version)
    coarse = books.coarse if settings.groups is None else None
    if coarse is None:
        coarse = _trained(index, version, books, settings)
    sizes, nearest = _sorted(index, version, books, coarse, settings.samples)
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    rows = np.concatenate([nearest[number] for number in order])
    names = ["id", *(["uri"] if "uri" in version.columns else [])]
    values = values_of(index, version, rows, names)
    ends = np.cumsum([0, *(len(nearest[number]) for number in order)])
    table = pa.table(
        {
            "group": pa.array(order, pa.int64()),
            "size": pa.array(sizes[order], pa.int64()),
            "samples": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values["id"]),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.write(GROUPS, sink.getvalue())
    pictures = {}
    for place, number in enumerate(order[:_SHOWN]):
        some = slice(int(ends[place]), int(ends[place + 1]))
        uris = values["uri"][some] if "uri" in values else None
        ids = values["id"][some]
        row = grid(captions(uris, ids, [""] * len(ids)), "nearest to the centroid:")
        if row is not None:
            pictures[f"Group {number}: {sizes[number]:,} images"] = [row]
    shown = [{"group": int(number), "images": int(sizes[number])} for number in order[: 2 * _SHOWN]]
    summary = {
        "version": version.version,
        "groups": len(order),
        "images": int(sizes.sum()),
        "largest": int(sizes.max()),
        "smallest": int(sizes[order].min()),
        "output": settings.output,
    }
    Report(
        title=f"What is in version {version.version}",
        summary=f"{sizes.sum():,} images in {len(order)} groups, the largest first; images of "
        "a group are in order of their distance from its centroid.",
        tables={"Sizes": shown},
        grids=pictures,
    ).write(storage)
    return summary


def _trained(
    index: Index, version: Manifest, books: Codebooks, settings: GroupsSettings
) -> faiss.IndexFlat:
    """Centroids by k-means of a sample of the codes, the same for the same version."""
    count = settings.groups or 100
    living = version.rows - version.deleted
    if living < count:
        raise InputError(
            f"version {version.version} has {living} images, too few for {count} groups; ask for "
            "fewer with groups=N"
        )
    share = min(1.0, _PER_CENTROID * count / living)
    rng = np.random.default_rng(0)
    sample = np.vstack(
        [
            part.embeddings[rng.random(len(part.embeddings)) < share]
            if share < 1
            else part.embeddings
            for part in _parts(index, version, books)
        ]
    )
    kmeans = faiss.Kmeans(version.geometry.dim, count, niter=20, min_points_per_centroid=1, seed=1)
    kmeans.train(sample)
    coarse = faiss.IndexFlat(version.geometry.dim)
    coarse.add(kmeans.centroids)
    return coarse


def _sorted(
    index: Index, version: Manifest, books: Codebooks, coarse: faiss.IndexFlat, samples: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The size of every group, and the ordinals of the images nearest to its centroid."""
    sizes = np.zeros(coarse.ntotal, np.int64)
    nearest = [np.empty(0, np.int64)] * coarse.ntotal
    farther = [np.empty(0, np.float32)] * coarse.ntotal
    centroids = coarse.reconstruct_n(0, coarse.ntotal)
    own = coarse is books.coarse
    for part in _parts(index, version, books):
        cells = part.cells if own else coarse.search(part.embeddings, 1)[1][:, 0]
        assert cells is not None
        away = np.square(part.embeddings - centroids[cells]).sum(axis=1)
        sizes += np.bincount(cells, minlength=len(sizes))
        order = np.lexsort((part.ordinals, away, cells))
        starts = np.searchsorted(cells[order], np.arange(len(sizes) + 1))
        for number in np.flatnonzero(np.diff(starts)):
            some = order[starts[number] : min(starts[number] + samples, starts[number + 1])]
            rows = np.concatenate([nearest[number], part.ordinals[some]])
            far = np.concatenate([farther[number], away[some]])
            best = np.lexsort((rows, far))[:samples]
            nearest[number], farther[number] = rows[best], far[best]
    return sizes, nearest


def _parts(index: Index, version: Manifest, books: Codebooks) -> Iterator[Part]:
    deleted, start = deleted_ordinals(index.storage, version), 0
    for entry in version.files:
        local = index.storage.local(entry.path)
        with open_code_file(
            index.storage, entry, model=version.model, geometry=version.geometry
        ) as file:
            for codes, cells in read_codes(file, version.geometry, local):
                ordinals = np.arange(start, start + len(codes))
                start += len(codes)
                alive = ~np.isin(ordinals, deleted)
                vectors = books.centroids.of(codes[alive]).astype(np.float32)
                yield Part(ordinals[alive], vectors, None if cells is None else cells[alive])
