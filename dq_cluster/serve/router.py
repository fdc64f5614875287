"""The router, as Ray Serve runs it: the query engine over Serve's replicas."""

import asyncio
import logging
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from dq_cluster.errors import DqError, UnavailableError
from dq_cluster.index.catalog import Index
from dq_cluster.observe.exporter import expose
from dq_cluster.observe.log import configure_logging
from dq_cluster.observe.metrics import INDEX_VERSION
from dq_cluster.serve.api import IndexInfo, SearchRequest, SearchResponse, VersionInfo
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.engine import Engine
from dq_cluster.serve.grpc import GrpcService
from dq_cluster.serve.http import make_api
from dq_cluster.serve.keeper import FOLLOW_S
from dq_cluster.serve.local import list_versions
from dq_cluster.serve.memory import shared_secret
from dq_cluster.serve.security import Guard, read_keys
from dq_cluster.serve.served import Served
from dq_cluster.serve.versions import still_serving
from dq_cluster.serve.wire.link import Address
from dq_cluster.serve.wire.replicas import Replicas
from dq_cluster.v1 import search_pb2 as pb

logger = logging.getLogger(__name__)
_LOOK_S = 5.0  # how long replicas may take to say where they listen


@serve.ingress()
class Router:
    """Answers over HTTP from the version that VersionKeeper names."""

    async def __init__(  # type: ignore[misc]
        self, settings: ServeSettings, keeper: DeploymentHandle, shards: list[DeploymentHandle]
    ) -> None:
        configure_logging()
        expose("router")
        self.guard = Guard(read_keys(), settings.limits)
        self._settings, self._keeper = settings, keeper
        self._index = Index.at(settings.index)
        self._grpc = GrpcService(self, hide=self._index.storage.uri)
        self._name = uuid.uuid4().hex
        served = None
        version = await self._keeper.follow.remote(self._name, frozenset())
        while served is None or version != served.manifest.version:
            served = await self._load(version, served)
            version = await self._keeper.follow.remote(self._name, frozenset({served.layout}))
        secret = await asyncio.to_thread(shared_secret)
        self._engine = Engine(
            served, settings, Replicas([_Places(each) for each in shards], secret)
        )
        INDEX_VERSION.set(version)
        self._turning: asyncio.Task[None] | None = None
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
        """Raises NotFoundError, IntegrityError saying why a version was refused, StorageError and
        UnavailableError where something that it takes is away."""
        target = await asyncio.to_thread(self._index.current) if version is None else version
        await asyncio.to_thread(self._index.manifest, target)
        try:
            served = await self._load(target, self._engine.served)
            await self._switch(target)
            await self._adopt(served)
        except DqError as error:
            raise still_serving(self._serving, error) from error
        return served.info()

    @property
    def _serving(self) -> int:
        return self._engine.served.manifest.version

    async def _load(self, version: int, before: Served | None) -> Served:
        return await asyncio.to_thread(
            Served.load, self._index, version, self._settings, before, apart=True
        )

    async def _switch(self, version: int) -> None:
        try:
            refused = await self._keeper.switch.remote(version)
        except (RayError, RayServeException) as error:
            logger.warning("the keeper of versions failed", extra={"why": repr(error)})
            raise UnavailableError(
                f"who says what is served was lost on the way to version {version}; refresh again"
            ) from error
        if refused:
            raise refused

    async def _adopt(self, served: Served) -> None:
        """Answer from `served` from now on, unless something else is to be served by now."""
        in_use = self._engine.in_use() | {served.layout}
        try:
            version = await self._keeper.follow.remote(self._name, in_use)
        except (RayError, RayServeException):
            return  # the next time that this router asks
        if version == served.manifest.version:
            self._engine.serve(served)
            INDEX_VERSION.set(version)

    async def _follow_forever(self) -> None:
        """Report and ask, also while a version is being loaded: silence would mean the end."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                version = await self._keeper.follow.remote(self._name, self._engine.in_use())
            except Exception as error:
                logger.warning("cannot follow the served version", extra={"why": repr(error)})
                continue
            busy = self._turning is not None and not self._turning.done()
            if version != self._serving and not busy:
                self._turning = asyncio.ensure_future(self._turn(version))

    async def _turn(self, version: int) -> None:
        try:
            await self._adopt(await self._load(version, self._engine.served))
        except Exception as error:
            logger.warning("cannot follow the served version", extra={"why": repr(error)})


class _Places:
    """Where the replicas of a shard listen, asked over Serve's handle."""

    def __init__(self, shard: DeploymentHandle) -> None:
        self._shard = shard

    async def addresses(self) -> Sequence[Address]:
        answers = await self._shard.broadcast("address").results_async(
            timeout_s=_LOOK_S, return_exceptions=True
        )
        return [tuple(each) for each in answers if not isinstance(each, BaseException)]
