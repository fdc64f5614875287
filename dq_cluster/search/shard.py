"""One shard of one version, loaded: what a replica answers from. No Ray here."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dq_cluster.errors import DoesNotFitError, IntegrityError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.catalog import Index
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.sizing import row_bytes
from dq_cluster.search.faiss_index import scans_fast
from dq_cluster.search.filters import parse_filter
from dq_cluster.search.gpu import check_gpu
from dq_cluster.search.merge import MISSING
from dq_cluster.search.placement import Shard, plan_shards
from dq_cluster.search.refine import Refiner
from dq_cluster.search.rows import Rows
from dq_cluster.search.searcher import Searcher
from dq_cluster.search.values import to_json
from dq_cluster.storage import translated

# Places of an answer whose ids come with it: asking for them again would take longer.
_FEW = 512
_GPU_LABEL_BYTES = 4
_GPU_WORK_BYTES = 1536 << 20  # what faiss takes of a GPU for its own work


@dataclass(frozen=True)
class ShardQuery:
    """One batch for every shard: embeddings (n, dim) float32, how to search, and the trace.

    filter: as users write it; every shard reads it against its own types.
    """

    version: int
    embeddings: np.ndarray
    k: int
    nprobe: int = 0
    k_factor: int = 1
    filter: Mapping[str, Any] | None = None
    trace: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardAnswer:
    """scores float32 and ordinals int64 (n, k * k_factor), best first.

    second_scores float32, of the same shape: of the second codes, where the query has a k_factor.
    ids: of the places that are filled, row by row, where they are few; what is many is taken later,
    for the winners alone.
    """

    scores: np.ndarray
    ordinals: np.ndarray
    seconds: float = field(compare=False)
    second_scores: np.ndarray | None = None
    ids: list[int | str] | None = None


@dataclass(frozen=True)
class Item:
    """One row: what its longest code stands for, (dim,) float32, and its `uri`, if carried."""

    embedding: np.ndarray
    uri: str | None


class LoadedShard:
    """Codes, ids, and carried columns of one shard. Searched from several threads."""

    def __init__(
        self, index: Index, manifest: Manifest, shard: Shard, *, gpu: bool = False
    ) -> None:
        self.manifest = manifest
        self.shard = shard
        self.searcher = Searcher.load(index, manifest, shard, gpu=gpu)
        self.rows = Rows.load(index, manifest, shard)
        self.refiner = Refiner.load(index, manifest, shard)
        # What reading took comes back no more until the next version.
        pa.default_memory_pool().release_unused()

    def search(self, query: ShardQuery) -> ShardAnswer:
        """The best of this shard for every embedding. Raises InputError."""
        begin = time.perf_counter()
        keep = None
        if query.filter is not None:
            keep = self.rows.matching(parse_filter(query.filter, self.rows.schema))
        scores, ordinals = self.searcher.search(
            query.embeddings, query.k * query.k_factor, nprobe=query.nprobe or None, keep=keep
        )
        second = None
        if query.k_factor > 1 and self.refiner is not None:
            second = self.refiner.scores(query.embeddings, ordinals)
        ids = None
        if ordinals.size <= _FEW:
            ids = self.take(ordinals[ordinals != MISSING], ()).column("id").to_pylist()
        return ShardAnswer(scores, ordinals, time.perf_counter() - begin, second, ids)

    def take(self, ordinals: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """The id and `columns` of the rows `ordinals` (n,) of this shard, in that order."""
        return self.rows.take(ordinals, ["id", *columns])

    def find(self, id: int | str) -> Item | None:
        """The row `id`, or None if it is not here."""
        ordinal = self.rows.find(id)
        if ordinal is None:
            return None
        uri = None
        if "uri" in self.rows.schema.names:
            (uri,) = to_json(self.rows.take(np.array([ordinal]), ["uri"]).column("uri"))
        return Item((self.refiner or self.searcher).embedding(ordinal), uri)


def load_shard(
    index: Index,
    version: int,
    number: int,
    shards: int,
    allowed_bytes: int = 0,
    *,
    gpu: bool = False,
) -> LoadedShard:
    """Load shard `number` of `shards`, after checking that it fits (0: what is free here).

    gpu: scan its codes on the first GPU of this process. Raises DoesNotFitError with the numbers,
    ConfigError where there is no GPU for it, and whatever reading an index raises.
    """
    manifest = index.manifest(version)
    shard = plan_shards(manifest.files, shards)[number]
    check_fits(shard.rows, manifest.geometry, allowed_bytes or free_memory(), gpu=gpu)
    if gpu:
        check_gpu(manifest.geometry)
        check_fits_gpu(shard.rows, manifest.geometry, free_gpu_memory())
    try:
        return LoadedShard(index, manifest, shard, gpu=gpu)
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # the machine's, not Arrow's: no file is at fault
            with translated(index.storage, ""):
                raise
        raise IntegrityError(
            f"version {version} cannot be read: {error}; 'index verify' names the file"
        ) from error


def check_fits(rows: int, geometry: CodeGeometry, allowed_bytes: int, *, gpu: bool = False) -> None:
    """Raise DoesNotFitError where loading `rows` codes takes more memory than `allowed_bytes`."""
    cells, packed = geometry.nlist > 0, scans_fast(geometry)
    needed = rows * row_bytes(geometry.code_size, cells=cells, packed=packed, gpu=gpu)
    _check(rows, geometry, "", needed, allowed_bytes)


def check_fits_gpu(rows: int, geometry: CodeGeometry, allowed_bytes: int) -> None:
    """Raise DoesNotFitError where `rows` codes take more of a GPU than `allowed_bytes`."""
    needed = rows * (geometry.code_size + _GPU_LABEL_BYTES) + _GPU_WORK_BYTES
    _check(rows, geometry, " of the GPU", needed, allowed_bytes)


def _check(rows: int, geometry: CodeGeometry, where: str, needed: int, allowed: int) -> None:
    if needed > allowed:
        raise DoesNotFitError(
            f"{rows:,} codes of {geometry.code_size} bytes need {needed / 1e9:.3f} GB{where}, "
            f"{allowed / 1e9:.3f} GB are allowed; use more shards or larger replicas"
        )


def free_gpu_memory() -> int:
    """Bytes that are free on the first GPU of this process."""
    import torch  # only here: replicas without a GPU start faster without it

    return int(torch.cuda.mem_get_info()[0])


def free_memory() -> int:
    """Bytes that this process may still take: of the machine and, in a container, of its limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip() != "max":
        return min(free << 10, int(limit.read_text()) - int(used.read_text()))
    return free << 10
