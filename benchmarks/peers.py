"""Search quality and speed against other libraries, on the same vectors and queries.

    python -m venv peers && peers/bin/pip install lancedb hnswlib qdrant-client milvus-lite pymilvus
    python -m benchmarks.peers --python peers/bin/python [--data fashion-mnist] [--rows 100000]

One table: recall@10 of the exact neighbours, queries/s with 1, 16, and 64 clients that ask one
query at a time and with one that asks 64 together, latencies, growth of resident memory, seconds
to load and to build. What can compress gets 16 bytes per vector in memory; the rest is shown
with what it takes. A system with a knob gets a second row, where it reaches the common recall
target or else as far as it goes.

Every system is built and measured in processes of its own, one after the other; the clients of a
library are threads of its process, those of the query API connections of another process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.peer import LOADS
from benchmarks.systems import SYSTEMS, K

DIM = 64
_LIMIT_S = 900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("clusters", "fashion-mnist"), default="clusters")
    parser.add_argument("--rows", type=int, default=100_000, help="of clusters")
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=3, help="for each measurement")
    parser.add_argument("--target", type=float, default=0.9, help="recall for the second rows")
    parser.add_argument("--python", default=sys.executable, help="that has the peers installed")
    parser.add_argument("--only", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TMPDIR"] = name
        if asked.data == "clusters":
            base, queries = clusters(asked.rows, asked.queries)
        else:
            base, queries = fashion_mnist(asked.queries)
        np.save(folder / "base.npy", base)
        np.save(folder / "queries.npy", queries)
        np.save(folder / "exact.npy", faiss.knn(queries, base, K)[1])
        print(
            f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {asked.data}, "
            f"{len(base)} vectors of {DIM} dimensions; recall target {asked.target}"
        )
        print(HEADER)
        results = {}
        for system in asked.only:
            python = asked.python if SYSTEMS[system].foreign else sys.executable
            found = results[system] = compare(system, python, folder, asked)
            print("\n".join(lines(system, found)), flush=True)
    for system in asked.only:
        if SYSTEMS[system].note:
            print(f"{system}: {SYSTEMS[system].note}.")
    print(json.dumps(results))


def compare(system: str, python: str, data: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Build and measure one system; {"error": …} where it cannot be."""
    folder = data / "".join(letter if letter.isalnum() else "-" for letter in system)
    folder.mkdir()
    options = ["--seconds", str(asked.seconds), "--target", str(asked.target)]
    found: dict[str, Any] = {}
    for step in ("build", "measure"):
        command = [python, "-m", "benchmarks.peer", step, system, folder, data, *options]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_LIMIT_S, check=True
            )
        except subprocess.CalledProcessError as error:
            return {"error": (error.stderr.strip().splitlines() or ["no reason given"])[-1]}
        except subprocess.TimeoutExpired:
            return {"error": f"took more than {_LIMIT_S} s to {step}"}
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


HEADER = "\n".join(
    [
        "| system | bytes | recall@10 | q/s: 1 client | 16 | 64 | batched by 64 "
        "| p50/p95/p99 ms: 1 client | 64 clients | RAM MB | load s | build s |",
        "|" + "---|" * 12,
    ]
)
assert LOADS == ((1, 1), (16, 1), (64, 1), (1, 64))


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """The rows of the table for one system."""
    if "error" in found:
        return [f"| {name} | not measured: {found['error']} |" + " |" * 10]
    system = SYSTEMS[name]
    made = []
    for row in found["rows"]:
        title = f"{name}, {system.knob} {row['effort']}" if system.knob else name
        one, _, many, _ = row["loads"]
        cells = [
            title,
            system.bytes(DIM),
            f"{row['recall']:.3f}",
            *(f"{load['qps']:,.0f}" for load in row["loads"]),
            *(f"{load['p50']:.1f}/{load['p95']:.1f}/{load['p99']:.1f}" for load in (one, many)),
            f"{found['rss_mb']:,.0f}",
            f"{found['load_s']:.1f}",
            f"{found['build_s']:.1f}",
        ]
        made.append("| " + " | ".join(cells) + " |")
    return made


def clusters(rows: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Made vectors: noisy clusters along 24 directions of the 64 dimensions."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(24, DIM))
    centres = rng.normal(size=(2000, 24))
    hidden = centres[rng.integers(len(centres), size=rows + queries)]
    hidden = hidden + 0.5 * rng.normal(size=hidden.shape)
    noise = 0.2 * rng.normal(size=(len(hidden), DIM))
    vectors = (hidden @ mixing + noise).astype(np.float32)
    return vectors[:rows], vectors[rows:]


def fashion_mnist(queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of real pictures, their 64 principal components; queries are not in the base."""
    from dq_cluster.demo.pictures import fashion_mnist as pictures

    pixels = np.stack([image.ravel() for _, image in pictures()]).astype(np.float32) / 255
    pca = faiss.PCAMatrix(pixels.shape[1], DIM)
    pca.train(pixels)
    vectors = pca.apply(pixels)
    return vectors[:-queries], vectors[-queries:]


if __name__ == "__main__":
    main()
