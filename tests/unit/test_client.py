"""The Python client: what its methods take, how long they wait, which way they go."""

import asyncio
import inspect
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.client import AsyncClient, Client
from dq_cluster.errors import (
    ConfigError,
    InputError,
    NotFoundError,
    UnavailableError,
)
from dq_cluster.serve.api import SearchRequest, parse_request
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.grpc import request_of
from dq_cluster.serve.http import make_api
from dq_cluster.serve.local import LocalService
from dq_cluster.serve.service import Service
from dq_cluster.v1 import search_pb2 as pb
from tests.support import make_model, make_version


class Hanging(LocalService):
    """Answers when `go` is set."""

    go = threading.Event()

    async def search(self, request: SearchRequest) -> Any:
        await self._wait()
        return await super().search(request)

    async def info(self) -> Any:
        await self._wait()
        return await super().info()

    async def refresh(self, version: int | None) -> Any:
        await self._wait()
        return await super().refresh(version)

    async def _wait(self) -> None:
        while not self.go.is_set():
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Hanging:
    uri = str(tmp_path_factory.mktemp("client") / "index")
    make_version(uri, make_model(uri), rows=300, files=2)
    made = Hanging(ServeSettings(index=uri, shards=1))
    made.go.set()
    return made


@pytest.fixture(scope="module")
def port(service: Hanging) -> Iterator[int]:
    api = make_api(service, max_body_bytes=1 << 20, hide="nothing")
    server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="warning"))
    socket = server.config.bind_socket()
    socket.listen()  # who connects before the server has started waits for it
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    yield socket.getsockname()[1]
    server.should_exit = True
    thread.join()


class _Proxy(BaseHTTPRequestHandler):
    """Answers itself what it was set to, and keeps what it was asked for."""

    answer: tuple[int, str] = (502, "no route")
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        code, text = self.answer
        self.send_response(code)
        if code == 301:
            self.send_header("Location", "https://elsewhere")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Proxy]]:
    """A proxy that the environment names, with a password."""
    kind = type("Proxy", (_Proxy,), {"asked": []})
    server = HTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{server.server_port}")
    yield kind
    server.shutdown()
    server.server_close()
    thread.join()


def test_both_clients_and_the_request_spell_the_same() -> None:
    for name in ("search", "info", "versions", "refresh", "close", "__init__"):
        one, other = (inspect.signature(getattr(kind, name)) for kind in (Client, AsyncClient))
        assert one.parameters == other.parameters, name
        assert getattr(Client, name).__doc__ == getattr(AsyncClient, name).__doc__, name
    asked = dict(inspect.signature(Client.search).parameters)
    del asked["self"]
    fields = {name: field.default for name, field in SearchRequest.model_fields.items()}
    assert {name: each.default for name, each in asked.items()} == fields
    calls = {name for name, each in vars(Service).items() if inspect.iscoroutinefunction(each)}
    assert calls <= set(vars(Client))


@given(st.binary(max_size=300))
def test_an_image_is_bytes_and_base64_only_in_json(data: bytes) -> None:
    request = parse_request({"image": data})
    assert request.image == data
    body = request.model_dump_json(exclude_unset=True)
    assert set(json.loads(body)) == {"image"}
    assert parse_request(body.encode()) == request
    assert parse_request(json.loads(body)) == request
    assert request_of(pb.SearchRequest(image=data)).image == data
    for broken in ('{"image": "AAA"}', '{"image": "A=AA"}', '{"image": 3}', '{"image": "é"}'):
        with pytest.raises(InputError, match="image"):
            parse_request(broken.encode())


def test_a_target_on_this_machine_is_asked_directly(port: int, proxy: type[_Proxy]) -> None:
    for host in ("127.0.0.1", "localhost", "LOCALHOST", "0.0.0.0"):
        with Client(f"http://{host}:{port}") as client:
            assert client.info().version == 1
    assert not proxy.asked


