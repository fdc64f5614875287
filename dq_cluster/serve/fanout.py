"""Ask every shard, with a deadline; hedge the slow, retry the failed."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dq_cluster.errors import DqError, InputError
from dq_cluster.observe.metrics import HEDGES, RETRIES
from dq_cluster.serve.policy import Attempts, HedgeBudget, Latencies, Step, next_step

logger = logging.getLogger(__name__)

T = TypeVar("T")
_KINDS = 64  # of questions, whose latencies are remembered


@dataclass(frozen=True)
class Failure:
    """Why a shard gave no answer. `refused`: the question was wrong, asking again is useless."""

    reason: str
    timed_out: bool = False
    refused: bool = False


class Fanout:
    """Remembers how fast each shard usually is. Works within one event loop.

    Each kind of question has latencies of its own: what is quick for one is no measure for another.
    """

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._latencies: OrderedDict[Hashable, list[Latencies]] = OrderedDict()
        self._budget = HedgeBudget()
        self._stragglers: set[asyncio.Future[Any]] = set()

    async def ask_all(
        self,
        ask: Callable[[int], Awaitable[T]],
        shards: Sequence[int],
        deadline: float,
        kind: Hashable,
    ) -> list[T | Failure]:
        """One answer or Failure for each of `shards`; `deadline` is of time.monotonic().

        kind: of the question; those of one kind take similar times.
        """
        latencies = self._latencies_of(kind)
        return list(
            await asyncio.gather(*(self._ask(ask, s, deadline, latencies[s]) for s in shards))
        )

    async def close(self) -> None:
        """Wait for the requests that nobody waits for any more."""
        await asyncio.gather(*self._stragglers, return_exceptions=True)

    def _latencies_of(self, kind: Hashable) -> list[Latencies]:
        if kind not in self._latencies:
            self._latencies[kind] = [Latencies() for _ in range(self._shards)]
        self._latencies.move_to_end(kind)
        if len(self._latencies) > _KINDS:
            self._latencies.popitem(last=False)
        return self._latencies[kind]

    async def _ask(
        self,
        ask: Callable[[int], Awaitable[T]],
        shard: int,
        deadline: float,
        latencies: Latencies,
    ) -> T | Failure:
        begin = time.monotonic()
        hedge_at = begin + latencies.hedge_after()
        running: set[asyncio.Future[T]] = {self._send(ask, shard)}
        attempts, reason = Attempts(started=1, failed=0, hedged=False), ""
        while True:
            now = time.monotonic()
            step = next_step(attempts, now, deadline, hedge_at, self._budget.allows)
            match step:
                case Step.TIME_OUT:
                    return Failure(f"no answer in {now - begin:.2f} s", timed_out=True)
                case Step.FAIL:
                    return Failure(reason)
                case Step.HEDGE | Step.RETRY:
                    running.add(self._send(ask, shard))
                    if step is Step.HEDGE:
                        self._budget.spend()
                    (HEDGES if step is Step.HEDGE else RETRIES).labels(shard=shard).inc()
                    attempts = Attempts(
                        attempts.started + 1, attempts.failed, attempts.hedged or step is Step.HEDGE
                    )
                    continue
            until = deadline if attempts.hedged or now >= hedge_at else min(hedge_at, deadline)
            done, running = await asyncio.wait(
                running, timeout=until - now, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                answer = _outcome(task)
                if not isinstance(answer, Failure):
                    latencies.add(time.monotonic() - begin)
                    return answer
                if answer.refused:
                    return answer
                reason = answer.reason
                attempts = Attempts(attempts.started, attempts.failed + 1, attempts.hedged)

    def _send(self, ask: Callable[[int], Awaitable[T]], shard: int) -> asyncio.Future[T]:
        # A request that lost is not cancelled: while it is open, its replica counts as busy, and
        # Serve sends the next ones to others. That keeps queries away from a replica that hangs.
        self._budget.earn()
        task = asyncio.ensure_future(ask(shard))
        self._stragglers.add(task)
        task.add_done_callback(self._settled)
        return task

    def _settled(self, task: asyncio.Future[Any]) -> None:
        self._stragglers.discard(task)
        if not task.cancelled():
            task.exception()  # an answer that came too late may be an error: nobody asks


def _outcome(task: "asyncio.Future[T]") -> T | Failure:
    if task.cancelled():
        return Failure("cancelled")
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, InputError):
        return Failure(str(error), refused=True)
    # Only our own messages are meant for users; others may name hosts and paths.
    logger.warning("a shard's replica failed", extra={"why": repr(error)})
    return Failure(str(error) if isinstance(error, DqError) else type(error).__name__)
