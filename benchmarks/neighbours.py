"""A version joined with itself, against bare faiss doing the same join in one process.

    python -m benchmarks.neighbours --rows 1000000 --cells 1024 --nprobe 8

The codes are those of made features: clusters of some hundred, in clusters of some hundred of
these, encoded by product quantizers that k-means trained. bare faiss: `IndexIVFPQ.search`, or
fast-scan's where codes are of 4-bit sub-codes, of what the codes stand for, at the best instruction
set, all in memory; its rate is that of `--bare` queries drawn at random. ours: `dq-cluster
neighbours` with one worker, from Ray's start to the manifest, results on disk. Recall: of the exact
nearest codes in the same cells, by `Searcher`, for 2,000 queries; equal scores count as equal.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import ray  # noqa: F401  # brings psutil along

from dq_cluster import __version__
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import code_table, write_code_file
from dq_cluster.index.manifest import Manifest, Producer
from dq_cluster.index.models import write_model
from dq_cluster.index.sizing import FRAGMENT_ROWS
from dq_cluster.knn.config import FinderSettings, NeighboursSettings
from dq_cluster.knn.result import parts, read_result
from dq_cluster.search.shard import load_whole
from dq_cluster.storage import Storage

DIM = 32  # as `objective: neighbours` has it
_TRAIN = 1 << 17
_JUDGED = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--cells", type=int, default=1024, help="0: a flat version")
    parser.add_argument("--nprobe", type=int, default=8)
    parser.add_argument("--nbits", type=int, default=8, choices=(4, 8))
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--bare", type=int, default=200_000, help="queries of bare faiss")
    parser.add_argument("--cpus", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        index = Index.at(f"{folder}/index")
        make(index, asked.rows, asked.cells, asked.nbits)
        result = {"rows": asked.rows, "bits": 64, "nbits": asked.nbits, "cells": asked.cells}
        result |= {"nprobe": asked.nprobe * (asked.cells > 0), "k": asked.k}
        result |= bare(index, asked)
        result |= ours(index, f"{folder}/neighbours", asked)
        result["of_bare"] = round(result["ours_per_s"] / result["bare_per_s"], 2)
    for name, value in result.items():
        print(f"{name}: {value}")
    print(json.dumps(result))


def make(index: Index, rows: int, cells: int, nbits: int) -> None:
    """Publish a version of `rows` codes of made features, in files of the usual size."""
    rng = np.random.default_rng(0)
    far = rng.normal(size=(max(rows // 40_000, 8), DIM)).astype(np.float32)
    near = far[rng.integers(len(far), size=max(rows // 200, 64))]
    near += 0.5 * rng.normal(size=near.shape).astype(np.float32)

    def features(count: int) -> np.ndarray:
        noise = rng.normal(size=(count, DIM)).astype(np.float32)
        return near[rng.integers(len(near), size=count)] + np.float32(0.25) * noise

    geometry = CodeGeometry(dim=DIM, m=64 // nbits, nbits=nbits, nlist=cells)
    sample = features(_TRAIN)
    quantizer = faiss.ProductQuantizer(DIM, geometry.m, nbits)
    quantizer.train(sample[: 1 << 16])
    centroids = faiss.vector_to_array(quantizer.centroids)
    tensors = {"codebooks": centroids.reshape(geometry.m, geometry.ksub, geometry.dsub)}
    coarse = faiss.IndexFlat(DIM)
    if cells:
        kmeans = faiss.Kmeans(DIM, cells, niter=8, min_points_per_centroid=1)
        kmeans.train(sample)
        tensors["coarse_centroids"] = kmeans.centroids
        coarse.add(kmeans.centroids)
    card = write_model(
        index.storage,
        tensors,
        geometry=geometry,
        feature_dim=DIM,
        network={"kind": "identity"},
        preprocessing={},
        training={},
        evaluation={},
    )
    entries = []
    for start in range(0, rows, FRAGMENT_ROWS):
        made = features(min(FRAGMENT_ROWS, rows - start))
        ids = pa.array(np.arange(start, start + len(made)))
        near_cells = coarse.search(made, 1)[1][:, 0] if cells else None
        table = code_table(ids, quantizer.compute_codes(made), geometry, cells=near_cells)
        path = f"data/made/part-{start:09d}.parquet"
        entries.append(
            write_code_file(index.storage, path, table, model=card.digest, geometry=geometry)
        )
    index.publish(
        lambda version, parent: Manifest(
            version=version,
            parent=parent,
            model=card.digest,
            geometry=geometry,
            id_type="int64",
            files=tuple(entries),
            rows=rows,
            producer=Producer(dq_cluster=__version__, run="made"),
        )
    )


def judged(rows: int) -> np.ndarray:
    return np.sort(np.random.default_rng(1).permutation(rows)[: min(_JUDGED, rows)])


def bare(index: Index, asked: argparse.Namespace) -> dict[str, Any]:
    """Rate and recall of bare faiss: one index of all codes, searched for what they stand for."""
    shard = load_whole(index, index.manifest())
    geometry, books = shard.manifest.geometry, shard.codebooks
    codes = shard.searcher.codes[np.arange(asked.rows)]
    plain: Any
    if asked.cells:
        plain = faiss.IndexIVFPQ(books.coarse, DIM, asked.cells, geometry.m, asked.nbits)
        plain.by_residual, plain.is_trained = False, True
    else:
        plain = faiss.IndexPQ(DIM, geometry.m, asked.nbits)
        plain.is_trained = True
    faiss.copy_array_to_vector(books.vectors.ravel(), plain.pq.centroids)
    if asked.cells:
        cells = np.concatenate([segment.codes.cells() for segment in shard.segments])
        number = cells.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : plain.coarse_code_size()]
        plain.add_sa_codes(np.hstack([number, codes]), np.arange(len(codes)))
    else:
        plain.add_sa_codes(codes)
    fast = asked.nbits == 4
    if fast:
        plain = faiss.IndexIVFPQFastScan(plain) if asked.cells else faiss.IndexPQFastScan(plain)
    if asked.cells:
        plain.nprobe = asked.nprobe
    faiss.omp_set_num_threads(asked.cpus)
    chosen = np.sort(np.random.default_rng(2).permutation(asked.rows)[: asked.bare])
    queries, rates = shard.embeddings(chosen), {}
    for level in ("NONE", "AVX2", "AVX512"):
        if not faiss.SIMDConfig.is_simd_level_available(getattr(faiss, f"SIMDLevel_{level}")):
            continue
        faiss.SIMDConfig.set_level(getattr(faiss, f"SIMDLevel_{level}"))
        some = queries[:: max(1, len(queries) // 10_000)]
        begin = time.perf_counter()
        plain.search(some, asked.k + 1)
        rates[level] = len(some) / (time.perf_counter() - begin)
    best = max(rates, key=lambda level: rates[level])
    faiss.SIMDConfig.set_level(getattr(faiss, f"SIMDLevel_{best}"))
    begin = time.perf_counter()
    plain.search(queries, asked.k + 1)
    seconds = time.perf_counter() - begin
    rows = judged(asked.rows)
    found = plain.search(shard.embeddings(rows), asked.k + 1)[1]
    found = np.array(
        [
            [other for other in line if other != row][: asked.k]
            for line, row in zip(found, rows, strict=True)
        ]
    )
    return {
        "bare_per_s": round(len(queries) / seconds),
        "bare_queries": len(queries),
        "bare_simd": best,
        "bare_recall": recall(shard, rows, found, asked),
    }


def ours(index: Index, output: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Rate, memory, and recall of the job."""
    from dq_cluster.knn.run import neighbours

    settings = NeighboursSettings(
        index=index.storage.uri,
        output=output,
        k=asked.k,
        nprobe=asked.nprobe if asked.cells else 0,
        pool=FinderSettings(workers=1, cpus=asked.cpus),
    )
    with Peak("NeighbourFinder") as peak:
        begin = time.perf_counter()
        neighbours(settings)
        seconds = time.perf_counter() - begin
    storage, shard = Storage(output), load_whole(index, index.manifest())
    rows, found, base = judged(asked.rows), [], 0
    working = 0.0
    for part in parts(storage, read_result(storage)):
        here = rows[(rows >= base) & (rows < base + part.num_rows)] - base
        found += part.column("rows").take(pa.array(here)).to_pylist()
        base += part.num_rows
    for receipt in (Path(output) / "ledger").iterdir():
        working += sum(json.loads(receipt.read_text())["seconds"].values())
    return {
        "ours_per_s": round(asked.rows / seconds),
        "ours_per_s_without_start": round(asked.rows / working),
        "ours_seconds": round(seconds, 1),
        "ours_recall": recall(shard, rows, found, asked),
        "peak_mib": round(peak.bytes / 2**20),
        "codes_mib": round(8 * asked.rows / 2**20),
    }


