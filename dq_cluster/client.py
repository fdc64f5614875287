"""Python clients: the same calls on a running API and on an index without a server.

    with Client("http://localhost:8000", api_key="…") as client:   # or Client("demo/index")
        for hit in client.search(image=Path("cat.jpg"), k=5).hits[0]:
            print(hit.id, hit.score)

`AsyncClient` has the same methods as coroutines.
"""

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import numpy as np

from dq_cluster.config import validate_settings
from dq_cluster.errors import InputError, NotFoundError
from dq_cluster.serve.api import (
    IndexInfo,
    SearchResponse,
    VersionInfo,
    parse_request,
)
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.remote import LOAD_S, RemoteService

if TYPE_CHECKING:  # it needs much more than asking a URL does
    from dq_cluster.serve.local import LocalService

P = ParamSpec("P")
T = TypeVar("T")
Vectors = np.ndarray | Sequence[float] | Sequence[Sequence[float]]


class AsyncClient:
    """Coroutines over `target`: the URL of an API, or an index (a folder or s3://).

    api_key: for a URL. version: for an index only, which version to search (default: the current
    one). timeout_s: how long a URL may take to answer; a search with a longer timeout_ms, and
    refresh, may take longer. trust_env: go through the proxy that the environment names
    (http_proxy, https_proxy, all_proxy, no_proxy); a target on this machine is asked directly.
    Raises NotFoundError and IntegrityError for an index that cannot be loaded, InputError for a
    URL that is none, and ConfigError for a proxy that cannot be used.
    """

    _service: "RemoteService | LocalService"

    def __init__(
        self,
        target: str | Path,
        *,
        api_key: str | None = None,
        version: int | None = None,
        timeout_s: float = 30.0,
        trust_env: bool = True,
    ) -> None:
        if str(target).lower().startswith(("http://", "https://")):
            if version is not None:
                raise InputError(
                    f"version {version}: a service answers from the version that it serves; leave "
                    "it out, or have the service switch with refresh"
                )
            self._service = RemoteService(str(target), api_key, timeout_s, trust_env)
        else:
            from dq_cluster.serve.local import LocalService

            settings = {"index": str(target), "version": version, "shards": 1}
            self._service = LocalService(validate_settings(ServeSettings, settings, "target"))

    async def search(
        self,
        *,
        vector: Vectors | None = None,
        vectors: Vectors | None = None,
        embedding: Vectors | None = None,
        embeddings: Vectors | None = None,
        id: int | str | None = None,
        image: bytes | Path | None = None,
        text: str | None = None,
        not_text: str | None = None,
        weights: Mapping[str, float] | None = None,
        k: int = 10,
        within: float | None = None,
        nprobe: int | None = None,
        k_factor: int | None = None,
        decode_factor: int | None = None,
        timeout_ms: int | None = None,
        min_coverage: float | None = None,
        filter: Mapping[str, Any] | None = None,
        include: Sequence[str] = (),
    ) -> SearchResponse:
        """The nearest images to one subject, or to each of several; see SearchRequest.

        `image` is an encoded image or a file of one; `text` may stand beside it. Raises InputError,
        NotFoundError for an unknown id and an absent file, UnavailableError where the
        service does not answer, and CoverageError where less than `min_coverage` of the index
        answered.
        """
        given = {
            "vector": _plain(vector),
            "vectors": _plain(vectors),
            "embedding": _plain(embedding),
            "embeddings": _plain(embeddings),
            "id": id,
            "image": _read(image) if isinstance(image, Path) else image,
            "text": text,
            "not_text": not_text,
            "weights": None if weights is None else dict(weights),
            "k": k,
            "within": within,
            "nprobe": nprobe,
            "k_factor": k_factor,
            "decode_factor": decode_factor,
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

    async def refresh(self, version: int | None = None, *, timeout_s: float = LOAD_S) -> IndexInfo:
        """Search `version` from now on, by default the index's current one.

        timeout_s: how long a URL may take. A service that was given up goes on loading, and says
        with `info` when it has switched. Raises NotFoundError, IntegrityError where the version
        was refused, and StorageError or UnavailableError where it may be asked again.
        """
        if isinstance(self._service, RemoteService):
            return await self._service.refresh(version, timeout_s)
        return await self._service.refresh(version)

    async def picture(self, id: int | str) -> bytes:
        """A small JPEG of an image of the index. Raises NotFoundError where none can be read."""
        return await self._service.picture(id)

    async def close(self) -> None:
        await self._service.close()

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
    picture = _blocking(AsyncClient.picture)

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


def _read(image: Path) -> bytes:
    try:
        return image.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"image {image} does not exist") from None
    except OSError as error:
        raise InputError(f"image {image} cannot be read: {error.strerror}") from None


def _plain(vectors: Vectors | None) -> Any:
    return vectors.tolist() if isinstance(vectors, np.ndarray) else vectors
