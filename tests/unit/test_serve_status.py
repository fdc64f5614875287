"""Every error, over HTTP and gRPC and back in the client, from a real server of each."""

import asyncio
import importlib
import pkgutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import uvicorn

import dq_cluster
from dq_cluster import errors
from dq_cluster.client import Client
from dq_cluster.errors import (
    DqError,
    InputError,
    IntegrityError,
    NotFoundError,
    StorageError,
    UnavailableError,
)
from dq_cluster.images.rejects import Reason, RejectError
from dq_cluster.index.catalog import Index
from dq_cluster.search.placement import Layout
from dq_cluster.serve.api import CoverageError, SearchResponse, parse_request
from dq_cluster.serve.config import Limits, ServeSettings
from dq_cluster.serve.grpc import GrpcService
from dq_cluster.serve.http import make_api
from dq_cluster.serve.local import LocalService
from dq_cluster.serve.security import AuthenticationError, LimitError
from dq_cluster.serve.status import STATUSES, status_of
from dq_cluster.v1 import search_pb2 as pb
from dq_cluster.v1.search_pb2_grpc import (
    SearchServiceServicer,
    SearchServiceStub,
    add_SearchServiceServicer_to_server,
)
from tests.support import make_model, make_version

SECRET = "/secret/place"


def kinds() -> set[type[DqError]]:
    """Every error of the package."""
    for module in pkgutil.walk_packages(dq_cluster.__path__, "dq_cluster."):
        importlib.import_module(module.name)
    found: set[type[DqError]] = set()
    waiting: list[type[DqError]] = [DqError]
    while waiting:
        kind = waiting.pop()
        found.add(kind)
        waiting += kind.__subclasses__()
    return {kind for kind in found if kind.__module__.startswith("dq_cluster.")}


def test_every_error_has_a_status() -> None:
    assert kinds() == set(STATUSES)
    for kind, status in STATUSES.items():
        assert grpc.StatusCode[status.grpc]
        if issubclass(kind, errors.UserError) and status.http >= 500:
            # The caller is told of what only the operator can mend, but not that it is his fault.
            assert kind in (errors.ConfigError, errors.StorageRefusedError)


def response(*, timed_out: bool) -> SearchResponse:
    return SearchResponse(
        hits=[[]], version=1, coverage=0.5, timed_out=timed_out, failed_shards=[], shards=2, ms={}
    )


# What the service raises, the status of HTTP and gRPC, and what the client raises for it.
RAISED: list[tuple[Exception, int, str, type[DqError]]] = [
    *(
        (kind("what, with the numbers"), status.http, status.grpc, kind)
        for kind, status in STATUSES.items()
        if kind not in (RejectError, CoverageError)
    ),
    (RejectError(Reason.CORRUPT), 400, "INVALID_ARGUMENT", DqError),
    (LimitError("too often", retry_after=0.3), 429, "RESOURCE_EXHAUSTED", LimitError),
    (CoverageError("too little", response(timed_out=False)), 503, "UNAVAILABLE", CoverageError),
    (CoverageError("too late", response(timed_out=True)), 504, "DEADLINE_EXCEEDED", CoverageError),
    (KeyError(SECRET), 500, "INTERNAL", DqError),
    (ZeroDivisionError(), 500, "INTERNAL", DqError),
]


class Failing(LocalService):
    """A service whose calls raise `error`, where there is one."""

    error: Exception | None = None

    async def search(self, request: Any) -> Any:
        if self.error:
            raise self.error
        return await super().search(request)


class Servicer(SearchServiceServicer):
    """The names that Serve's gRPC proxy calls, as the router has them."""

    def __init__(self, service: Failing) -> None:
        self._grpc = GrpcService(service, hide=SECRET)

    async def Search(self, request: pb.SearchRequest, context: Any) -> pb.SearchResponse:
        return await self._grpc.search(request, context)


