"""Micro-batching: queries that wait anyway are searched together.

A query that finds no batch of its kind under way starts one at once. While one is under way,
those that come share the next, which starts when the first is done or has taken unusually long.
So a single client pays nothing, many clients share the cost of asking the shards, and a shard
that hangs does not hold up the queries behind it.

Callers that were just answered tend to ask again at once. A batch waits a little for as many as
there lately were of its kind, or it would start with the quickest two and leave the others to wait
for those.
"""

import asyncio
import contextvars
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

K = TypeVar("K")
R = TypeVar("R")
_PATIENCE_S = 0.1
# A nap is as short as this only while the event loop has nothing to do. While it answers callers
# and takes in what they ask next, which can cost more than a search, it lasts as long as that.
_NAPS, _NAP_S = 8, 0.00025
_KINDS = 64  # of queries, whose number of callers is remembered


@dataclass(frozen=True)
class _Caller(Generic[R]):
    """Vectors (n, d), who waits for them, and the context (request id, trace) they came in."""

    vectors: np.ndarray
    future: asyncio.Future[tuple[slice, R]]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)


class Batcher(Generic[K, R]):
    """Runs `work(key, vectors)` with the vectors of several callers that have equal keys.

    limit: vectors of a batch of this key; more only where a single caller has more.
    """

    def __init__(
        self, work: Callable[[K, np.ndarray], Awaitable[R]], limit: Callable[[K], int]
    ) -> None:
        self._work = work
        self._limit = limit
        self._expected: OrderedDict[K, int] = OrderedDict()  # callers, where more than one
        self._waiting: dict[K, list[_Caller[R]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, key: K, vectors: np.ndarray) -> tuple[slice, R]:
        """The result of the batch that `vectors` (n, d) went into, and their places in it."""
        future: asyncio.Future[tuple[slice, R]] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(_Caller(vectors, future))
        else:
            self._waiting[key] = [_Caller(vectors, future)]
            self._spawn(self._drain(key))
        return await future

    async def _drain(self, key: K) -> None:
        """Start batches until nobody of this kind waits."""
        while self._waiting[key]:
            await self._gather(key)
            batch = self._take(key)
            # In the context of its first query, so that logs and traces do not name an older one.
            task = self._spawn(self._run_batch(key, batch), batch[0].context)
            await asyncio.wait({task}, timeout=_PATIENCE_S)
            self._expect(key, len(batch) + len(self._waiting[key]))
        del self._waiting[key]

    def _expect(self, key: K, callers: int) -> None:
        """Remember it for the next batch; forget the kind that was not asked for the longest."""
        self._expected.pop(key, None)
        if callers > 1:
            self._expected[key] = callers
        if len(self._expected) > _KINDS:
            self._expected.popitem(last=False)

    async def _gather(self, key: K) -> None:
        """Give the callers that are expected, or as many as fit a batch, a moment to come."""
        expected, limit = self._expected.get(key, 1), self._limit(key)
        for _ in range(_NAPS):
            waiting = self._waiting[key]
            vectors = sum(len(caller.vectors) for caller in waiting)
            if len(waiting) >= expected or vectors >= limit:
                return
            await asyncio.sleep(_NAP_S)

    async def _run_batch(self, key: K, batch: list[_Caller[R]]) -> None:
        try:
            result = await self._work(key, np.concatenate([c.vectors for c in batch]))
        except Exception as error:
            for caller in batch:
                if not caller.future.done():
                    caller.future.set_exception(error)
            return
        begin = 0
        for caller in batch:
            rows = len(caller.vectors)
            if not caller.future.done():
                caller.future.set_result((slice(begin, begin + rows), result))
            begin += rows

    def _spawn(
        self, work: Coroutine[Any, Any, None], context: contextvars.Context | None = None
    ) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _take(self, key: K) -> list[_Caller[R]]:
        """Remove from the queue as many callers as fit one batch, at least one."""
        waiting, limit = self._waiting[key], self._limit(key)
        count, rows = 1, len(waiting[0].vectors)
        while count < len(waiting) and rows + len(waiting[count].vectors) <= limit:
            rows += len(waiting[count].vectors)
            count += 1
        self._waiting[key] = waiting[count:]
        return waiting[:count]
