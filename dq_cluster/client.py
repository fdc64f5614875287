"""Python clients: the same calls on a running API and on an index without a server.

    with Client("http://localhost:8000", api_key="…") as client:   # or Client("demo/index")
        for hit in client.search(image=Path("cat.jpg"), k=5).hits[0]:
            print(hit.id, hit.score)

`AsyncClient` has the same methods as coroutines.
"""

import asyncio
import base64
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import httpx
import numpy as np

from dq_cluster import errors
from dq_cluster.config import validate_settings
from dq_cluster.errors import DqError, StorageError
from dq_cluster.serve.api import (
    CoverageError,
    IndexInfo,
    SearchRequest,
    SearchResponse,
    VersionInfo,
    parse_request,
)
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.security import AuthenticationError, LimitError

T = TypeVar("T")
Vectors = np.ndarray | Sequence[float] | Sequence[Sequence[float]]


class _Service(Protocol):
    async def search(self, request: SearchRequest) -> SearchResponse: ...
    async def info(self) -> IndexInfo: ...
    async def versions(self) -> list[VersionInfo]: ...
    async def refresh(self, version: int | None) -> IndexInfo: ...


class AsyncClient:
    """Coroutines over `target`: the URL of an API, or an index (a folder or s3://).

    api_key: for a URL. version: for an index, which version to search (default: the current
    one). Raises NotFoundError and IntegrityError for an index that cannot be loaded.
    """

    def __init__(
        self,
        target: str | Path,
        *,
        api_key: str | None = None,
        version: int | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self._http: httpx.AsyncClient | None = None
        self._service: _Service
        if str(target).startswith(("http://", "https://")):
            headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
            self._http = httpx.AsyncClient(base_url=str(target), headers=headers, timeout=timeout_s)
            self._service = _Remote(self._http)
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
        unknown id, and CoverageError where less than `min_coverage` of the index answered.
        """
        data = image.read_bytes() if isinstance(image, Path) else image
        given = {
            "vector": _plain(vector),
            "vectors": _plain(vectors),
            "embedding": _plain(embedding),
            "embeddings": _plain(embeddings),
            "id": id,
            "image": None if data is None else base64.b64encode(data),
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

    async def refresh(self, version: int | None = None) -> IndexInfo:
        """Search `version` from now on, by default the index's current one.

        Raises NotFoundError, or IntegrityError where the version was refused.
        """
        return await self._service.refresh(version)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class Client:
    """What AsyncClient does, without coroutines. Safe to use from several threads."""

    def __init__(
        self,
        target: str | Path,
        *,
        api_key: str | None = None,
        version: int | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self._client = AsyncClient(target, api_key=api_key, version=version, timeout_s=timeout_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def search(self, **asked: Any) -> SearchResponse:
        """See AsyncClient.search."""
        return self._run(self._client.search(**asked))

    def info(self) -> IndexInfo:
        """The version that is searched."""
        return self._run(self._client.info())

    def versions(self) -> list[VersionInfo]:
        """Every version of the index."""
        return self._run(self._client.versions())

    def refresh(self, version: int | None = None) -> IndexInfo:
        """See AsyncClient.refresh."""
        return self._run(self._client.refresh(version))

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

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def search(self, request: SearchRequest) -> SearchResponse:
        body = request.model_dump_json(exclude_unset=True)
        answer = await self._send("POST", "/v1/search", body)
        return SearchResponse.model_validate_json(answer)

    async def info(self) -> IndexInfo:
        return IndexInfo.model_validate_json(await self._send("GET", "/v1/index"))

    async def versions(self) -> list[VersionInfo]:
        answer = httpx.Response(200, content=await self._send("GET", "/v1/index/versions"))
        return [VersionInfo.model_validate(each) for each in answer.json()]

    async def refresh(self, version: int | None) -> IndexInfo:
        body = "{}" if version is None else f'{{"version": {version}}}'
        return IndexInfo.model_validate_json(await self._send("POST", "/v1/index/refresh", body))

    async def _send(self, method: str, path: str, body: str | None = None) -> bytes:
        try:
            answer = await self._http.request(
                method, path, content=body, headers={"Content-Type": "application/json"}
            )
        except httpx.HTTPError as error:
            raise StorageError(
                f"{self._http.base_url} does not answer: {error or type(error).__name__}"
            ) from error
        if answer.is_success:
            return answer.content
        raise _error(answer)


def _error(answer: httpx.Response) -> DqError:
    """The exception that the service raised."""
    try:
        body = answer.json()
        message, kind = str(body["error"]), str(body["kind"])
    except (ValueError, KeyError, TypeError):
        return DqError(f"{answer.url} answered {answer.status_code}: {answer.text[:200]}")
    if kind == CoverageError.__name__:
        return CoverageError(message, SearchResponse.model_validate(body["response"]))
    known: dict[str, type[DqError]] = {
        each.__name__: each
        for each in (*vars(errors).values(), AuthenticationError, LimitError)
        if isinstance(each, type) and issubclass(each, DqError)
    }
    return known.get(kind, DqError)(message)


def _plain(vectors: Vectors | None) -> Any:
    return vectors.tolist() if isinstance(vectors, np.ndarray) else vectors
