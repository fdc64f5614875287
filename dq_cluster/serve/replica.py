"""One replica of one shard, as Ray Serve runs it."""

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import faiss
import ray
from ray import serve

from dq_cluster.errors import DqError, IntegrityError, StorageError
from dq_cluster.index.catalog import Index
from dq_cluster.observe.exporter import expose
from dq_cluster.observe.log import configure_logging
from dq_cluster.observe.metrics import (
    SHARD_CODES,
    SHARD_LOAD_FAILURES,
    SHARD_LOAD_SECONDS,
    SHARD_SEARCH_SECONDS,
    timed,
)
from dq_cluster.observe.tracing import span
from dq_cluster.search.placement import Layout
from dq_cluster.search.segment_store import SegmentStore
from dq_cluster.search.shard import LoadedShard, load_shard
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.held import Held
from dq_cluster.serve.memory import shared_secret
from dq_cluster.serve.wire.frames import Kind
from dq_cluster.serve.wire.link import Address
from dq_cluster.serve.wire.messages import (
    Body,
    pack_answer,
    pack_item,
    pack_table,
    unpack_find,
    unpack_query,
    unpack_take,
)
from dq_cluster.serve.wire.server import ShardServer

logger = logging.getLogger(__name__)

T = TypeVar("T")
# Scanning so many takes about as long as handing the work to another thread and back.
_QUICK_CODES = 1 << 19
KEEPER = "Versions"  # the name of VersionKeeper's deployment


class ShardReplica:
    """One replica of one shard: the versions it holds, and a thread pool that searches them."""

    async def __init__(self, settings: ServeSettings, number: int) -> None:  # type: ignore[misc]
        configure_logging()
        expose("shard")
        self._settings, self._number = settings, number
        self._index = Index.at(settings.index)
        self._store = SegmentStore(self._index, gpu=settings.gpus > 0)
        self._held: Held[Layout, LoadedShard] = Held(self._read)
        # faiss spreads a batch over the CPUs; a second batch fills what its end leaves idle.
        self._pool = ThreadPoolExecutor(
            2,
            initializer=faiss.omp_set_num_threads,  # counts for the thread that calls it
            initargs=(max(1, math.ceil(settings.cpus)),),
        )
        faiss.omp_set_num_threads(1)  # of this thread, which does what is quick
        self._seconds = SHARD_SEARCH_SECONDS.labels(shard=number)
        app = serve.get_replica_context().app_name
        keeper = serve.get_deployment_handle(KEEPER, app)
        loaded, version = None, await keeper.serving.remote()
        while loaded != version:  # a switch meanwhile did not reach a replica that only starts
            refused = await self.load(Layout(version, settings.shards))
            if refused:
                raise refused
            loaded, version = version, await keeper.serving.remote()
        handlers = {Kind.SEARCH: self._search, Kind.FIND: self._find, Kind.TAKE: self._take}
        secret = await asyncio.to_thread(shared_secret)
        self._server = ShardServer(handlers, secret, hide=self._index.storage.uri)
        self._address = await self._server.listen(ray.util.get_node_ip_address())

    async def load(self, layout: Layout) -> DqError | None:
        """Load a version beside those held. Returns why it was refused, or None."""
        try:
            await self._held.get(layout)
        except DqError as error:
            return error
        return None

    def _read(self, layout: Layout) -> LoadedShard:
        """Raises StorageError where storage is away, and IntegrityError for any other reason."""
        version = layout.version
        about = {"shard": self._number, "version": version}
        allowed, gpu = int(self._settings.memory_gb * 1e9), self._settings.gpus > 0
        try:
            with SHARD_LOAD_SECONDS.labels(shard=self._number).time():
                shard = load_shard(self._store, self._index, layout, self._number, allowed, gpu=gpu)
        except DqError as error:
            SHARD_LOAD_FAILURES.labels(shard=self._number).inc()
            logger.error("version refused", extra={**about, "why": error})
            kind = StorageError if isinstance(error, StorageError) else IntegrityError
            raise kind(f"shard {self._number} refused version {version}: {error}") from None
        SHARD_CODES.labels(shard=self._number).set(shard.searcher.rows)
        logger.info("version loaded", extra={**about, "simd": shard.searcher.simd})
        return shard

    async def release(self, keep: frozenset[Layout]) -> None:
        """Forget all but those in `keep`."""
        self._held.release(keep)

    async def address(self) -> Address:
        """Where routers reach this replica."""
        return self._address

    async def __del__(self) -> None:
        self._server.close()

    async def _search(self, body: Body) -> bytes:
        query = unpack_query(body)
        traced = span("shard", query.trace, shard=self._number, version=query.layout.version)
        with traced, timed(self._seconds):
            answer = await self._run(
                query.layout,
                lambda shard: shard.search(query),
                lambda shard: shard.searcher.rows * len(query.embeddings) <= _QUICK_CODES,
            )
        return pack_answer(answer)

    async def _find(self, body: Body) -> bytes:
        layout, id = unpack_find(body)
        # It looks at a few pages of a local disk.
        return pack_item(await self._run(layout, lambda shard: shard.find(id), lambda _: True))

    async def _take(self, body: Body) -> bytes:
        layout, ordinals, columns = unpack_take(body)
        return pack_table(await self._run(layout, lambda shard: shard.take(ordinals, columns)))

    async def _run(
        self,
        layout: Layout,
        work: Callable[[LoadedShard], T],
        quick: Callable[[LoadedShard], bool] = lambda shard: False,
    ) -> T:
        # A replica that started during a switch missed the call to load. While it catches up, the
        # router's second request goes to another one.
        shard = await self._held.get(layout)
        if quick(shard):
            return work(shard)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, shard)
