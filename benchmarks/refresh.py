"""What a refresh costs after an append, deletes, and a rollback, beside the first load.

    python -m benchmarks.refresh --rows 40000000 --shards 2

A service with a small version is asked to refresh to one of `rows` random codes with random ids:
that is the first load. Then 1% is appended, 1,000 ids are deleted, and the service goes back,
refreshing each time. For each refresh: how long it took, what the replicas read (`rchar` of
/proc/<pid>/io, from a disk or from its cache), and the largest resident memory of a replica while
it went on, sampled, beside that before.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.processes import memory, replicas
from benchmarks.serve import DIM, make_codes, query_api
from dq_cluster import __version__
from dq_cluster.client import Client
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import code_table, write_code_file
from dq_cluster.index.manifest import Producer
from dq_cluster.index.sizing import FRAGMENT_ROWS
from dq_cluster.index.tombstones import delete_ids, live_ids
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.run import fast_serve

_SAMPLE_S = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=40_000_000)
    parser.add_argument("--bytes", type=int, default=16, help="per code")
    parser.add_argument("--nbits", type=int, default=4, choices=(4, 8))
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--folder", help="for the index (default: TMPDIR)")
    asked = parser.parse_args()
    fast_serve()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        os.environ["TMPDIR"] = folder
        uri = f"{folder}/index"
        m = asked.bytes * 8 // asked.nbits
        files = max(asked.shards, asked.rows // FRAGMENT_ROWS)
        small = make_codes(uri, 1000, m, asked.nbits)
        large = make_codes(uri, asked.rows, m, asked.nbits, files=files, random_ids=True)
        print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {vars(asked)}")
        rows = measure(Index.at(uri), small, large, asked.shards)
    first = rows[0]
    for row in rows:
        row["of first load"] = {
            "seconds": round(row["seconds"] / first["seconds"], 4),
            "bytes": round(row["read_mb"] / first["read_mb"], 4),
        }
        print(" | ".join(f"{name} {value}" for name, value in row.items()))
    print(json.dumps(rows))


def measure(index: Index, small: int, large: int, shards: int) -> list[dict[str, Any]]:
    where = {"index": index.storage.uri, "version": small}
    settings = ServeSettings(**where, shards=shards, port=0, timeout_ms=10_000)
    query = np.zeros(DIM, np.float32)
    rows = []
    with query_api(settings) as url, Client(url, timeout_s=settings.load_timeout_s) as client:

        def refresh(what: str, version: int) -> None:
            with watched() as seen:
                begin = time.perf_counter()
                client.refresh(version)
                seen["seconds"] = round(time.perf_counter() - begin, 3)
            assert client.search(embedding=query).version == version
            rows.append({"refresh": what, **seen})

        client.search(embedding=query)
        refresh("first load", large)
        refresh("1% appended", append(index))
        refresh("1,000 ids deleted", delete_some(index))
        refresh("rollback", large)
    return rows


@contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """What the replicas read and take, while the block runs."""
    pids = {name: pid for name, pid in replicas(os.getpid()).items() if name.startswith("Shard")}
    before = {name: memory(pid)["rss"] for name, pid in pids.items()}
    read = {name: characters(pid) for name, pid in pids.items()}
    largest = dict(before)
    done = threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_S):
            for name, pid in pids.items():
                largest[name] = max(largest[name], memory(pid)["rss"])

    sampler = threading.Thread(target=sample)
    sampler.start()
    seen: dict[str, Any] = {}
    try:
        yield seen
    finally:
        done.set()
        sampler.join()
    seen["read_mb"] = round(sum(characters(pid) - read[n] for n, pid in pids.items()) / 1e6, 1)
    seen["rss_mb"] = {name: round(before[name]) for name in pids}
    seen["largest_rss"] = {name: round(largest[name] / before[name], 3) for name in pids}


def characters(pid: int) -> int:
    """Bytes that a process has read, whether from a disk or from its cache."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


def append(index: Index) -> int:
    """Publish the current version with 1% more random codes."""
    old = index.manifest()
    rng = np.random.default_rng(1)
    rows = old.rows // 100
    entries = []
    for start in range(0, rows, FRAGMENT_ROWS):
        count = min(FRAGMENT_ROWS, rows - start)
        codes = rng.integers(0, 256, (count, old.geometry.code_size), dtype=np.uint8)
        ids = pa.array(rng.integers(0, 2**63 - 1, count))
        entries.append(
            write_code_file(
                index.storage,
                f"data/appended/part-{start:09d}.parquet",
                code_table(ids, codes, old.geometry),
                model=old.model,
                geometry=old.geometry,
            )
        )
    return index.publish(
        lambda version, parent: old.model_copy(
            update={
                "version": version,
                "parent": parent,
                "files": (*old.files, *entries),
                "rows": old.rows + rows,
                "producer": Producer(dq_cluster=__version__, run="appended"),
            }
        )
    ).version


def delete_some(index: Index) -> int:
    """Publish the current version without 1,000 ids of one file."""
    _, ids = next(live_ids(index.storage, index.manifest()))
    return delete_ids(index, ids[:1000]).version


if __name__ == "__main__":
    main()
