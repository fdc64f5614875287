"""What every surface (HTTP, gRPC, Python) needs of what answers, wherever that runs."""

from typing import Protocol

from dq_cluster.serve.api import IndexInfo, SearchRequest, SearchResponse, VersionInfo
from dq_cluster.serve.security import Guard


class Service(Protocol):
    """The calls of the query API."""

    async def search(self, request: SearchRequest) -> SearchResponse: ...
    async def info(self) -> IndexInfo: ...
    async def versions(self) -> list[VersionInfo]: ...
    async def refresh(self, version: int | None) -> IndexInfo: ...
    async def picture(self, id: int | str) -> bytes: ...


class ServedApi(Service, Protocol):
    """A Service with what a server adds: who may ask."""

    guard: Guard
