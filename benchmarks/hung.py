"""Latency while one replica hangs, against latency while all are healthy.

    python -m benchmarks.hung --seconds 8

Two replicas of every shard; one is stopped by SIGSTOP, as a machine that swaps or a disk that
stalls would stop it. Serve takes its time to notice, so until then only the router's hedges keep
answers coming. Printed is p99 in both phases of one run, and their ratio.
"""

import argparse
import json
import multiprocessing
import os
import signal
from typing import Any

from benchmarks.processes import replicas
from benchmarks.serve import drive, query_api, row, scratch_index
from dq_cluster.serve.config import ServeSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8, help="of each phase")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    asked = parser.parse_args()
    with scratch_index(asked) as uri:
        phases = measure(uri, asked.shards, asked.clients, asked.seconds)
    for phase in phases:
        print(" | ".join(f"{name} {value}" for name, value in phase.items()))
    healthy, hung = (phase["p99_ms"] for phase in phases)
    print(f"p99 with one hung replica is {hung / healthy:.2f} times the healthy one")
    print(json.dumps(phases))


def measure(uri: str, shards: int, clients: int, seconds: float) -> list[dict[str, Any]]:
    """Latencies of the healthy phase and of the one with a stopped replica."""
    settings = ServeSettings(index=uri, shards=shards, replicas=2, cpus=1, port=0)
    phases = []
    with query_api(settings) as url, multiprocessing.get_context("spawn").Pool(1) as pool:
        of_shards = [p for name, p in replicas(os.getpid()).items() if name.startswith("Shard0")]
        for name in ("healthy", "one replica hangs"):
            if name != "healthy":
                os.kill(of_shards[0], signal.SIGSTOP)
            try:
                times, _ = pool.apply(drive, (url, clients, 1, 10, seconds))
            finally:
                if name != "healthy":
                    os.kill(of_shards[0], signal.SIGCONT)
            phases.append(row(name, 1, times, elapsed=seconds))
    return phases


if __name__ == "__main__":
    main()
