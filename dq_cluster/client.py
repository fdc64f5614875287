"""Python clients: the same calls on a running API and on an index without a server.

    with Client("http://localhost:8000", api_key="…") as client:   # or Client("demo/index")
        for hit in client.search(image=Path("cat.jpg"), k=5).hits[0]:
            print(hit.id, hit.score)

`AsyncClient` has the same methods as coroutines.
"""

import asyncio
import functools
import ipaddress
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx
import numpy as np
from pydantic import TypeAdapter, ValidationError

from dq_cluster.config import validate_settings
from dq_cluster.errors import ConfigError, DqError, InputError, NotFoundError, UnavailableError
from dq_cluster.serve.api import (
    CoverageError,
    IndexInfo,
    SearchRequest,
    SearchResponse,
    VersionInfo,
    parse_request,
)
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.service import Service
from dq_cluster.serve.status import error_class

P = ParamSpec("P")
T = TypeVar("T")
Vectors = np.ndarray | Sequence[float] | Sequence[Sequence[float]]

_LOAD_S = 900.0  # the service's own limit, load_timeout_s, is 600 unless set
_WAY_S = 5.0  # what a search may take beside waiting for shards


class AsyncClient:
    """Coroutines over `target`: the URL of an API, or an index (a folder or s3://).

    api_key: for a URL. version: for an index only, which version to search (default: the current
    one). timeout_s: how long a URL may take to answer; a search with a longer timeout_ms, and
    refresh, may take longer. trust_env: go through the proxy that the environment names
    (http_proxy, https_proxy, all_proxy, no_proxy); a target on this machine is asked directly.
    Raises NotFoundError and IntegrityError for an index that cannot be loaded, InputError for a
    URL that is none, and ConfigError for a proxy that cannot be used.
    """

    def __init__(
        self,
        target: str | Path,
        *,
        api_key: str | None = None,
        version: int | None = None,
        timeout_s: float = 30.0,
        trust_env: bool = True,
    ) -> None:
        self._remote: _Remote | None = None
        self._service: Service
        if str(target).lower().startswith(("http://", "https://")):
            if version is not None:
                raise InputError(
                    f"version {version}: a service answers from the version that it serves; leave "
                    "it out, or have the service switch with refresh"
                )
            self._remote = _Remote(str(target), api_key, timeout_s, trust_env)
            self._service = self._remote
        else:
            from dq_cluster.serve.local import LocalService

            asked = {"index": str(target), "version": version, "shards": 1}
            self._service = LocalService(validate_settings(ServeSettings, asked, "target"))

    async def search(
        self,
        *,
        vector: Vectors | None = None,
        vectors: Vectors | None = None,
        embedding: Vectors | None = None,
        embeddings: Vectors | None = None,
        id: int | str | None = None,
        image: bytes | Path | None = None,
        k: int = 10,
        nprobe: int | None = None,
        k_factor: int | None = None,
        timeout_ms: int | None = None,
        min_coverage: float | None = None,
        filter: Mapping[str, Any] | None = None,
        include: Sequence[str] = (),
    ) -> SearchResponse:
        """The nearest images to one subject, or to each of several; see SearchRequest.

        `image` is an encoded image or a file of one. Raises InputError, NotFoundError for an
        unknown id and an absent file, UnavailableError where the service does not answer, and
        CoverageError where less than `min_coverage` of the index answered.
        """
        given = {
            "vector": _plain(vector),
            "vectors": _plain(vectors),
            "embedding": _plain(embedding),
            "embeddings": _plain(embeddings),
            "id": id,
            "image": _read(image) if isinstance(image, Path) else image,
            "k": k,
            "nprobe": nprobe,
            "k_factor": k_factor,
            "timeout_ms": timeout_ms,
            "min_coverage": min_coverage,
            "filter": None if filter is None else dict(filter),
            "include": tuple(include),
        }
        request = parse_request({name: v for name, v in given.items() if v is not None})
        return await self._service.search(request)

    async def info(self) -> IndexInfo:
        """The version that is searched."""
        return await self._service.info()

    async def versions(self) -> list[VersionInfo]:
        """Every version of the index."""
        return await self._service.versions()

    async def refresh(self, version: int | None = None, *, timeout_s: float = _LOAD_S) -> IndexInfo:
        """Search `version` from now on, by default the index's current one.

        timeout_s: how long a URL may take. A service that was given up goes on loading, and says
        with `info` when it has switched. Raises NotFoundError, IntegrityError where the version
        was refused, and StorageError or UnavailableError where it may be asked again.
        """
        if self._remote is not None:
            return await self._remote.refresh(version, timeout_s)
        return await self._service.refresh(version)

    async def close(self) -> None:
        if self._remote is not None:
            await self._remote.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Client", P], T]:
    """The method of Client that waits for this one of AsyncClient."""

    @functools.wraps(method)
    def call(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(method(self._client, *args, **kwargs))

    return call


class Client:
    """What AsyncClient does, without coroutines. Safe to use from several threads."""

    def __init__(
        self,
        target: str | Path,
        *,
        api_key: str | None = None,
        version: int | None = None,
        timeout_s: float = 30.0,
        trust_env: bool = True,
    ) -> None:
        self._client = AsyncClient(
            target, api_key=api_key, version=version, timeout_s=timeout_s, trust_env=trust_env
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    search = _blocking(AsyncClient.search)
    info = _blocking(AsyncClient.info)
    versions = _blocking(AsyncClient.versions)
    refresh = _blocking(AsyncClient.refresh)

    def close(self) -> None:
        if not self._loop.is_closed():
            self._run(self._client.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Remote:
    """The service behind a URL."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float, trust_env: bool) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = _parsed_url(url)
        around = trust_env and not _is_this_machine(self._url.host)
        self._proxy = _proxy_of(self._url) if around else ""
        try:
            self._http = httpx.AsyncClient(
                base_url=self._url, headers=headers, timeout=timeout_s, trust_env=around
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:  # socks, or no proxy at all
            raise ConfigError(
                f"the proxy of the environment cannot be used: {error}; unset it, or name the "
                "host in no_proxy, or use trust_env=False"
            ) from None
        self._timeout_s = timeout_s

    async def search(self, request: SearchRequest) -> SearchResponse:
        body = request.model_dump_json(exclude_unset=True)
        asked_s = (request.timeout_ms or 0) / 1e3 + _WAY_S
        answer = await self._send("POST", "/v1/search", body, max(self._timeout_s, asked_s))
        return self._parsed(SearchResponse, answer)

    async def info(self) -> IndexInfo:
        return self._parsed(IndexInfo, await self._send("GET", "/v1/index"))

    async def versions(self) -> list[VersionInfo]:
        return self._parsed(list[VersionInfo], await self._send("GET", "/v1/index/versions"))

    async def refresh(self, version: int | None, timeout_s: float = _LOAD_S) -> IndexInfo:
        body = "{}" if version is None else f'{{"version": {version}}}'
        answer = await self._send("POST", "/v1/index/refresh", body, timeout_s)
        return self._parsed(IndexInfo, answer)

    async def close(self) -> None:
        await self._http.aclose()

    async def _send(
        self, method: str, path: str, body: str | None = None, timeout_s: float | None = None
    ) -> httpx.Response:
        limit = self._timeout_s if timeout_s is None else timeout_s
        try:
            answer = await self._http.request(
                method,
                path,
                content=body,
                headers={"Content-Type": "application/json"},
                timeout=httpx.Timeout(limit, connect=min(limit, self._timeout_s)),
            )
        except httpx.TimeoutException as error:
            raise UnavailableError(f"{self._where} does not answer within {limit:g} s") from error
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise UnavailableError(f"{self._where} does not answer: {why}") from error
        if answer.is_success:
            return answer
        raise self._error(answer)

    def _parsed(self, kind: type[T], answer: httpx.Response) -> T:
        try:
            return TypeAdapter(kind).validate_json(answer.content)
        except ValidationError:
            raise UnavailableError(
                f"{self._where} answers, but not as dq_cluster does: {answer.text[:200]}"
            ) from None

    def _error(self, answer: httpx.Response) -> DqError:
        """The exception that the service raised."""
        try:
            body = answer.json()
            message, kind = str(body["error"]), str(body["kind"])
            if kind == CoverageError.__name__:
                return CoverageError(message, SearchResponse.model_validate(body["response"]))
        except (ValueError, KeyError, TypeError):  # not of dq_cluster
            code = answer.status_code
            return error_class("", code)(f"{self._where} answers {code}: {answer.text[:200]}")
        return error_class(kind, answer.status_code)(message)

    @property
    def _where(self) -> str:
        return f"{self._url}{self._proxy}"


def _parsed_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        if parsed.host and (parsed.port or 0) < 2**16:
            return parsed
        why = "it has no host" if not parsed.host else f"a port is below 65536, not {parsed.port}"
    except httpx.InvalidURL as error:
        why = str(error)
    raise InputError(f"{url} is not a URL of an API: {why}")


def _is_this_machine(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


def _proxy_of(url: httpx.URL) -> str:
    """` through the proxy …`, for errors, without its password; empty where none is used."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.host):
        return ""
    return f" through the proxy {proxy.rpartition('@')[2]}"


def _read(image: Path) -> bytes:
    try:
        return image.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"image {image} does not exist") from None
    except OSError as error:
        raise InputError(f"image {image} cannot be read: {error.strerror}") from None


def _plain(vectors: Vectors | None) -> Any:
    return vectors.tolist() if isinstance(vectors, np.ndarray) else vectors
