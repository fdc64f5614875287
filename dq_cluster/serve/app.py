"""The application on Ray Serve: one deployment per shard, a router, and who says what is served.

`build` is the import path that `serve deploy` and the Helm chart name.
"""

import asyncio
import contextlib
import logging
import math
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from dq_cluster.config import validate_settings
from dq_cluster.errors import DqError, InputError, IntegrityError
from dq_cluster.index.catalog import Index
from dq_cluster.observe.log import configure_logging
from dq_cluster.observe.metrics import (
    INDEX_VERSION,
    SHARD_CODES,
    SHARD_LOAD_FAILURES,
    SHARD_LOAD_SECONDS,
    SHARD_SEARCH_SECONDS,
)
from dq_cluster.observe.tracing import span
from dq_cluster.serve.api import IndexInfo, SearchRequest, SearchResponse, VersionInfo
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.engine import Engine, Served
from dq_cluster.serve.fanout import Failure
from dq_cluster.serve.grpc import GrpcService
from dq_cluster.serve.http import make_api
from dq_cluster.serve.local import list_versions
from dq_cluster.serve.security import Guard, read_keys
from dq_cluster.serve.shard import Item, LoadedShard, ShardAnswer, ShardQuery, load_shard
from dq_cluster.serve.versions import Versions
from dq_cluster.v1 import search_pb2 as pb

logger = logging.getLogger(__name__)

_FOLLOW_S = 0.5
_HEALTH = {"health_check_period_s": 2, "health_check_timeout_s": 10}


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application for ServeSettings given as plain values. Raises ConfigError."""
    settings = validate_settings(ServeSettings, dict(args), "serve")
    shards = [
        serve.deployment(
            ShardReplica,
            name=f"Shard{number}",
            num_replicas=settings.replicas,
            max_ongoing_requests=64,
            ray_actor_options={"num_cpus": settings.cpus},
            graceful_shutdown_timeout_s=5,
            **_HEALTH,
        ).bind(settings, number)
        for number in range(settings.shards)
    ]
    versions = serve.deployment(
        VersionKeeper, name="Versions", ray_actor_options={"num_cpus": 0}, **_HEALTH
    ).bind(settings, shards)
    return serve.deployment(
        Router,
        name="Router",
        num_replicas=settings.routers,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": settings.cpus},
        **_HEALTH,
    ).bind(settings, versions, shards)


class ShardReplica:
    """One replica of one shard: the versions it holds, and a thread pool that searches them."""

    async def __init__(self, settings: ServeSettings, number: int) -> None:  # type: ignore[misc]
        configure_logging()
        self._settings, self._number = settings, number
        self._index = Index.at(settings.index)
        self._held: dict[int, LoadedShard] = {}
        threads = max(1, math.ceil(settings.cpus))
        faiss.omp_set_num_threads(threads)
        self._pool = ThreadPoolExecutor(threads)
        app = serve.get_replica_context().app_name
        keeper = serve.get_deployment_handle("Versions", app)
        refused = await self.load(await keeper.serving.remote())
        if refused:
            raise IntegrityError(refused)

    async def load(self, version: int) -> str:
        """Load a version beside those held. Returns why it was refused, or an empty string."""
        if version in self._held:
            return ""
        try:
            with SHARD_LOAD_SECONDS.time(shard=self._number):
                self._held[version] = await asyncio.to_thread(
                    load_shard,
                    self._index,
                    version,
                    self._number,
                    self._settings.shards,
                    int(self._settings.memory_gb * 1e9),
                )
        except DqError as error:
            SHARD_LOAD_FAILURES.inc(shard=self._number)
            logger.error(
                "version refused", extra={"shard": self._number, "version": version, "why": error}
            )
            return f"shard {self._number} refused version {version}: {error}"
        SHARD_CODES.set(self._held[version].searcher.rows, shard=self._number)
        logger.info(
            "version loaded",
            extra={
                "shard": self._number,
                "version": version,
                "simd": self._held[version].searcher.simd,
            },
        )
        return ""

    async def release(self, keep: frozenset[int]) -> None:
        """Forget every version but those in `keep`."""
        self._held = {v: shard for v, shard in self._held.items() if v in keep}

    async def search(self, query: ShardQuery) -> ShardAnswer | Failure:
        """The shard's best for a batch of queries."""
        traced = span("shard", query.trace, shard=self._number, version=query.version)
        with SHARD_SEARCH_SECONDS.time(shard=self._number), traced:
            return await self._answer(query.version, lambda shard: shard.search(query))

    async def find(self, wanted: tuple[int, int | str]) -> Item | Failure | None:
        """The row of an id: `wanted` is (version, id)."""
        version, id = wanted
        return await self._answer(version, lambda shard: shard.find(id))

    async def _answer(self, version: int, work: Callable[[LoadedShard], Any]) -> Any:
        shard = self._held.get(version)
        if shard is None:
            return Failure(f"version {version} is not loaded")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, shard)
        except InputError as error:
            return Failure(str(error), refused=True)


