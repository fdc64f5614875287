"""Steady load on the query API: does the memory of its processes stay where it is?

    python -m benchmarks.steady --minutes 10

Clients ask single queries as fast as they are answered, ids and a carried column included, while
the resident memory of every replica, the router among them, and of Serve's other processes is
sampled. After a minute to warm up it should be flat: printed are the trend over the run and the
largest distance from the mean, in percent.
"""

import argparse
import json
import multiprocessing
import os
import time
from typing import Any

import numpy as np

from benchmarks.processes import memory, replicas
from benchmarks.serve import drive, query_api, scratch_index
from dq_cluster.serve.config import ServeSettings

_EVERY_S = 2.0
_WARM_UP_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="after a minute to warm up")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--clients", type=int, default=16)
    asked = parser.parse_args()
    with scratch_index(asked) as uri:
        queries, samples = measure(uri, asked.shards, asked.clients, 60 * asked.minutes)
    found = {name: trend(taken) for name, taken in sorted(samples.items())}
    print(f"{queries} queries in {asked.minutes:g} minutes")
    for name, each in found.items():
        print(
            f"{name:24s} {each['mean_mb']:7.1f} MB  trend {each['trend_percent']:+.2f}%  "
            f"within ±{each['deviation_percent']:.2f}%"
        )
    print(json.dumps({"queries": queries, "processes": found}))


def measure(
    uri: str, shards: int, clients: int, seconds: float
) -> tuple[int, dict[str, list[tuple[float, float]]]]:
    """Answered queries, and samples (seconds, MB) of every process under load."""
    samples: dict[str, list[tuple[float, float]]] = {}
    context = multiprocessing.get_context("spawn")
    # A machine that is briefly busy with something else must not end a run of minutes.
    settings = ServeSettings(index=uri, shards=shards, port=0, timeout_ms=10_000)
    with query_api(settings) as url, context.Pool(1) as pool:
        drive_for(pool, url, clients, _WARM_UP_S).wait()
        begin = time.perf_counter()
        load = drive_for(pool, url, clients, seconds)
        while not load.ready():
            for name, pid in replicas(os.getpid()).items():
                sample = (time.perf_counter() - begin, memory(pid)["rss"])
                samples.setdefault(f"{name} {pid}", []).append(sample)
            load.wait(_EVERY_S)
        queries = load.get()
    return queries, samples


def drive_for(pool: Any, url: str, clients: int, seconds: float) -> Any:
    """Start the load in its own process; the result will be the number of answers."""
    return pool.apply_async(answered, (url, clients, seconds))


def answered(url: str, clients: int, seconds: float) -> int:
    return len(drive(url, clients, 1, 10, seconds)[0])


def trend(samples: list[tuple[float, float]]) -> dict[str, float]:
    """Mean of the samples, what the fitted line gains over the run, and the largest distance."""
    seconds, values = np.array(samples).T
    mean = values.mean()
    slope = np.polyfit(seconds, values, 1)[0] if len(samples) > 1 else 0.0
    return {
        "mean_mb": round(mean, 2),
        "trend_percent": round(100 * slope * np.ptp(seconds) / mean, 3),
        "deviation_percent": round(100 * np.abs(values - mean).max() / mean, 3),
    }


if __name__ == "__main__":
    main()
