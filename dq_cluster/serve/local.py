"""The same service without a server: every shard in this process."""

import asyncio
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dq_cluster.errors import DqError
from dq_cluster.index.catalog import Index
from dq_cluster.search.placement import Layout
from dq_cluster.search.segment_store import SegmentStore
from dq_cluster.search.shard import Item, LoadedShard, ShardAnswer, ShardQuery, load_shard
from dq_cluster.serve.api import IndexInfo, SearchRequest, SearchResponse, VersionInfo
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.engine import Engine
from dq_cluster.serve.held import Held
from dq_cluster.serve.security import Guard
from dq_cluster.serve.served import Served
from dq_cluster.serve.versions import still_serving


@dataclass(frozen=True, eq=False)
class _Loaded:
    served: Served
    shards: list[LoadedShard]


class _LocalShards:
    """Shards of this process, for the engine."""

    def __init__(self, held: Held[int, _Loaded]) -> None:
        self._held = held

    async def search(self, shard: int, query: ShardQuery, deadline: float) -> ShardAnswer:
        loaded = await self._held.get(query.layout.version)
        return await asyncio.to_thread(loaded.shards[shard].search, query)

    async def find(self, shard: int, layout: Layout, id: int | str, deadline: float) -> Item | None:
        loaded = await self._held.get(layout.version)
        return await asyncio.to_thread(loaded.shards[shard].find, id)

    async def take(
        self,
        shard: int,
        layout: Layout,
        ordinals: np.ndarray,
        columns: tuple[str, ...],
        deadline: float,
    ) -> pa.Table:
        loaded = await self._held.get(layout.version)
        return await asyncio.to_thread(loaded.shards[shard].take, ordinals, columns)


class LocalService:
    """Answers like the router, from shards loaded here. Use it within one event loop."""

    def __init__(self, settings: ServeSettings) -> None:
        """Raises NotFoundError and IntegrityError, as loading an index does."""
        self.guard = Guard(frozenset(), settings.limits)
        self._settings = settings
        self._index = Index.at(settings.index)
        self._store = SegmentStore(self._index, gpu=settings.gpus > 0)
        version = self._index.current() if settings.version is None else settings.version
        first = self._load(version)
        self._held: Held[int, _Loaded] = Held(self._load, {version: first})
        self._engine = Engine(first.served, settings, _LocalShards(self._held))
        self._refreshing = asyncio.Lock()

    async def search(self, request: SearchRequest) -> SearchResponse:
        try:
            return await self._engine.search(request)
        finally:
            self._release()

    async def picture(self, id: int | str) -> bytes:
        return await self._engine.picture(id)

    async def info(self) -> IndexInfo:
        return self._engine.served.info()

    async def versions(self) -> list[VersionInfo]:
        return await asyncio.to_thread(list_versions, self._index, self._serving)

    async def refresh(self, version: int | None) -> IndexInfo:
        """Raises NotFoundError, or IntegrityError saying why a version was refused."""
        async with self._refreshing:  # in the order of the calls: the last one decides
            target = await asyncio.to_thread(self._index.current) if version is None else version
            await asyncio.to_thread(self._index.manifest, target)
            try:
                served = (await self._held.get(target)).served
            except DqError as error:
                raise still_serving(self._serving, error) from error
            self._engine.serve(served)
        self._release()
        return served.info()

    async def close(self) -> None:
        """Wait until nothing runs in the shards any more."""
        await self._engine.close()

    @property
    def _serving(self) -> int:
        return self._engine.served.manifest.version

    def _release(self) -> None:
        """Forget the versions that no query is answered from; not while another is coming."""
        if not self._refreshing.locked():
            self._held.release({layout.version for layout in self._engine.in_use()})

    def _load(self, version: int) -> _Loaded:
        served = Served.load(self._index, version, self._settings)
        allowed, gpu = int(self._settings.memory_gb * 1e9), self._settings.gpus > 0
        shards = [
            load_shard(self._store, self._index, served.layout, number, allowed, gpu=gpu)
            for number in range(served.layout.shards)
        ]
        return _Loaded(served, shards)


def list_versions(index: Index, serving: int) -> list[VersionInfo]:
    """Every version of `index`, and which are current and served."""
    current = index.current()
    return [
        VersionInfo(version=v, current=v == current, serving=v == serving) for v in index.versions()
    ]
