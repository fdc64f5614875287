"""One shard of one version, loaded: what a replica answers from. No Ray here."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from dq_cluster.errors import IntegrityError
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import row_schema
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.tombstones import deleted_ordinals
from dq_cluster.search.codebooks import Codebooks
from dq_cluster.search.decoder import Redecoder
from dq_cluster.search.filters import parse_filter
from dq_cluster.search.gpu import check_gpu
from dq_cluster.search.merge import MISSING
from dq_cluster.search.placement import Layout, Shard, plan_shards
from dq_cluster.search.refine import Refiner
from dq_cluster.search.room import check_fits, check_fits_gpu, free_gpu_memory, free_memory
from dq_cluster.search.rows import Rows
from dq_cluster.search.searcher import Searcher
from dq_cluster.search.segment_store import SegmentStore
from dq_cluster.search.segments import Segment, pack
from dq_cluster.search.selection import Selection, Selections
from dq_cluster.search.values import to_json
from dq_cluster.storage import translated

# Places of an answer whose ids come with it: asking for them again would take longer.
_FEW = 512


@dataclass(frozen=True)
class ShardQuery:
    """One batch for every shard: embeddings (n, dim) float32, how to search, and the trace.

    k_factor: candidates for each neighbour that the second code or the decoder re-ranks.
    filter: as users write it; every shard reads it against its own types.
    """

    layout: Layout
    embeddings: np.ndarray
    k: int
    nprobe: int = 0
    k_factor: int = 1
    filter: Mapping[str, Any] | None = None
    trace: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardAnswer:
    """scores float32 and ordinals int64 (n, k * k_factor), best first.

    second_scores float32, of the same shape: of the second or the decoded codes, where the query
    has a k_factor.
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
    """One row: what its longest code stands for, decoded where there is a decoder, (dim,) float32,
    its `uri`, if carried, and which row of the version it is."""

    embedding: np.ndarray
    uri: str | None
    ordinal: int


class LoadedShard:
    """Segments of one shard of one version. Searched from several threads."""

    def __init__(self, store: SegmentStore, index: Index, manifest: Manifest, shard: Shard) -> None:
        self.manifest, self.shard = manifest, shard
        schema = row_schema(index.storage, manifest)
        self.codebooks = codebooks = Codebooks.load(index.storage, manifest)
        # Held as long as this shard is: the store forgets a segment that nobody holds.
        segments = pack(shard.blocks, manifest.geometry.nlist)
        self.segments = store.get(manifest, schema, segments, codebooks)
        places = shard.places
        live = live_rows(segments, places.own(deleted_ordinals(index.storage, manifest)))
        self.searcher = Searcher([each.codes for each in self.segments], codebooks, places, live)
        self.rows = Rows([segment.rows for segment in self.segments], schema, places, live)
        self.refiner: Refiner | Redecoder | None = None
        if codebooks.second is not None:
            second = [each.second for each in self.segments if each.second is not None]
            self.refiner = Refiner(second, codebooks.second, places)
        elif codebooks.decoder is not None:
            codes = [each.codes.codes for each in self.segments]
            self.refiner = Redecoder(codes, codebooks.decoder, places)
        self._live = live
        self._selections = Selections(self.searcher.room, self.searcher.weight)

    def search(self, query: ShardQuery) -> ShardAnswer:
        """The best of this shard for every embedding. Raises InputError."""
        begin = time.perf_counter()
        keep = None
        if query.filter is not None:
            filter = parse_filter(query.filter, self.rows.schema)
            keep = self._selections.get(filter, lambda: self.rows.matching(filter))
        scores, ordinals = self.searcher.search(
            query.embeddings, query.k * query.k_factor, nprobe=query.nprobe or None, keep=keep
        )
        second = None
        if query.k_factor > 1 and self.refiner is not None:
            second = self.refiner.scores(query.embeddings, ordinals)
        ids = None
        if ordinals.size <= _FEW:
            ids = self.rows.ids(ordinals[ordinals != MISSING])
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
        return Item(self.embeddings(np.array([ordinal]))[0], uri, int(ordinal))

    def embeddings(self, ordinals: np.ndarray) -> np.ndarray:
        """What the longest codes of the rows `ordinals` (n,) stand for: (n, dim) float32."""
        return (self.refiner or self.searcher).embeddings(ordinals)

    def living(self, ordinals: np.ndarray) -> np.ndarray:
        """Those of the rows `ordinals` (n,) that are not deleted."""
        if self._live is None:
            return ordinals
        return ordinals[self._live.holds(self.searcher.places.rows_of(ordinals))]


def load_whole(index: Index, manifest: Manifest) -> LoadedShard:
    """A version in one piece. Raises what reading an index raises."""
    return LoadedShard(SegmentStore(index), index, manifest, plan_shards(manifest, 1)[0])


def live_rows(segments: Sequence[Segment], deleted: np.ndarray) -> Selection | None:
    """The rows of segments that are not `deleted` (n,), ascending; None where all are there."""
    if not len(deleted):
        return None
    starts = np.cumsum([0, *(segment.rows for segment in segments)])
    parts = np.split(deleted, deleted.searchsorted(starts[1:-1]))
    keep = []
    for start, segment, rows in zip(starts, segments, parts, strict=False):
        alive = np.ones(segment.rows, np.bool_)
        alive[rows - start] = False
        keep.append(alive)
    return Selection(keep)


def load_shard(
    store: SegmentStore,
    index: Index,
    layout: Layout,
    number: int,
    allowed_bytes: int = 0,
    *,
    gpu: bool = False,
) -> LoadedShard:
    """Load shard `number` of `layout`, after checking that it fits.

    allowed_bytes: for all its codes; 0: what is free here, for those that `store` does not have.
    gpu: whether the store puts codes on the first GPU of this process. Raises DoesNotFitError with
    the numbers, ConfigError where there is no GPU for it, and whatever reading an index raises.
    """
    manifest = index.manifest(layout.version)
    shard = plan_shards(manifest, layout.shards)[number]
    segments = pack(shard.blocks, manifest.geometry.nlist)
    missing = store.missing(manifest, row_schema(index.storage, manifest), segments)
    new = sum(segment.rows for segment in missing)
    counted = segments if allowed_bytes else missing
    rows = sum(segment.rows for segment in counted)
    allowed = allowed_bytes or free_memory()
    check_fits(rows, manifest.geometry, allowed, gpu=gpu, segments=counted)
    if gpu:
        check_gpu(manifest.geometry)
        check_fits_gpu(new, manifest.geometry, free_gpu_memory())
    try:
        return LoadedShard(store, index, manifest, shard)
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # the machine's, not Arrow's: no file is at fault
            with translated(index.storage, ""):
                raise
        raise IntegrityError(
            f"version {layout.version} cannot be read: {error}; 'index verify' names the file"
        ) from error
