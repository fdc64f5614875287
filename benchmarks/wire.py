"""The data plane alone: what a call from router to replica costs, beside grpc.aio.

    python -m benchmarks.wire --shards 1 4 32

Each shard is a process that answers at once, so that nothing but the calls is measured: the body
of one query of 64 dimensions goes out, 10 scores and ordinals come back. `core ms` is processor
time of the router's process for each call; p50 is of asking all shards at once.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import numpy as np
import uvloop

from dq_cluster.search.placement import Layout
from dq_cluster.search.shard import ShardAnswer, ShardQuery
from dq_cluster.serve.wire import messages
from dq_cluster.serve.wire.frames import Kind
from dq_cluster.serve.wire.link import Address
from dq_cluster.serve.wire.replicas import Replicas
from dq_cluster.serve.wire.server import ShardServer

SECRET = b"benchmark"
METHOD = "/Shard/Search"
QUERY = ShardQuery(layout=Layout(1, 1), embeddings=np.zeros((1, 64), np.float32), k=10)
ANSWER = messages.pack_answer(
    ShardAnswer(np.zeros((1, 10), np.float32), np.zeros((1, 10), np.int64), 0.0)
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4, 32])
    parser.add_argument("--queries", type=int, default=300)
    asked = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {vars(asked)}")
    rows = []
    for shards in asked.shards:
        for name, serve, ask in (("frames", _frames, _ask_frames), ("grpc.aio", _grpc, _ask_grpc)):
            for at_once in (1, 8):
                row = _measured(serve, ask, shards, asked.queries, at_once)
                rows.append({"case": name, "shards": shards, "queries at once": at_once, **row})
                print(" | ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(json.dumps(rows))


Serve = Callable[[], Awaitable[Address]]
Ask = Callable[[Sequence[Address]], Awaitable[Callable[[], Awaitable[object]]]]


def _measured(serve: Serve, ask: Ask, shards: int, queries: int, at_once: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    running = [context.Process(target=_shard, args=(serve, places)) for _ in range(shards)]
    try:
        for process in running:
            process.start()
        return uvloop.run(_router(ask, [places.get() for _ in running], queries, at_once))
    finally:
        for process in running:
            process.kill()
            process.join()


async def _router(
    ask: Ask, places: Sequence[Address], queries: int, at_once: int
) -> dict[str, float]:
    query = await ask(places)
    await query()
    taken: list[float] = []

    async def client() -> None:
        for _ in range(queries):
            begin = time.perf_counter()
            await query()
            taken.append(time.perf_counter() - begin)

    begin, work = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(at_once)))
    calls = len(taken) * len(places)
    return {
        "p50_ms": round(1e3 * float(np.median(taken)), 3),
        "router core ms per call": round(1e3 * (time.process_time() - work) / calls, 4),
        "ms per call": round(1e3 * (time.perf_counter() - begin) / calls, 4),
    }


def _shard(serve: Serve, places: Any) -> None:
    async def run() -> None:
        places.put(await serve())
        await asyncio.Event().wait()

    uvloop.run(run())


async def _frames() -> Address:
    async def search(body: messages.Body) -> bytes:
        messages.unpack_query(body)
        return ANSWER

    return await ShardServer({Kind.SEARCH: search}, SECRET, hide="").listen("127.0.0.1")


class _Place:
    def __init__(self, place: Address) -> None:
        self._place = place

    async def addresses(self) -> Sequence[Address]:
        return [self._place]


async def _ask_frames(places: Sequence[Address]) -> Callable[[], Awaitable[object]]:
    replicas = Replicas([_Place(place) for place in places], SECRET)

    def query() -> Awaitable[object]:
        deadline = time.monotonic() + 60
        return asyncio.gather(
            *(replicas.search(shard, QUERY, deadline) for shard in range(len(places)))
        )

    return query


async def _grpc() -> Address:
    async def search(body: bytes, context: Any) -> bytes:
        messages.unpack_query(body)
        return ANSWER

    server = grpc.aio.server()
    _, service, method = METHOD.split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(search)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    _servers.append(server)
    return "127.0.0.1", port


_servers: list[Any] = []  # one that nobody refers to stops


async def _ask_grpc(places: Sequence[Address]) -> Callable[[], Awaitable[object]]:
    channels = [grpc.aio.insecure_channel(f"{host}:{port}") for host, port in places]
    calls = [channel.unary_unary(METHOD) for channel in channels]

    def query() -> Awaitable[object]:
        body = messages.pack_query(QUERY)

        async def one(call: Any) -> ShardAnswer:
            return messages.unpack_answer(await call(body))

        return asyncio.gather(*map(one, calls))

    return query


if __name__ == "__main__":
    main()