class VersionKeeper:
    """Says which version is served; the only one, so that routers and replicas agree."""

    def __init__(self, settings: ServeSettings, shards: list[DeploymentHandle]) -> None:
        configure_logging()
        index = Index.at(settings.index)
        first = index.current() if settings.version is None else settings.version
        self._settings, self._shards = settings, shards
        self._versions = Versions(first)
        self._switching = asyncio.Lock()
        self._cleaning: asyncio.Task[None] | None = None

    async def serving(self) -> int:
        """The version that is served."""
        return self._versions.serving

    async def follow(self, router: str, version: int | None) -> int:
        """A router reports the version it answers from, and learns which it should."""
        return self._versions.report(router, version)

    async def switch(self, version: int) -> str:
        """Load `version` on every replica, then serve it. Returns why not, or an empty string."""
        async with self._switching:
            if version == self._versions.serving:
                return ""
            answers = await asyncio.gather(
                *(
                    shard.broadcast("load", version).results_async(
                        timeout_s=self._settings.load_timeout_s, return_exceptions=True
                    )
                    for shard in self._shards
                ),
                return_exceptions=True,
            )
            refused = _refusal(answers)
            if refused:
                await self._release(self._versions.needed())
                return refused
            self._versions.switch(version)
            self._cleaning = asyncio.ensure_future(self._release_when_unused())
            return ""

    async def _release_when_unused(self) -> None:
        while len(self._versions.needed()) > 1:
            await asyncio.sleep(_FOLLOW_S)
        # The last queries that routers started on the old version are still under way.
        await asyncio.sleep(self._settings.limits.max_timeout_ms / 1e3)
        await self._release(self._versions.needed())

    async def _release(self, keep: frozenset[int]) -> None:
        for shard in self._shards:
            with contextlib.suppress(TimeoutError):
                await shard.broadcast("release", keep).results_async(
                    timeout_s=10, return_exceptions=True
                )


def _refusal(answers: list[Any]) -> str:
    """Why a switch cannot happen, from every replica's answer to `load`; empty if it can.

    A replica that died or hangs does not hold up a switch while another of its shard is ready:
    Serve replaces it, and the new one loads what is served then.
    """
    for number, replicas in enumerate(answers):
        if isinstance(replicas, BaseException):
            return f"shard {number} did not load in time"
        refused = [answer for answer in replicas if isinstance(answer, str) and answer]
        if refused:
            return str(refused[0])
        if "" not in replicas:
            return f"shard {number} has no replica that could load"
    return ""


@serve.ingress()
class Router:
    """Answers over HTTP from the version that VersionKeeper names."""

    async def __init__(  # type: ignore[misc]
        self, settings: ServeSettings, keeper: DeploymentHandle, shards: list[DeploymentHandle]
    ) -> None:
        configure_logging()
        self.guard = Guard(read_keys(), settings.limits)
        self._settings, self._keeper = settings, keeper
        self._index = Index.at(settings.index)
        self._grpc = GrpcService(self, hide=self._index.storage.uri)
        self._name = uuid.uuid4().hex
        first = await self._keeper.follow.remote(self._name, None)

        async def call(shard: int, method: str, argument: Any) -> Any:
            return await getattr(shards[shard], method).remote(argument)

        self._engine = Engine(await self._load(first), settings, call)
        INDEX_VERSION.set(first)
        self._following = asyncio.ensure_future(self._follow_forever())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_api(
            self,
            max_body_bytes=self._settings.limits.max_body_bytes,
            hide=self._index.storage.uri,
        )

    # Serve's gRPC proxy calls the methods of SearchService by their names in the .proto.
    async def Search(self, request: pb.SearchRequest, grpc_context: Any) -> pb.SearchResponse:
        return await self._grpc.search(request, grpc_context)

    async def GetIndex(self, request: pb.GetIndexRequest, grpc_context: Any) -> pb.Index:
        return await self._grpc.info(grpc_context)

    async def ListVersions(
        self, request: pb.ListVersionsRequest, grpc_context: Any
    ) -> pb.ListVersionsResponse:
        return await self._grpc.versions(grpc_context)

    async def Refresh(self, request: pb.RefreshRequest, grpc_context: Any) -> pb.Index:
        return await self._grpc.refresh(request, grpc_context)

    async def search(self, request: SearchRequest) -> SearchResponse:
        return await self._engine.search(request)

    async def picture(self, id: int | str) -> bytes:
        return await self._engine.picture(id)

    async def info(self) -> IndexInfo:
        return self._engine.served.info()

    async def versions(self) -> list[VersionInfo]:
        return await asyncio.to_thread(list_versions, self._index, self._serving)

    async def refresh(self, version: int | None) -> IndexInfo:
        """Raises NotFoundError, or IntegrityError saying why a version was refused."""
        target = await asyncio.to_thread(self._index.current) if version is None else version
        served = await self._load(target)
        refused = await self._keeper.switch.remote(target)
        if refused:
            raise IntegrityError(f"still serving version {self._serving}: {refused}")
        await self._serve(served)
        return served.info()

    @property
    def _serving(self) -> int:
        return self._engine.served.manifest.version

    async def _load(self, version: int) -> Served:
        return await asyncio.to_thread(Served.load, self._index, version, self._settings)

    async def _serve(self, served: Served) -> None:
        self._engine.serve(served)
        INDEX_VERSION.set(self._serving)
        await self._keeper.follow.remote(self._name, self._serving)

    async def _follow_forever(self) -> None:
        while True:
            await asyncio.sleep(_FOLLOW_S)
            try:
                wanted = await self._keeper.follow.remote(self._name, self._serving)
                if wanted != self._serving:
                    await self._serve(await self._load(wanted))
            except Exception as error:
                logger.warning("cannot follow the served version", extra={"why": repr(error)})
