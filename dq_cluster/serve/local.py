"""The same service without a server: every shard in this process."""

import asyncio
from typing import Any

from dq_cluster.errors import DqError, IntegrityError
from dq_cluster.index.catalog import Index
from dq_cluster.search.shard import LoadedShard, load_shard
from dq_cluster.serve.api import IndexInfo, SearchRequest, SearchResponse, VersionInfo
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.engine import Engine, Served
from dq_cluster.serve.security import Guard


class LocalService:
    """Answers like the router, from shards loaded here. Use it within one event loop."""

    def __init__(self, settings: ServeSettings) -> None:
        """Raises NotFoundError and IntegrityError, as loading an index does."""
        self.guard = Guard(frozenset(), settings.limits)
        self._settings = settings
        self._index = Index.at(settings.index)
        first = self._index.current() if settings.version is None else settings.version
        self._held: dict[int, list[LoadedShard]] = {}
        self._engine = Engine(self._load(first), settings, self._call)

    async def search(self, request: SearchRequest) -> SearchResponse:
        return await self._engine.search(request)

    async def picture(self, id: int | str) -> bytes:
        return await self._engine.picture(id)

    async def info(self) -> IndexInfo:
        return self._engine.served.info()

    async def versions(self) -> list[VersionInfo]:
        return list_versions(self._index, self._serving)

    async def refresh(self, version: int | None) -> IndexInfo:
        """Raises NotFoundError, or IntegrityError saying why a version was refused."""
        target = self._index.current() if version is None else version
        self._index.manifest(target)
        try:
            served = await asyncio.to_thread(self._load, target)
        except DqError as error:
            raise IntegrityError(f"still serving version {self._serving}: {error}") from error
        self._engine.serve(served)
        return served.info()

    @property
    def _serving(self) -> int:
        return self._engine.served.manifest.version

    def _load(self, version: int) -> Served:
        served = Served.load(self._index, version, self._settings)
        shards = self._settings.shards
        allowed = int(self._settings.memory_gb * 1e9)
        self._held[version] = [
            load_shard(self._index, version, number, shards, allowed, gpu=self._settings.gpus > 0)
            for number in range(shards)
        ]
        return served

    async def _call(self, shard: int, method: str, argument: Any) -> Any:
        if method == "search":
            held = self._held[argument.version][shard]
            return await asyncio.to_thread(held.search, argument)
        version, id = argument
        return await asyncio.to_thread(self._held[version][shard].find, id)


def list_versions(index: Index, serving: int) -> list[VersionInfo]:
    """Every version of `index`, and which are current and served."""
    current = index.current()
    return [
        VersionInfo(version=v, current=v == current, serving=v == serving) for v in index.versions()
    ]