def recall(shard: Any, rows: np.ndarray, found: Any, asked: argparse.Namespace) -> float:
    """The share of what was found that scores at least as well as the k-th exact neighbour."""
    embeddings = shard.embeddings(rows)
    probes = asked.nprobe if asked.cells else None
    scores, ordinals = shard.searcher.search(embeddings, asked.k + 1, nprobe=probes)
    hits = 0
    for line, near, embedding, row, own in zip(
        scores, found, embeddings, rows, ordinals, strict=True
    ):
        others = line[own != row]
        places = np.asarray(near)[np.asarray(near) >= 0][: asked.k]
        of = shard.embeddings(places).astype(np.float64)
        exact = -np.square(of - embedding).sum(axis=1)
        hits += int(np.count_nonzero(exact >= others[: asked.k][-1] - 1e-5))
    return round(hits / (len(rows) * asked.k), 4)


class Peak:
    """The most memory that processes named `name` held meanwhile, without what they map."""

    def __init__(self, name: str) -> None:
        self._name, self._stop, self.bytes = name, threading.Event(), 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil  # type: ignore[import-untyped]

        while not self._stop.wait(0.5):
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    if self._name in " ".join(process.cmdline()):
                        memory = process.memory_info()
                        total += memory.rss - memory.shared
                except psutil.Error:
                    continue
            self.bytes = max(self.bytes, total)


if __name__ == "__main__":
    main()
