"""The shards of a service, for the engine: which replicas there are, and which one is asked.

Serve starts, checks, and replaces the replicas; where each of them listens is asked over Serve's
handles, now and then and whenever a connection ends. The questions go over the connections.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa

from dq_cluster.errors import UnavailableError
from dq_cluster.search.placement import Layout
from dq_cluster.search.shard import Item, ShardAnswer, ShardQuery
from dq_cluster.serve.fanout import Failure
from dq_cluster.serve.wire import messages
from dq_cluster.serve.wire.frames import Kind
from dq_cluster.serve.wire.link import Address, Link

logger = logging.getLogger(__name__)

T = TypeVar("T")
_LOOK_S = 5.0  # how often new replicas are looked for
_LOOK_AGAIN_S = 0.5  # and while some are missing
_AT_ONCE = 64  # requests of one router that a replica has at most


class Places(Protocol):
    """Where the replicas of one shard listen."""

    async def addresses(self) -> Sequence[Address]:
        """Of those that answer. May raise."""


class ShardLinks:
    """Connections to the replicas of one shard."""

    def __init__(self, places: Places, secret: bytes) -> None:
        self._places, self._secret = places, secret
        self._links: dict[Address, Link] = {}
        self._changed = asyncio.Event()
        self._look = asyncio.Event()
        self._keeping = asyncio.ensure_future(self._keep_forever())

    async def ask(self, kind: Kind, body: bytes, deadline: float) -> messages.Body | Failure:
        """One answer; waits until `deadline` (time.monotonic()) for a replica that has room.

        Raises UnavailableError where none had, or the connection was lost.
        """
        while (link := self._pick()) is None:
            self._look.set()
            self._changed.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                busy = len(self._links)
                why = f"{busy} replicas, all of them busy" if busy else "no replica"
                raise UnavailableError(f"there is {why}") from None
        return await link.ask(kind, body)

    def close(self) -> None:
        self._keeping.cancel()
        for link in self._links.values():
            link.close()

    def _pick(self) -> Link | None:
        """The less busy of two random replicas (Mitzenmacher, "The Power of Two Choices", 2001);
        while a request has no answer its replica is busy, so one that hangs gets no more."""
        free = [link for link in self._links.values() if link.alive and link.load < _AT_ONCE]
        two = random.sample(free, min(2, len(free)))
        return min(two, key=lambda link: link.load, default=None)

    def _on_change(self) -> None:
        self._changed.set()
        if any(not link.alive for link in self._links.values()):
            self._look.set()

    async def _keep_forever(self) -> None:
        while True:
            self._look.clear()
            missing = await self._keep()
            if missing:
                await asyncio.sleep(_LOOK_AGAIN_S)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._look.wait()

    async def _keep(self) -> bool:
        """Connect to new replicas, forget those that are gone. Whether to look again soon."""
        self._links = {place: link for place, link in self._links.items() if link.alive}
        try:
            places = await self._places.addresses()
        except Exception as error:
            logger.warning("cannot ask where the replicas are", extra={"why": repr(error)})
            return True
        new = [place for place in places if place not in self._links]
        made = await asyncio.gather(*map(self._connect, new))
        return not self._links or not all(made)

    async def _connect(self, place: Address) -> bool:
        try:
            link = await Link.to(place, self._secret, self._on_change)
        except Exception as error:
            about = {"replica": place, "why": repr(error)}
            logger.warning("cannot connect to a replica", extra=about)
            return False
        self._links[place] = link
        self._changed.set()
        return True


class Replicas:
    """The shards behind connections, as the engine asks them."""

    def __init__(self, places: Sequence[Places], secret: bytes) -> None:
        self._shards = [ShardLinks(each, secret) for each in places]
        self._packed: tuple[ShardQuery, bytes] | None = None

    async def search(self, shard: int, query: ShardQuery, deadline: float) -> ShardAnswer | Failure:
        # Every shard is asked the same, one right after the other.
        if self._packed is None or self._packed[0] is not query:
            self._packed = query, messages.pack_query(query)
        answer = await self._shards[shard].ask(Kind.SEARCH, self._packed[1], deadline)
        return _read(answer, messages.unpack_answer)

    async def find(
        self, shard: int, layout: Layout, id: int | str, deadline: float
    ) -> Item | Failure | None:
        body = messages.pack_find(layout, id)
        return _read(await self._shards[shard].ask(Kind.FIND, body, deadline), messages.unpack_item)

    async def take(
        self,
        shard: int,
        layout: Layout,
        ordinals: np.ndarray,
        columns: tuple[str, ...],
        deadline: float,
    ) -> pa.Table | Failure:
        body = messages.pack_take(layout, ordinals, columns)
        return _read(
            await self._shards[shard].ask(Kind.TAKE, body, deadline), messages.unpack_table
        )

    def close(self) -> None:
        for shard in self._shards:
            shard.close()


def _read(answer: messages.Body | Failure, unpack: Callable[[messages.Body], T]) -> T | Failure:
    return answer if isinstance(answer, Failure) else unpack(answer)
