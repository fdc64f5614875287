"""One system of `benchmarks.peers` in a process of its own: build it, or load and measure it."""

import argparse
import json
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import descendants, memory
from benchmarks.systems import SYSTEMS, Api, K, Search

LOADS = ((1, 1), (16, 1), (64, 1), (1, 64))  # clients, queries in a request
_BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("build", "measure"))
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--target", type=float, default=0.9)
    asked = parser.parse_args()
    system = SYSTEMS[asked.system]
    if asked.step == "build":
        base = np.load(asked.data / "base.npy")
        begin = time.perf_counter()
        system.build(base, asked.folder)
        answer: Any = {"build_s": time.perf_counter() - begin}
    else:
        queries, exact = np.load(asked.data / "queries.npy"), np.load(asked.data / "exact.npy")
        before = resident()
        begin = time.perf_counter()
        with system.load(asked.folder) as search:
            search(queries[:1], system.efforts[0])
            loaded = time.perf_counter() - begin
            rows = measure(search, system.efforts, queries, exact, asked.target, asked.seconds)
            answer = {"load_s": loaded, "rss_mb": resident() - before, "rows": rows}
    print(json.dumps(answer))


def measure(
    search: Search,
    efforts: tuple[int, ...],
    queries: np.ndarray,
    exact: np.ndarray,
    target: float,
    seconds: float,
) -> list[dict[str, Any]]:
    """The least effort, and the least to reach `target`, or else the largest, under each load."""
    recalls: dict[int, float] = {}
    for effort in efforts:
        recalls[effort] = recall(search, effort, queries, exact)
        if recalls[effort] >= target:
            break
    return [
        {
            "effort": shown,
            "recall": recalls[shown],
            "loads": [
                under_load(search, shown, queries, clients, batch, seconds)
                for clients, batch in LOADS
            ],
        }
        for shown in dict.fromkeys([efforts[0], effort])
    ]


def recall(search: Search, effort: int, queries: np.ndarray, exact: np.ndarray) -> float:
    """recall@K: which share of the exact K nearest neighbours is found."""
    found = np.concatenate(
        [
            search(queries[start : start + _BATCH], effort)
            for start in range(0, len(queries), _BATCH)
        ]
    )
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found, exact, strict=True)]))


def under_load(
    search: Search, effort: int, queries: np.ndarray, clients: int, batch: int, seconds: float
) -> dict[str, float]:
    """Queries per second and latencies, in ms, of clients that ask as fast as they are answered."""
    if isinstance(search, Api):
        from benchmarks.serve import drive

        with multiprocessing.get_context("spawn").Pool(1) as pool:
            asked = (search.url, clients, batch, K, seconds, queries, effort)
            times, _ = pool.apply(drive, asked)
        elapsed = seconds
    else:
        begin = time.perf_counter()
        times = in_threads(search, effort, queries, clients, batch, seconds)
        elapsed = time.perf_counter() - begin  # a slow request ends late
    p50, p95, p99 = 1e3 * np.percentile(times, [50, 95, 99])
    return {"qps": batch * len(times) / elapsed, "p50": p50, "p95": p95, "p99": p99}


def in_threads(
    search: Search, effort: int, queries: np.ndarray, clients: int, batch: int, seconds: float
) -> list[float]:
    """Seconds that each request took."""
    times: list[float] = []
    until = time.perf_counter() + seconds

    def client(number: int) -> None:
        place = number * batch
        while (begin := time.perf_counter()) < until:
            place = place if place + batch <= len(queries) else 0
            search(queries[place : place + batch], effort)
            place += batch
            times.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def resident() -> float:
    """MB of this process and all below it."""
    return sum(memory(pid)["rss"] for pid in descendants(os.getpid()))


if __name__ == "__main__":
    main()
