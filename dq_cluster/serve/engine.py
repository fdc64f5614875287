"""The road of a query: embed, ask the shards, merge, say what happened. No Ray, no HTTP.

The router runs it against Serve's replicas, the local client against shards in its own process.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from dq_cluster.errors import InputError, NotFoundError
from dq_cluster.images.config import ImageLimits
from dq_cluster.images.decode import decode_image
from dq_cluster.images.guard import ApartPool
from dq_cluster.images.thumbnail import thumbnail
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import row_schema
from dq_cluster.index.ids import to_id
from dq_cluster.index.manifest import Manifest
from dq_cluster.observe.metrics import STEP_SECONDS
from dq_cluster.observe.tracing import exemplar, trace_headers
from dq_cluster.search.filters import Filter, parse_filter
from dq_cluster.search.placement import Shard, plan_shards
from dq_cluster.search.shard import Item, ShardQuery
from dq_cluster.serve.api import (
    CoverageError,
    Hit,
    IndexInfo,
    SearchRequest,
    SearchResponse,
    ShardFailure,
)
from dq_cluster.serve.batcher import Batcher
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.embed import Embedder
from dq_cluster.serve.fanout import Failure, Fanout
from dq_cluster.serve.hits import merge_hits
from dq_cluster.serve.policy import coverage

_DECODERS = 2  # images of queries that are decoded at once

Call = Callable[[int, str, Any], Awaitable[Any]]
"""call(shard, method, argument): `search` a ShardQuery, or `find` a (version, id)."""


@dataclass(frozen=True, eq=False)
class Served:
    """Everything the router knows about the one version that it serves.

    schema: of the id and the carried columns, which a filter can ask for.
    """

    manifest: Manifest
    schema: pa.Schema
    shards: tuple[Shard, ...]
    embedder: Embedder
    limits: ImageLimits

    @classmethod
    def load(
        cls,
        index: Index,
        version: int,
        settings: ServeSettings,
        before: "Served | None" = None,
        *,
        apart: bool = False,
    ) -> "Served":
        """Read what a router needs of `version`; keep the model of `before` if it is the same.

        apart: decode the images of queries in child processes, where they can do no harm.
        """
        manifest = index.manifest(version)
        limits = ImageLimits(
            max_bytes=settings.limits.max_body_bytes, max_pixels=settings.limits.max_pixels
        )
        if before is not None and before.manifest.model == manifest.model:
            embedder = before.embedder
        else:
            decode = ApartPool(limits, _DECODERS) if apart else partial(decode_image, limits=limits)
            embedder = Embedder(index.storage, manifest.model, decode)
        schema = row_schema(index.storage, manifest)
        shards = plan_shards(manifest.files, settings.shards)
        return cls(manifest, schema, shards, embedder, limits)

    def k_factor(self, asked: int | None, usual: int) -> int:
        """How many candidates for each neighbour are re-ranked. Raises InputError."""
        if self.manifest.geometry.refine_m:
            return asked or usual
        if asked is not None and asked > 1:
            raise InputError(
                f"version {self.manifest.version} has no second code to re-rank with; leave out "
                "k_factor, or train a model with refine_bits"
            )
        return 1

    def info(self) -> IndexInfo:
        geometry = self.manifest.geometry
        return IndexInfo(
            version=self.manifest.version,
            model=self.manifest.model,
            rows=self.manifest.rows - self.manifest.deleted,
            dim=geometry.dim,
            feature_dim=self.embedder.card.feature_dim,
            bits=geometry.code_size * 8,
            refine_bits=geometry.refine_m * 8,
            metric=geometry.metric,
            columns=list(self.manifest.columns),
            shards=len(self.shards),
            images=self.embedder.takes_images,
            evaluation=self.manifest.evaluation,
        )


@dataclass(frozen=True)
class _Batch:
    """What queries must share to be searched together: the version, and how to search."""

    served: Served
    k: int
    nprobe: int
    k_factor: int
    filter: Filter | None
    columns: tuple[str, ...]
    timeout_ms: int
    kind: str  # of the vectors: "feature" or "embedding"


@dataclass(frozen=True)
class _Found:
    """The merged answer for one batch; `hits` for each query."""

    hits: list[list[Hit]]
    coverage: float
    timed_out: bool
    failed: list[ShardFailure]
    ms: dict[str, float]


class Engine:
    """Answers searches on one version at a time; `serve` switches it between two queries."""

    def __init__(self, served: Served, settings: ServeSettings, call: Call) -> None:
        self.served = served
        self.settings = settings
        self._call = call
        self._fanout = Fanout(settings.shards)
        self._batcher: Batcher[_Batch, _Found] = Batcher(self._search, settings.batch)

    def serve(self, served: Served) -> None:
        """Answer the queries that come from now on from `served`."""
        self.served = served

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Raises InputError, NotFoundError (of an id), and CoverageError."""
        begin = time.perf_counter()
        request.check(self.settings.limits)
        served = self.served  # pinned: whatever is switched meanwhile, this query sees one version
        unknown = set(request.include) - {"id", *served.manifest.columns}
        if unknown:
            raise InputError(
                f"include: the index carries no column {', '.join(sorted(unknown))}; "
                f"it carries {', '.join(served.manifest.columns) or 'none'}"
            )
        timeout_ms = request.timeout_ms or self.settings.timeout_ms
        kind, vectors = await self._subject(request, served, timeout_ms)
        prepared = time.perf_counter()
        batch = _Batch(
            served=served,
            k=request.k,
            nprobe=self.settings.nprobe if request.nprobe is None else request.nprobe,
            k_factor=served.k_factor(request.k_factor, self.settings.k_factor),
            filter=parse_filter(request.filter, served.schema) if request.filter else None,
            columns=tuple(dict.fromkeys(name for name in request.include if name != "id")),
            timeout_ms=timeout_ms,
            kind=kind,
        )
        places, found = await self._batcher.run(batch, vectors)
        total = time.perf_counter() - begin
        ms = {"prepare": 1e3 * (prepared - begin), **found.ms}
        ms["queue"] = max(0.0, 1e3 * total - sum(ms.values()))
        ms["total"] = 1e3 * total
        response = SearchResponse.model_construct(
            hits=found.hits[places],
            version=served.manifest.version,
            coverage=found.coverage,
            timed_out=found.timed_out,
            failed_shards=found.failed,
            shards=len(served.shards),
            ms={name: round(value, 3) for name, value in ms.items()},
        )
        wanted = request.min_coverage
        wanted = self.settings.min_coverage if wanted is None else wanted
        if found.coverage < wanted:
            why = "timed out" if found.timed_out else "failed"
            raise CoverageError(
                f"only {found.coverage:.4f} of the index was searched (shards {why}), "
                f"min_coverage is {wanted}; lower min_coverage to accept what there is",
                response,
            )
        return response

    async def picture(self, id: int | str) -> bytes:
        """A small JPEG of the image `id`, read from the `uri` that the index carries.

        Raises NotFoundError for an unknown id and for an image that cannot be read.
        """
        item = await self._find(id, self.served, self.settings.timeout_ms)
        return await asyncio.to_thread(thumbnail, item.uri, self.served.limits)

    async def _subject(
        self, request: SearchRequest, served: Served, timeout_ms: int
    ) -> tuple[str, np.ndarray]:
        """What to search for: ("feature" or "embedding", vectors (n, d) float32)."""
        if request.image is not None:
            return "feature", await asyncio.to_thread(served.embedder.feature, request.image)
        if request.id is not None:
            item = await self._find(request.id, served, timeout_ms)
            return "embedding", item.embedding[None]
        kind = "feature" if request.vector or request.vectors else "embedding"
        vectors = (
            request.vectors or request.embeddings or [request.vector or request.embedding or []]
        )
        dim = served.manifest.geometry.dim
        expected = served.embedder.card.feature_dim if kind == "feature" else dim
        for vector in vectors:
            found = len(vector)
            if found != expected:
                hint = f"; give a vector of {dim} as 'embedding'" if found == dim else ""
                raise InputError(f"a {kind} has {expected} dimensions, found {found}{hint}")
        with np.errstate(over="ignore"):  # checked next
            array = np.asarray(vectors, np.float32)
        if not np.isfinite(array).all():
            raise InputError(f"a {kind} has a value beyond the range of float32")
        return kind, array

    async def _find(self, id: int | str, served: Served, timeout_ms: int) -> Item:
        wanted = to_id(id, served.manifest.id_type)
        only = parse_filter({"id": wanted}, served.schema)
        asked = [
            number
            for number, shard in enumerate(served.shards)
            if any(only.may_match(entry) for entry in shard.files)
        ]
        argument = (served.manifest.version, wanted)
        answers = await self._fanout.ask_all(
            lambda shard: self._call(shard, "find", argument),
            asked,
            time.monotonic() + timeout_ms / 1e3,
        )
        for answer in answers:
            if isinstance(answer, Item):
                return answer
        failed = [answer for answer in answers if isinstance(answer, Failure)]
        hint = f" in the shards that answered; {failed[0].reason}" if failed else ""
        raise NotFoundError(f"version {served.manifest.version} has no id {id!r}{hint}")

    async def _search(self, batch: _Batch, vectors: np.ndarray) -> _Found:
        """Search for all `vectors` (n, d) of a batch."""
        clock = [time.perf_counter()]
        served = batch.served
        if batch.kind == "feature":
            vectors = await asyncio.to_thread(served.embedder.embed, vectors)
        clock.append(time.perf_counter())
        query = ShardQuery(
            version=served.manifest.version,
            embeddings=vectors,
            k=batch.k,
            nprobe=batch.nprobe,
            k_factor=batch.k_factor,
            filter=batch.filter,
            columns=batch.columns,
            trace=trace_headers(),
        )
        asked = [
            number
            for number, shard in enumerate(served.shards)
            if shard.rows
            and (batch.filter is None or any(map(batch.filter.may_match, shard.files)))
        ]
        answers = await self._fanout.ask_all(
            lambda shard: self._call(shard, "search", query),
            asked,
            time.monotonic() + batch.timeout_ms / 1e3,
        )
        clock.append(time.perf_counter())
        for answer in answers:
            if isinstance(answer, Failure) and answer.refused:
                raise InputError(answer.reason)
        answered = [True] * len(served.shards)
        for number, answer in zip(asked, answers, strict=True):
            answered[number] = not isinstance(answer, Failure)
        good = [answer for answer in answers if not isinstance(answer, Failure)]
        hits = merge_hits(good, batch.k, batch.columns) if good else [[] for _ in vectors]
        clock.append(time.perf_counter())
        steps = dict(zip(("embed", "search", "merge"), np.diff(clock), strict=True))
        for step, seconds in steps.items():
            STEP_SECONDS.labels(step=step).observe(seconds, exemplar())
        return _Found(
            hits=hits,
            coverage=coverage([shard.rows for shard in served.shards], answered),
            timed_out=any(isinstance(a, Failure) and a.timed_out for a in answers),
            failed=[
                ShardFailure(shard=number, reason=answer.reason)
                for number, answer in zip(asked, answers, strict=True)
                if isinstance(answer, Failure) and not answer.timed_out
            ],
            ms={step: 1e3 * float(seconds) for step, seconds in steps.items()},
        )
