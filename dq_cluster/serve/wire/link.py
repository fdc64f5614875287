"""The router's end of one connection to a replica."""

import asyncio
import itertools
from collections.abc import Callable
from typing import cast

from dq_cluster.errors import UnavailableError
from dq_cluster.serve.fanout import Failure
from dq_cluster.serve.wire import proof
from dq_cluster.serve.wire.frames import MAX_BYTES, Frame, FrameReader, Kind, WireError, pack
from dq_cluster.serve.wire.messages import unpack_failure

Address = tuple[str, int]
_CONNECT_S = 10.0


class Link(asyncio.Protocol):
    """A connection that carries many requests at once. Works within one event loop."""

    def __init__(self, secret: bytes, on_change: Callable[[], None]) -> None:
        """on_change: called when a request is answered and when the connection ends."""
        self._secret, self._on_change = secret, on_change
        self._nonce = proof.nonce()
        self._challenge = b""
        self._frames = FrameReader(MAX_BYTES)
        self._numbers = itertools.count(1)
        self._open: dict[int, asyncio.Future[Frame]] = {}
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.alive = True

    @classmethod
    async def to(cls, address: Address, secret: bytes, on_change: Callable[[], None]) -> "Link":
        """Connect, and be sure of each other. Raises OSError, TimeoutError, and WireError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_S):
            _, link = await loop.create_connection(lambda: cls(secret, on_change), *address)
            try:
                await link.ready
            except BaseException:
                link.close()
                raise
        return link

    @property
    def load(self) -> int:
        """Requests that have no answer yet, also those that nobody waits for any more."""
        return len(self._open)

    async def ask(self, kind: Kind, body: bytes) -> bytes | memoryview | Failure:
        """The body of the answer, or why there is none. Raises UnavailableError if it is lost."""
        if not self.alive:
            raise UnavailableError("the connection to a replica was lost")
        number = next(self._numbers) & 0xFFFFFFFF
        answer = asyncio.get_running_loop().create_future()
        self._open[number] = answer
        self._transport.writelines(pack(kind, number, body))
        # A caller that is cancelled does not free its place: the replica still works on it.
        frame = await asyncio.shield(answer)
        return unpack_failure(frame.body) if frame.kind is Kind.FAILURE else frame.body

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is of no such class

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.feed(data):
                self._take(frame)
        except WireError as error:
            if not self.ready.done():
                self.ready.set_exception(error)
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.alive = False
        if not self.ready.done():
            self.ready.set_exception(UnavailableError("a replica closed the connection"))
        lost, self._open = self._open, {}
        for answer in lost.values():
            if not answer.done():
                answer.set_exception(UnavailableError("the connection to a replica was lost"))
                answer.exception()  # the one who asked may have gone
        self._on_change()

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.ANSWER | Kind.FAILURE if self.ready.done():
                answer = self._open.pop(frame.request, None)
                if answer is not None and not answer.done():
                    answer.set_result(frame)
                self._on_change()
            case Kind.CHALLENGE if not self._challenge:
                self._challenge = bytes(frame.body)
                mine = proof.router_proof(self._secret, self._challenge, self._nonce)
                self._transport.writelines(pack(Kind.PROOF, 0, mine))
            case Kind.WELCOME if self._challenge and not self.ready.done():
                theirs = bytes(frame.body)
                if not proof.check_replica(self._secret, self._challenge, self._nonce, theirs):
                    raise WireError("who answers is no replica of this cluster")
                self.ready.set_result(None)
            case _:
                raise WireError(f"{frame.kind.name} is out of place")
