"""The path of a query: embed, ask the shards, merge, say what happened. No Ray, no HTTP.

The router runs it against Serve's replicas, the local client against shards in its own process.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from dq_cluster.errors import InputError, NotFoundError, UnavailableError
from dq_cluster.index.ids import to_id
from dq_cluster.observe.metrics import STEP_SECONDS
from dq_cluster.observe.tracing import exemplar, trace_headers
from dq_cluster.search.filters import Filter, parse_filter
from dq_cluster.search.merge import MISSING
from dq_cluster.search.placement import Layout, owners
from dq_cluster.search.shard import Item, ShardAnswer, ShardQuery
from dq_cluster.serve.api import (
    CoverageError,
    Hit,
    SearchRequest,
    SearchResponse,
    ShardFailure,
)
from dq_cluster.serve.batcher import Batcher
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.fanout import Failure, Fanout
from dq_cluster.serve.hits import names_in, names_of, near_enough, to_hits, winners
from dq_cluster.serve.policy import coverage, time_left
from dq_cluster.serve.served import Served

# Of the time that a query has. A shard that does not answer may take all of it; the rest is for
# the ids of what the others found.
_SEARCHING = 0.8


class Shards(Protocol):
    """Where the shards are. All calls may raise; after an InputError none is asked again.

    deadline: of time.monotonic(), until which a call may wait for a replica.
    """

    async def search(self, shard: int, query: ShardQuery, deadline: float) -> ShardAnswer | Failure:
        """The best of `shard` for a batch of queries."""

    async def find(
        self, shard: int, layout: Layout, id: int | str, deadline: float
    ) -> Item | Failure | None:
        """The row `id`, or None where `shard` does not hold it."""

    async def take(
        self,
        shard: int,
        layout: Layout,
        ordinals: np.ndarray,
        columns: tuple[str, ...],
        deadline: float,
    ) -> pa.Table | Failure:
        """Id and columns of the rows `ordinals` (n,) of `shard`, in that order."""


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
class _Gathered:
    """The merged answer for one batch; `hits` for each query."""

    hits: list[list[Hit]]
    coverage: float
    timed_out: bool
    failed: list[ShardFailure]
    ms: dict[str, float]


class Engine:
    """Answers searches on one version at a time; `serve` switches it between two queries."""

    def __init__(self, served: Served, settings: ServeSettings, shards: Shards) -> None:
        self.settings = settings
        self._shards = shards
        self._fanout = Fanout(settings.shards)
        self._queries: Counter[Layout] = Counter()  # under way
        self.serve(served)

    def serve(self, served: Served) -> None:
        """Answer the queries that come from now on from `served`."""
        self.served = served
        # What waits in the one before goes on; nothing new keeps its version in memory.
        self._batcher: Batcher[_Batch, _Gathered] = Batcher(self._search, self._batch_limit)

    async def close(self) -> None:
        """Wait until nothing runs in the shards any more."""
        await self._fanout.close()

    def in_use(self) -> frozenset[Layout]:
        """What queries are answered from: the served version, and older ones."""
        return frozenset({self.served.layout, *self._queries})

    @contextlib.contextmanager
    def _pinned(self) -> Iterator[Served]:
        """The served version: a query keeps this one when another is switched to."""
        served = self.served
        self._queries[served.layout] += 1
        try:
            yield served
        finally:
            self._queries[served.layout] -= 1
            if not self._queries[served.layout]:
                del self._queries[served.layout]

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Raises InputError, NotFoundError (of an id), UnavailableError and CoverageError."""
        with self._pinned() as served:
            return await self._answer(request, served)

    async def _answer(self, request: SearchRequest, served: Served) -> SearchResponse:
        begin = time.perf_counter()
        batcher = self._batcher
        reranker, factor = served.reranking(request, self.settings)
        request.check(self.settings.limits, factor, reranker)
        unknown = set(request.include) - {"id", *served.manifest.columns}
        if unknown:
            raise InputError(
                f"include: the index carries no column {', '.join(sorted(unknown))}; "
                f"it carries {', '.join(served.manifest.columns) or 'none'}"
            )
        timeout_ms = request.timeout_ms or self.settings.timeout_ms
        kind, vectors = await self._subject(request, served, timeout_ms)
        prepared = time.perf_counter()
        if request.id is not None:
            timeout_ms = time_left(timeout_ms, 1e3 * (prepared - begin))
        batch = _Batch(
            served=served,
            k=request.k,
            nprobe=self.settings.nprobe if request.nprobe is None else request.nprobe,
            k_factor=factor,
            filter=parse_filter(request.filter, served.schema) if request.filter else None,
            columns=tuple(dict.fromkeys(name for name in request.include if name != "id")),
            timeout_ms=timeout_ms,
            kind=kind,
        )
        places, gathered = await batcher.run(batch, vectors)
        total = time.perf_counter() - begin
        ms = {"prepare": 1e3 * (prepared - begin), **gathered.ms}
        ms["queue"] = max(0.0, 1e3 * total - sum(ms.values()))
        ms["total"] = 1e3 * total
        response = SearchResponse.model_construct(
            hits=near_enough(gathered.hits[places], request.within),
            version=served.manifest.version,
            coverage=gathered.coverage,
            timed_out=gathered.timed_out,
            failed_shards=gathered.failed,
            shards=len(served.shards),
            ms={name: round(value, 3) for name, value in ms.items()},
        )
        min_coverage = request.min_coverage
        min_coverage = self.settings.min_coverage if min_coverage is None else min_coverage
        if gathered.coverage < min_coverage:
            why = "timed out" if gathered.timed_out else "failed"
            raise CoverageError(
                f"only {gathered.coverage:.4f} of the index was searched (shards {why}), "
                f"min_coverage is {min_coverage}; lower min_coverage to accept what there is",
                response,
            )
        return response

    async def picture(self, id: int | str) -> bytes:
        """A small JPEG of the image `id`, stored, or read from the `uri` that it carries.

        Raises NotFoundError for an unknown id and for an image that cannot be read, and
        UnavailableError where the shard that may hold it does not answer.
        """
        with self._pinned() as served:
            item = await self._find(id, served, self.settings.timeout_ms)
            return await asyncio.to_thread(served.picture, id, item)

    def _batch_limit(self, batch: "_Batch") -> int:
        """Queries of a batch: what one request may ask for, several together may not exceed."""
        each = batch.k * batch.k_factor
        return max(1, min(self.settings.batch, self.settings.limits.max_candidates // each))

    async def _subject(
        self, request: SearchRequest, served: Served, timeout_ms: int
    ) -> tuple[str, np.ndarray]:
        """What to search for: ("feature" or "embedding", vectors (n, d) float32)."""
        if request.text is not None or request.not_text is not None:
            return "embedding", await asyncio.to_thread(served.embedder.composed, request)
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
            size = len(vector)
            if size != expected:
                hint = f"; give a vector of {dim} as 'embedding'" if size == dim else ""
                raise InputError(f"a {kind} has {expected} dimensions, found {size}{hint}")
        with np.errstate(over="ignore"):  # checked next
            array = np.asarray(vectors, np.float32)
        if not np.isfinite(array).all():
            raise InputError(f"a {kind} has a value beyond the range of float32")
        return kind, array

    async def _find(self, id: int | str, served: Served, timeout_ms: int) -> Item:
        value = to_id(id, served.manifest.id_type)
        only = parse_filter({"id": value}, served.schema)
        shards = [
            number
            for number, shard in enumerate(served.shards)
            if any(only.may_match(entry) for entry in shard.files)
        ]
        version, deadline = served.manifest.version, time.monotonic() + timeout_ms / 1e3
        answers = await self._fanout.ask_all(
            lambda shard: self._shards.find(shard, served.layout, value, deadline),
            shards,
            deadline,
            kind="find",
        )
        for answer in answers:
            if isinstance(answer, Item):
                return answer
        for number, answer in zip(shards, answers, strict=True):
            if isinstance(answer, Failure):
                raise UnavailableError(
                    f"whether version {version} has id {id!r} is not known: shard {number} did "
                    f"not answer ({answer.reason}); ask again"
                )
        raise NotFoundError(f"version {version} has no id {id!r}")

    async def _search(self, batch: _Batch, vectors: np.ndarray) -> _Gathered:
        """Search for all `vectors` (n, d) of a batch."""
        clock = [time.perf_counter()]
        begin, seconds = time.monotonic(), batch.timeout_ms / 1e3
        if batch.kind == "feature":
            vectors = await asyncio.to_thread(batch.served.embedder.embed, vectors)
        clock.append(time.perf_counter())
        answers = await self._ask_shards(batch, vectors, begin + _SEARCHING * seconds)
        clock.append(time.perf_counter())
        hits = await self._name_winners(batch, len(vectors), answers, begin + seconds)
        clock.append(time.perf_counter())
        steps = dict(zip(("embed", "search", "merge"), np.diff(clock), strict=True))
        for step, seconds in steps.items():
            STEP_SECONDS.labels(step=step).observe(seconds, exemplar())
        rows = [shard.rows for shard in batch.served.shards]
        failures = {n: a for n, a in answers.items() if isinstance(a, Failure)}
        return _Gathered(
            hits=hits,
            coverage=coverage(rows, [number not in failures for number in range(len(rows))]),
            timed_out=any(failure.timed_out for failure in failures.values()),
            failed=[
                ShardFailure(shard=number, reason=failure.reason)
                for number, failure in failures.items()
                if not failure.timed_out
            ],
            ms={step: 1e3 * float(seconds) for step, seconds in steps.items()},
        )

    async def _ask_shards(
        self, batch: _Batch, vectors: np.ndarray, deadline: float
    ) -> dict[int, ShardAnswer | Failure]:
        """The best of each shard that may have some. Raises InputError that a shard raises."""
        served = batch.served
        query = ShardQuery(
            layout=served.layout,
            embeddings=vectors,
            k=batch.k,
            nprobe=batch.nprobe,
            k_factor=batch.k_factor,
            filter=None if batch.filter is None else batch.filter.spec,
            trace=trace_headers(),
        )
        shards = [
            number
            for number, shard in enumerate(served.shards)
            if shard.rows
            and (batch.filter is None or any(map(batch.filter.may_match, shard.files)))
        ]
        answers = await self._fanout.ask_all(
            lambda shard: self._shards.search(shard, query, deadline),
            shards,
            deadline,
            kind=_kind(batch, len(vectors)),
        )
        for answer in answers:
            if isinstance(answer, Failure) and answer.refused:
                raise InputError(answer.reason)
        return dict(zip(shards, answers, strict=True))

    async def _name_winners(
        self,
        batch: _Batch,
        queries: int,
        answers: dict[int, ShardAnswer | Failure],
        deadline: float,
    ) -> list[list[Hit]]:
        """Merge the answers, and ask the shards that hold winners for their ids and columns.

        One that can no longer say them has not answered: its Failure takes the place of its
        answer, and the others win.
        """
        while True:
            good = [answer for answer in answers.values() if isinstance(answer, ShardAnswer)]
            if not good:
                return [[] for _ in range(queries)]
            scores, ordinals = winners(good, batch.k)
            names = None if batch.columns else names_of(good)
            if names is None:
                rows = np.unique(ordinals[ordinals != MISSING])
                names, lost = await self._take(batch, rows, deadline)
                answers.update(lost)
                if lost:
                    continue
            return to_hits(scores, ordinals, names, batch.columns)

    async def _take(
        self, batch: _Batch, rows: np.ndarray, deadline: float
    ) -> tuple[dict[int, Sequence[Any]], dict[int, Failure]]:
        """Id and columns of the rows (n,), ascending ordinals; and the shards that did not say."""
        layout, shards = batch.served.layout, batch.served.shards
        owner = owners(shards, rows)
        parts = {int(number): rows[owner == number] for number in np.unique(owner)}
        tables = await self._fanout.ask_all(
            lambda shard: self._shards.take(shard, layout, parts[shard], batch.columns, deadline),
            list(parts),
            deadline,
            kind=("take", len(rows).bit_length() // 3, bool(batch.columns)),
        )
        names: dict[int, Sequence[Any]] = {}
        lost: dict[int, Failure] = {}
        for (number, part), table in zip(parts.items(), tables, strict=True):
            if isinstance(table, Failure):
                lost[number] = table
            else:
                names |= names_in(part, table)
        return names, lost


def _kind(batch: _Batch, queries: int) -> Hashable:
    """Of searches that take similar times: alike within a factor of eight in all that counts."""
    filtered = batch.filter is not None
    sizes = (queries, batch.k * batch.k_factor, batch.nprobe)
    return ("search", filtered, *((size.bit_length() + 2) // 3 for size in sizes))
