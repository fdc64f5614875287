"""An S3 endpoint on loopback that refuses a share of the requests, as a bucket under load does."""

import asyncio
import random
import threading

from aiohttp import ClientSession, web
from yarl import URL

_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_OF_THE_CONNECTION = ("transfer-encoding", "connection", "content-length")


class Throttle:
    """Passes requests on to the endpoint `target`, but answers `share` of them with 503 SlowDown.

    A refused request never reaches the target. Signatures stay valid: the client's own Host goes
    along.
    """

    def __init__(self, target: str, port: int, *, share: float, seed: int = 0) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.share = share
        self.refused = self.passed = 0
        self._target, self._port, self._random = target, port, random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Throttle":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _start(self) -> None:
        self._session = ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self._runner = web.AppRunner(app, auto_decompress=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self._random.random() < self.share:
            self.refused += 1
            return web.Response(status=503, body=_SLOW_DOWN, content_type="application/xml")
        self.passed += 1
        async with self._session.request(
            request.method,
            URL(self._target + request.raw_path, encoded=True),
            headers=request.headers,
            data=body,
            allow_redirects=False,
        ) as answer:
            content = await answer.read()
            head = request.method == "HEAD"  # its length is not that of what it brings
            dropped = _OF_THE_CONNECTION if not head else ("connection",)
            kept = [(k, v) for k, v in answer.headers.items() if k.lower() not in dropped]
            return web.Response(status=answer.status, headers=kept, body=None if head else content)