class Surfaces:
    """One service over HTTP and over gRPC, on ports of this machine."""

    def __init__(self, service: Failing) -> None:
        self.service = service
        api = make_api(service, max_body_bytes=1 << 20, hide=SECRET)
        self._http = uvicorn.Server(uvicorn.Config(api, port=0, log_level="critical"))
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(240)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        rpc = grpc.aio.server()
        add_SearchServiceServicer_to_server(Servicer(self.service), rpc)
        self.grpc = f"127.0.0.1:{rpc.add_insecure_port('127.0.0.1:0')}"
        await rpc.start()
        serving = asyncio.ensure_future(self._http.serve())
        while not self._http.started:
            await asyncio.sleep(0.01)
        (socket,) = self._http.servers[0].sockets
        self.url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        self._http.should_exit = True
        await serving
        await rpc.stop(None)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surfaces]:
    uri = str(tmp_path_factory.mktemp("status") / "index")
    make_version(uri, make_model(uri), rows=300, files=2)
    made = Surfaces(Failing(ServeSettings(index=uri, shards=2)))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("error", "code", "status", "kind"), RAISED, ids=[repr(each[0])[:40] for each in RAISED]
)
def test_an_error_over_every_surface(
    surfaces: Surfaces, error: Exception, code: int, status: str, kind: type[DqError]
) -> None:
    surfaces.service.error = error
    try:
        answer = httpx.post(f"{surfaces.url}/v1/search", json={"id": 1}, trust_env=False)
        with Client(surfaces.url) as client, pytest.raises(DqError) as raised:
            client.search(id=1)
        with grpc.insecure_channel(surfaces.grpc) as channel, pytest.raises(grpc.RpcError) as rpc:
            SearchServiceStub(channel).Search(pb.SearchRequest(id=pb.Id(number=1)), timeout=240)
    finally:
        surfaces.service.error = None
    assert answer.status_code == code
    assert rpc.value.code() is grpc.StatusCode[status]
    assert type(raised.value) is kind
    told = (answer.json()["error"], str(raised.value), rpc.value.details())
    if isinstance(error, DqError):
        assert set(told) == {str(error)}
        assert answer.json()["kind"] == type(error).__name__
    else:
        assert set(told) == {
            f"internal error ({type(error).__name__}); the log of the service says more"
        }
    assert "Traceback" not in answer.text
    assert SECRET not in answer.text
    wait = status_of(error).retry_after_s
    assert answer.headers.get("Retry-After") == (None if wait is None else str(max(1, int(wait))))
    assert ("WWW-Authenticate" in answer.headers) == isinstance(error, AuthenticationError)
    if isinstance(raised.value, CoverageError):
        assert raised.value.response == response(timed_out=code == 504)


def test_the_secret_part_of_a_message_is_kept(surfaces: Surfaces) -> None:
    surfaces.service.error = StorageError(f"s3 at {SECRET}/data is away")
    try:
        answer = httpx.post(f"{surfaces.url}/v1/search", json={"id": 1}, trust_env=False)
    finally:
        surfaces.service.error = None
    assert answer.json()["error"] == "s3 at <index>/data is away"


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/v1/index/refresh", b'{"version": "x"}', 400),
        ("POST", "/v1/index/refresh", b'{"versoin": 1}', 400),
        ("POST", "/v1/index/refresh", b"{", 400),
        ("POST", "/v1/index/refresh", b"[1]", 400),
        ("GET", "/v1/nothing", b"", 404),
        ("GET", "/v1/search", b"", 405),
    ],
)
def test_what_the_framework_refuses_looks_the_same(
    surfaces: Surfaces, method: str, path: str, body: bytes, code: int
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.request(
        method, surfaces.url + path, content=body, headers=headers, trust_env=False
    )
    assert answer.status_code == code
    assert set(answer.json()) == {"error", "kind"}


@pytest.mark.parametrize("nested", ["[" * 100_000, '{"a":' * 100_000])
def test_a_form_of_endless_depth_is_refused(surfaces: Surfaces, nested: str) -> None:
    fields = {"id": (None, "1"), "filter": (None, nested)}
    answer = httpx.post(f"{surfaces.url}/v1/search", files=fields, trust_env=False)
    assert answer.status_code == 400
    assert "filter" in answer.json()["error"]


def test_storage_that_is_away_is_not_a_refused_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "index")
    card = make_model(uri)
    for seed in range(3):
        make_version(uri, card, rows=300, files=2, seed=seed)
    surfaces = Surfaces(Failing(ServeSettings(index=uri, version=1, shards=2)))

    def load(store: Any, index: Index, layout: Layout, *_: Any, **__: Any) -> Any:
        raise StorageError("away") if layout.version == 2 else IntegrityError("damaged")

    monkeypatch.setattr("dq_cluster.serve.local.load_shard", load)
    try:
        with Client(surfaces.url) as client:
            with pytest.raises(StorageError, match="still serving version 1: away"):
                client.refresh(2)
            with pytest.raises(IntegrityError, match="still serving version 1: damaged"):
                client.refresh(3)
            with pytest.raises(NotFoundError, match="has no version 4"):
                client.refresh(4)
            assert client.info().version == 1
    finally:
        surfaces.close()


