"""The replica's end of the data plane: answers the routers that know the secret."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from dq_cluster.errors import DqError, InputError
from dq_cluster.serve.fanout import Failure
from dq_cluster.serve.wire import proof
from dq_cluster.serve.wire.frames import (
    MAX_BYTES,
    MAX_BYTES_BEFORE_PROOF,
    Frame,
    FrameReader,
    Kind,
    WireError,
    pack,
)
from dq_cluster.serve.wire.messages import Body, pack_failure

logger = logging.getLogger(__name__)

# A body in, the body of the answer out.
Handlers = Mapping[Kind, Callable[[Body], Awaitable[bytes]]]
_AT_ONCE = 64  # requests of one connection; the next are read when some are answered
_PROOF_S = 10.0  # how long a new connection may take to show that it knows the secret


class ShardServer:
    """Listens, and runs a handler for each request. Works within one event loop.

    hide: text of errors that nobody outside may read (where the index lies).
    """

    def __init__(self, handlers: Handlers, secret: bytes, hide: str) -> None:
        self._handlers, self.secret, self._hide = handlers, secret, hide
        self._connections: set[_Connection] = set()
        self._listening: asyncio.Server | None = None

    async def listen(self, host: str) -> tuple[str, int]:
        """Start, on any free port of `host`; where that is."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: _Connection(self), host, 0)
        return host, self._listening.sockets[0].getsockname()[1]

    def close(self) -> None:
        if self._listening is not None:
            self._listening.close()
        for connection in tuple(self._connections):
            connection.close()

    def joined(self, connection: "_Connection") -> None:
        self._connections.add(connection)

    def left(self, connection: "_Connection") -> None:
        self._connections.discard(connection)

    async def answer(self, frame: Frame) -> tuple[Kind, bytes]:
        """The answer to one request. Raises WireError for one that means nothing."""
        try:
            return Kind.ANSWER, await self._handlers[frame.kind](frame.body)
        except WireError:
            raise
        except KeyError:
            raise WireError(f"{frame.kind.name} is no request") from None
        except DqError as error:
            why = str(error).replace(self._hide, "<index>")
            return Kind.FAILURE, pack_failure(Failure(why, refused=isinstance(error, InputError)))
        except Exception as error:
            logger.exception("a request failed")
            return Kind.FAILURE, pack_failure(Failure(type(error).__name__))


class _Connection(asyncio.Protocol):
    """One router."""

    def __init__(self, server: ShardServer) -> None:
        self._server = server
        self._nonce = proof.nonce()
        self._frames = FrameReader(MAX_BYTES_BEFORE_PROOF)
        self._known = False
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is of no such class
        self._server.joined(self)
        self._hurry = asyncio.get_running_loop().call_later(_PROOF_S, self._stranger)
        self._send(Kind.CHALLENGE, 0, self._nonce)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.feed(data):
                if self._known:
                    self._start(frame)
                else:
                    self._meet(frame)
        except WireError as error:
            self._refuse(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._hurry.cancel()
        self._server.left(self)
        for task in self._tasks:  # nobody is there to hear the answers
            task.cancel()

    def close(self) -> None:
        self._transport.close()

    def _meet(self, frame: Frame) -> None:
        of_router = None
        if frame.kind is Kind.PROOF and len(frame.body) == proof.PROOF_BYTES:
            of_router = proof.check_router(self._server.secret, self._nonce, bytes(frame.body))
        if of_router is None:
            raise WireError("it does not know the secret")
        self._hurry.cancel()
        self._known, self._frames.limit = True, MAX_BYTES
        welcome = proof.replica_proof(self._server.secret, self._nonce, of_router)
        self._send(Kind.WELCOME, 0, welcome)

    def _start(self, frame: Frame) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(frame))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        if len(self._tasks) >= _AT_ONCE:
            self._transport.pause_reading()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if len(self._tasks) < _AT_ONCE and not self._transport.is_closing():
            self._transport.resume_reading()

    async def _answer(self, frame: Frame) -> None:
        try:
            kind, body = await self._server.answer(frame)
        except WireError as error:
            self._refuse(error)
        else:
            self._send(kind, frame.request, body)

    def _send(self, kind: Kind, request: int, body: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.writelines(pack(kind, request, body))

    def _stranger(self) -> None:
        self._refuse(WireError(f"no proof within {_PROOF_S:g} s"))

    def _refuse(self, error: WireError) -> None:
        if not self._transport.is_closing():
            about = {"peer": self._transport.get_extra_info("peername"), "why": str(error)}
            logger.warning("a connection is closed", extra=about)
            self._transport.abort()