def test_another_target_goes_through_the_proxy_and_errors_say_so(
    port: int, proxy: type[_Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.1:{port}"  # which only the resolver knows to be this machine
    said = rf"http://127\.1:{port} through the proxy 127\.0\.0\.1:\d+ "
    with Client(url) as client:
        with pytest.raises(UnavailableError, match=said + "answers 502: no route") as failed:
            client.info()
        assert "secret" not in str(failed.value)
        proxy.answer = (200, "<html>log in</html>")
        with pytest.raises(UnavailableError, match=said + "answers, but not as dq_cluster does"):
            client.info()
        proxy.answer = (301, "")
        with pytest.raises(InputError, match="sends on to https://elsewhere: give that address"):
            client.info()
        assert proxy.asked == [f"{url}/v1/index"] * 3
    with Client(url, trust_env=False) as client:
        assert client.info().version == 1
    monkeypatch.setenv("no_proxy", "127.1")
    with Client(url) as client:
        assert client.info().version == 1
    assert len(proxy.asked) == 3


def test_a_proxy_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "127.0.0.1:9")
    with (
        Client("http://127.1:8") as client,
        pytest.raises(UnavailableError, match=r"through the proxy 127\.0\.0\.1:9 does not answer"),
    ):
        client.info()


@pytest.mark.parametrize("proxy", ["ftp://127.0.0.1:9", "http://127.0.0.1:port"])
def test_a_proxy_that_cannot_be_used_is_said(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(ConfigError, match="proxy"):
        Client("http://192.0.2.1:8000")
    Client("http://192.0.2.1:8000", trust_env=False).close()


@pytest.mark.parametrize("url", ["http://", "http://x:port", "http://[::1", "http://x:99999"])
def test_a_url_that_is_none_is_said(url: str) -> None:
    with pytest.raises(InputError, match="not a URL of an API"):
        Client(url)


def test_a_service_is_not_asked_for_another_version(port: int) -> None:
    with pytest.raises(InputError, match="version 3: a service answers from the version"):
        Client(f"http://127.0.0.1:{port}", version=3)


def test_a_file_that_is_not_there(service: Hanging, tmp_path: Path) -> None:
    with Client(service._index.storage.uri) as client:
        with pytest.raises(NotFoundError, match="does not exist"):
            client.search(image=tmp_path / "absent.png")
        with pytest.raises(InputError, match="cannot be read"):
            client.search(image=tmp_path)


def test_what_may_take_long_is_waited_for(service: Hanging, port: int) -> None:
    """A refresh, and a search that lets shards take longer, outlast the client's timeout."""
    service.go.clear()

    async def run() -> None:
        async with AsyncClient(f"http://127.0.0.1:{port}", timeout_s=0.3) as client:
            refresh = asyncio.ensure_future(client.refresh())
            search = asyncio.ensure_future(client.search(id=1, timeout_ms=9000))
            for call in (client.info(), client.refresh(timeout_s=0.3)):
                with pytest.raises(UnavailableError, match=r"does not answer within 0\.3 s"):
                    await call
            assert not refresh.done()
            assert not search.done()
            service.go.set()
            assert (await refresh).version == (await search).version == 1

    asyncio.run(run())


@pytest.mark.parametrize(("broken", "answered"), [(2, True), (3, False)])
def test_a_call_whose_connection_ends_is_made_again(broken: int, answered: bool) -> None:
    """As a proxy does with a connection that was idle, and a router that is killed."""
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head)
        if len(asked) > broken:
            body = b'[{"version": 1, "current": true, "serving": true}]'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
        elif len(asked) == 1:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")
            await writer.drain()
        elif len(asked) == 2:
            text = b"Internal Server Error"
            head = b"HTTP/1.1 500 No\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(text) + text)
            await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, AsyncClient(f"http://127.0.0.1:{port}") as client:
            if answered:
                assert [each.version for each in await client.versions()] == [1]
            else:
                with pytest.raises(UnavailableError, match="does not answer"):
                    await client.versions()
        assert len(asked) == 3

    asyncio.run(run())