def test_more_candidates_than_allowed_are_refused_with_the_numbers(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    make_version(uri, make_model(uri, refine_bits=64), rows=300, files=2)
    limits = Limits(max_candidates=10_000)
    service = LocalService(ServeSettings(index=uri, shards=2, batch=64, limits=limits))

    def ask(queries: int, k: int, **more: int) -> list[int]:
        asked = {"embeddings": [[0.0] * 16] * queries, "k": k, **more}
        found = asyncio.run(service.search(parse_request(asked)))
        return [len(hits) for hits in found.hits]

    assert ask(10, 250) == [250] * 10  # × 4 by default
    assert ask(100, 100, k_factor=1) == [100] * 100
    with pytest.raises(InputError, match=r"10 queries × k 251 × k_factor 4 are 10,040 candidates"):
        ask(10, 251)
    with pytest.raises(InputError, match=r"more than the 10,000 that one request may ask"):
        ask(1, 101, k_factor=100)

    async def together() -> set[int]:
        """Requests that may be searched together stay within the limit together."""
        sizes: set[int] = set()
        shards, search = service._engine._shards, service._engine._shards.search

        async def watched(shard: int, query: Any, deadline: float) -> Any:
            sizes.add(len(query.embeddings) * query.k * query.k_factor)
            return await search(shard, query, deadline)

        shards.search = watched  # type: ignore[method-assign]
        each = parse_request({"embeddings": [[0.0] * 16] * 3, "k": 100, "k_factor": 10})
        await asyncio.gather(*(service.search(each) for _ in range(20)))
        return sizes

    assert max(asyncio.run(together())) <= 10_000


def test_the_sizes_that_the_defaults_allow_are_allowed_together() -> None:
    limits = Limits()
    asked = {"embeddings": [[0.0]] * limits.max_batch, "k": limits.max_k}
    settings = ServeSettings(index="x")
    for factor in (settings.k_factor, settings.decode_factor):
        parse_request(asked).check(limits, factor)


def test_an_id_in_a_shard_that_does_not_answer_is_not_absent(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    make_version(uri, make_model(uri), rows=300, files=2)
    service = LocalService(ServeSettings(index=uri, shards=2))
    find = service._engine._shards.find

    async def broken(shard: int, layout: Layout, id: int | str, deadline: float) -> Any:
        if shard == 1:
            raise ConnectionError("the replica died")
        return await find(shard, layout, id, deadline)

    service._engine._shards.find = broken  # type: ignore[method-assign]
    with pytest.raises(UnavailableError, match="shard 1 did not answer"):
        asyncio.run(service.search(parse_request({"id": 299})))
    assert asyncio.run(service.search(parse_request({"id": 0}))).version == 1
