"""The router, as Ray Serve runs it: the query engine over Serve's replicas."""

import asyncio
import logging
import uuid
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from dq_cluster.errors import IntegrityError
from dq_cluster.index.catalog import Index
from dq_cluster.observe.exporter import expose
from dq_cluster.observe.log import configure_logging
from dq_cluster.observe.metrics import INDEX_VERSION
from dq_cluster.serve.api import IndexInfo, SearchRequest, SearchResponse, VersionInfo
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.engine import Engine, Served
from dq_cluster.serve.grpc import GrpcService
from dq_cluster.serve.http import make_api
from dq_cluster.serve.keeper import FOLLOW_S
from dq_cluster.serve.local import list_versions
from dq_cluster.serve.security import Guard, read_keys
from dq_cluster.v1 import search_pb2 as pb

logger = logging.getLogger(__name__)


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
        first = await self._keeper.follow.remote(self._name, None)

        # Plain data both ways: cloudpickle would only cost time, more than a small search does.
        plain = [
            shard.options(request_serialization="pickle", response_serialization="pickle")
            for shard in shards
        ]

        async def call(shard: int, method: str, argument: Any) -> Any:
            return await getattr(plain[shard], method).remote(argument)

        served = await asyncio.to_thread(Served.load, self._index, first, settings, apart=True)
        self._engine = Engine(served, settings, call)
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
        try:
            served = await self._load(target)
        except IntegrityError as error:
            raise IntegrityError(f"still serving version {self._serving}: {error}") from error
        refused = await self._keeper.switch.remote(target)
        if refused:
            raise IntegrityError(f"still serving version {self._serving}: {refused}")
        await self._serve(served)
        return served.info()

    @property
    def _serving(self) -> int:
        return self._engine.served.manifest.version

    async def _load(self, version: int) -> Served:
        before = self._engine.served
        return await asyncio.to_thread(
            Served.load, self._index, version, self._settings, before, apart=True
        )

    async def _serve(self, served: Served) -> None:
        self._engine.serve(served)
        INDEX_VERSION.set(self._serving)
        await self._keeper.follow.remote(self._name, self._serving)

    async def _follow_forever(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                wanted = await self._keeper.follow.remote(self._name, self._serving)
                if wanted != self._serving:
                    await self._serve(await self._load(wanted))
            except Exception as error:
                logger.warning("cannot follow the served version", extra={"why": repr(error)})
