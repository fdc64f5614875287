"""A version as files of faiss, for programs that have no dq_cluster.

    <output>/shard-000.faiss     IndexPQ, or IndexIVFPQ where the version has cells
    <output>/shard-000.parquet   column `id`: the id of each row of that index, in its order
    <output>/thumbnails-000.parquet   `id`, `thumbnail`: small pictures, where the version has some

Deleted images are left out. An embedding of the model is what these indexes are searched with.
"""

from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dq_cluster.errors import InputError
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import open_code_file, read_codes
from dq_cluster.index.ids import as_type
from dq_cluster.index.manifest import FileEntry, Manifest
from dq_cluster.index.thumbnails import merge_thumbnails
from dq_cluster.index.tombstones import read_tombstones
from dq_cluster.search import faiss_index
from dq_cluster.search.codebooks import Codebooks
from dq_cluster.search.placement import plan_shards
from dq_cluster.storage import Storage
from dq_cluster.storage.scratch import scratch_folder


def export_faiss(
    index: Index, output: str, *, version: int | None = None, shards: int = 1
) -> dict[str, Any]:
    """Write a version to the folder or s3:// prefix `output`, in `shards` files.

    Memory is of one shard. Returns what was written. Raises NotFoundError for a version that does
    not exist, and InputError for more shards than the version can be divided into.
    """
    manifest = index.manifest(version)
    codebooks = Codebooks.load(index.storage, manifest)
    deleted = read_tombstones(index.storage, manifest)
    target, rows, thumbnails = Storage(output), 0, 0
    for number, shard in enumerate(plan_shards(manifest, shards)):
        files = [file for block in shard.blocks for file in block.files]
        parts = [_live(index.storage, manifest, file, deleted.get(file.path)) for file in files]
        if not parts:
            raise InputError(
                f"version {manifest.version} has {len(manifest.files)} files, too few for {shards} "
                "shards; ask for fewer"
            )
        codes, cells, ids = zip(*parts, strict=True)
        made = _index(np.concatenate(codes), np.concatenate(cells), codebooks)
        name = f"shard-{number:03d}"
        with scratch_folder() as folder:
            faiss.write_index(made, str(folder / name))
            target.upload(folder / name, f"{name}.faiss")
            pq.write_table(pa.table({"id": pa.concat_arrays(ids)}), folder / "ids")
            target.upload(folder / "ids", f"{name}.parquet")
        living = {file.path: own for file, own in zip(files, ids, strict=True)}
        small = f"thumbnails-{number:03d}.parquet"
        pictures = merge_thumbnails(index.storage, manifest, living, target, small)
        thumbnails += 0 if pictures is None else pictures.rows
        rows += made.ntotal
    return {
        "output": target.uri,
        "version": manifest.version,
        "shards": shards,
        "rows": rows,
        "thumbnails": thumbnails,
        "index": type(made).__name__,
        "metric": manifest.geometry.metric,
        "dim": manifest.geometry.dim,
    }


def _live(
    storage: Storage, manifest: Manifest, file: FileEntry, deleted: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    """Codes (n, code_size), cells (n,), all 0 where there are none, and ids (n,) of a file."""
    opened = open_code_file(storage, file, model=manifest.model, geometry=manifest.geometry)
    codes = np.empty((file.rows, manifest.geometry.code_size), np.uint8)
    cells = np.zeros(file.rows, np.int64)
    start = 0
    for part, places in read_codes(opened, manifest.geometry, None):
        here = slice(start, start + len(part))
        codes[here] = part
        if places is not None:
            cells[here] = places
        start += len(part)
    ids = as_type(opened.read(columns=["id"]).column("id").combine_chunks(), manifest.id_type)
    alive = np.ones(file.rows, bool)
    if deleted is not None:
        alive[deleted] = False
    return codes[alive], cells[alive], ids.filter(pa.array(alive))


def _index(codes: np.ndarray, cells: np.ndarray, codebooks: Codebooks) -> faiss.Index:
    geometry = codebooks.geometry
    if codebooks.coarse is not None:
        return faiss_index.in_lists(codes, cells, codebooks.vectors, codebooks.coarse, geometry)
    index = faiss_index.unfilled(len(codes), codebooks.vectors, geometry)
    faiss_index.codes_of(index)[:] = codes
    return index
