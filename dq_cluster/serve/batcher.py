"""Micro-batching: queries that wait anyway are searched together.

At most two batches of a kind are under way, so that the shards work on one while the router reads
the questions and writes the answers of the other. A query that finds a place free starts at once;
those that come while none is free share the next batch. So a single client pays nothing, and many
clients share the cost of asking the shards. A batch that takes unusually long gives up its place:
a shard that hangs does not hold up the queries behind it.
"""

import asyncio
import contextvars
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

K = TypeVar("K")
R = TypeVar("R")
_AT_ONCE = 2
_PATIENCE_S = 0.1


@dataclass(frozen=True)
class _Caller(Generic[R]):
    """Vectors (n, d), who waits for them, and the context (request id, trace) they came in."""

    vectors: np.ndarray
    future: asyncio.Future[tuple[slice, R]]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)


class _Queue(Generic[R]):
    """The callers of one kind, and which of its batches hold a place."""

    def __init__(self) -> None:
        self.waiting: list[_Caller[R]] = []
        self.under_way: set[asyncio.Task[None]] = set()


class Batcher(Generic[K, R]):
    """Runs `work(key, vectors)` with the vectors of several callers that have equal keys."""

    def __init__(self, work: Callable[[K, np.ndarray], Awaitable[R]], most: int) -> None:
        self._work = work
        self._most = most
        self._queues: dict[K, _Queue[R]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, key: K, vectors: np.ndarray) -> tuple[slice, R]:
        """The result of the batch that `vectors` (n, d) went into, and their places in it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[slice, R]] = loop.create_future()
        self._queues.setdefault(key, _Queue()).waiting.append(_Caller(vectors, future))
        loop.call_soon(self._start, key)  # after those that arrived together with this one
        return await future

    def _start(self, key: K) -> None:
        """Start batches while there are callers and places."""
        queue = self._queues.get(key)
        if queue is None:
            return
        while queue.waiting and len(queue.under_way) < _AT_ONCE:
            batch = self._take(queue)
            # In the context of its first query, so that logs and traces do not name an older one.
            task = asyncio.get_running_loop().create_task(
                self._run_batch(key, batch), context=batch[0].context
            )
            self._tasks.add(task)
            queue.under_way.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(functools.partial(self._left, key))
            asyncio.get_running_loop().call_later(_PATIENCE_S, self._left, key, task)
        if not queue.waiting and not queue.under_way:
            del self._queues[key]

    def _left(self, key: K, task: asyncio.Task[None]) -> None:
        """A batch is done, or takes too long to keep its place."""
        if key in self._queues:
            self._queues[key].under_way.discard(task)
            self._start(key)

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

    def _take(self, queue: _Queue[R]) -> list[_Caller[R]]:
        """Remove from the queue as many callers as fit one batch, at least one."""
        count, rows = 1, len(queue.waiting[0].vectors)
        while count < len(queue.waiting) and (
            rows + len(queue.waiting[count].vectors) <= self._most
        ):
            rows += len(queue.waiting[count].vectors)
            count += 1
        taken, queue.waiting = queue.waiting[:count], queue.waiting[count:]
        return taken
