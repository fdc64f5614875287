"""The query API against bare faiss in one process, over the same codes.

    python benchmarks/serve.py --rows 1000000 --shards 4 --seconds 5

Codes are random: how fast a scan is does not depend on what the codes stand for. Every row of
the table is measured in the same run, one after the other, by a client in its own process.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.run import fast_serve, serving

if TYPE_CHECKING:  # the clients' processes need none of it
    import numpy as np

    from dq_cluster.index.catalog import Index
    from dq_cluster.index.models import ModelCard

DIM = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--nbits", type=int, default=4, choices=(4, 8))
    parser.add_argument("--bytes", type=int, default=16, help="per code")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--slow-serve", action="store_true", help="leave Serve's defaults")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        uri = f"{folder}/index"
        print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {vars(asked)}")
        make_codes(uri, asked.rows, asked.bytes * 8 // asked.nbits, asked.nbits)
        rows = bare_faiss(uri, asked.k, asked.seconds)
        if not asked.slow_serve:
            fast_serve()
        rows += served(uri, asked.shards, asked.k, asked.seconds)
    bare = max(row["qps"] for row in rows if row["case"].startswith("bare faiss"))
    for row in rows:
        row["of_bare"] = round(row["qps"] / bare, 3)
        print(" | ".join(f"{name} {value}" for name, value in row.items()))
    print(json.dumps(rows))


def make_codes(
    uri: str, rows: int, m: int, nbits: int, *, files: int = 16, random_ids: bool = False
) -> int:
    """Publish a version of random codes, with a model of random weights; returns its number."""
    import numpy as np
    import torch

    from dq_cluster.index.catalog import Index
    from dq_cluster.model.bundle import save_model
    from dq_cluster.model.config import ModelSettings
    from dq_cluster.model.deepquan import DeepQuan

    index = Index.at(uri)
    network = DeepQuan(
        ModelSettings(bits=m * nbits, nbits=nbits, dim=DIM, hidden=(64,), components=DIM), DIM
    )
    torch.nn.init.normal_(network.codebooks)
    card = save_model(index.storage, network, preprocessing={}, training={}, evaluation={})
    rng = np.random.default_rng(0)

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number in range(files):
            ids = np.arange(rows * number // files, rows * (number + 1) // files)
            codes = rng.integers(0, 256, (len(ids), card.geometry.code_size), dtype=np.uint8)
            yield rng.integers(0, 2**63 - 1, len(ids)) if random_ids else ids, codes

    return publish_codes(index, card, parts())


def publish_codes(
    index: "Index", card: "ModelCard", parts: "Iterable[tuple[np.ndarray, ...]]"
) -> int:
    """Publish a file of each part; returns the version.

    A part is ids (n,), codes (n, code_size), and second codes (n, refine_m) where the model has.
    """
    import pyarrow as pa

    from dq_cluster import __version__
    from dq_cluster.index.codefile import code_table, write_code_file
    from dq_cluster.index.manifest import Manifest, Producer

    entries = tuple(
        write_code_file(
            index.storage,
            f"data/{card.digest[:12]}/part-{number:05d}.parquet",
            code_table(
                pa.array(ids), codes, card.geometry, refine_codes=second[0] if second else None
            ),
            model=card.digest,
            geometry=card.geometry,
        )
        for number, (ids, codes, *second) in enumerate(parts)
    )
    published = index.publish(
        lambda version, parent: Manifest(
            version=version,
            model=card.digest,
            geometry=card.geometry,
            id_type="int64",
            files=entries,
            rows=sum(entry.rows for entry in entries),
            producer=Producer(dq_cluster=__version__, run="bench"),
        )
    )
    return published.version


def bare_faiss(uri: str, k: int, seconds: float) -> list[dict[str, Any]]:
    """The same codes in one faiss index in this process, at the best instruction set."""
    import faiss
    import numpy as np

    from dq_cluster.index.catalog import Index
    from dq_cluster.search.faiss_index import flat
    from dq_cluster.search.shard import load_whole

    index = Index.at(uri)
    begin = time.perf_counter()
    shard = load_whole(index, index.manifest())
    searcher, segments = shard.searcher, shard.segments
    loaded = time.perf_counter() - begin
    codes = np.vstack([each.codes.codes[np.arange(len(each.codes))] for each in segments])
    whole = flat(codes, shard.codebooks.vectors, searcher.geometry)
    queries = np.random.default_rng(1).normal(size=(64, DIM)).astype(np.float32)
    rows = []
    for name, search in (("bare faiss", whole.search), ("Searcher", searcher.search)):
        for batch in (1, 64):
            times = repeat(partial(search, queries[:batch], k), seconds / 2)
            rows.append(
                row(f"{name}, batch {batch}", batch, times, threads=faiss.omp_get_max_threads())
            )
    rows[0]["load_s"] = round(loaded, 2)
    rows[0]["simd"] = searcher.simd
    return rows


@contextlib.contextmanager
def query_api(settings: ServeSettings) -> Iterator[str]:
    """The URL of the query API, on a Ray of its own."""
    import ray

    ray.init(
        address="local",
        num_cpus=16,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    try:
        with serving(settings) as url:
            yield url
    finally:
        ray.shutdown()


@contextlib.contextmanager
def scratch_index(asked: argparse.Namespace) -> Iterator[str]:
    """An index of `asked.rows` 4-bit codes of 16 bytes; Serve is set to be fast."""
    fast_serve()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        uri = f"{folder}/index"
        make_codes(uri, asked.rows, 32, 4)
        print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {vars(asked)}")
        yield uri


def served(uri: str, shards: int, k: int, seconds: float) -> list[dict[str, Any]]:
    """The same codes behind the query API."""
    rows = []
    with query_api(ServeSettings(index=uri, shards=shards, cpus=1, port=0)) as url:
        for clients, batch in ((1, 1), (16, 1), (64, 1), (1, 64), (8, 64)):
            context = multiprocessing.get_context("spawn")
            with context.Pool(1) as pool:
                times, ms = pool.apply(drive, (url, clients, batch, k, seconds))
            found = row(f"API, {clients} clients, batch {batch}", batch, times, elapsed=seconds)
            found["shards_ms"] = round(statistics.median(m["search"] for m in ms), 2)
            found["in_router_ms"] = round(
                statistics.median(m["total"] - m["search"] for m in ms), 2
            )
            rows.append(found)
    return rows


def drive(
    url: str,
    clients: int,
    batch: int,
    k: int,
    seconds: float,
    embeddings: "np.ndarray | None" = None,
    k_factor: int = 1,
    nprobe: int = 0,
) -> tuple[list[float], list[dict[str, float]]]:
    """Latencies of `clients` connections that ask as fast as they are answered.

    They take turns at `embeddings` (n, dim), or all ask for the same random ones.
    """
    import asyncio

    import numpy as np

    host, port = url.removeprefix("http://").split(":")
    if embeddings is None:
        embeddings = np.random.default_rng(2).normal(size=(batch, DIM))
    head = f"POST /v1/search HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    questions = []
    for start in range(0, len(embeddings) - batch + 1, batch):
        asked = embeddings[start : start + batch].astype(float).round(4).tolist()
        probes = {"nprobe": nprobe} if nprobe else {}
        body = json.dumps({"embeddings": asked, "k": k, "k_factor": k_factor, **probes})
        questions.append(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    turns = itertools.cycle(questions)
    times: list[float] = []
    answers: list[bytes] = []

    async def client(until: float) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while (begin := time.perf_counter()) < until:
            writer.write(next(turns))
            headers = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not headers.startswith(b"http/1.1 200"):
                raise RuntimeError(headers.decode())
            if b"content-length: " in headers:
                size = int(headers.partition(b"content-length: ")[2].split(b"\r\n")[0])
                answer = await reader.readexactly(size)
            else:
                answer = b""
                while size := int(await reader.readline(), 16):
                    answer += await reader.readexactly(size)
                    await reader.readline()
                await reader.readline()
            times.append(time.perf_counter() - begin)
            if len(answers) < 500:
                answers.append(answer)
        writer.close()

    async def run(for_seconds: float) -> None:
        until = time.perf_counter() + for_seconds
        await asyncio.gather(*(client(until) for _ in range(clients)))

    asyncio.run(run(1))
    times.clear()
    answers.clear()
    asyncio.run(run(seconds))
    return times, [json.loads(answer)["ms"] for answer in answers]


def repeat(work: Callable[[], Any], seconds: float) -> list[float]:
    work()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < until:
        work()
        times.append(time.perf_counter() - begin)
    return times


def row(
    name: str, batch: int, times: list[float], elapsed: float | None = None, **more: Any
) -> dict[str, Any]:
    """Queries per second and latency percentiles of one measurement."""
    ordered = sorted(times)
    return {
        "case": name,
        "qps": round(batch * len(times) / (elapsed or sum(times))),
        **{
            f"p{share}_ms": round(
                1e3 * ordered[min(len(ordered) - 1, len(ordered) * share // 100)], 2
            )
            for share in (50, 95, 99)
        },
        **more,
    }


if __name__ == "__main__":
    main()
