"""Search quality and speed against other libraries, in one process, on the same vectors.

    pip install lancedb hnswlib
    python benchmarks/peers.py --rows 100000

Everything that compresses gets 16 bytes per vector; hnswlib keeps whole vectors and is there to
show what that buys. A peer that is not installed is left out. Vectors are made: clusters of a few
dozen directions in 64 dimensions, so recall compares rows of this table and nothing else.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.searcher import Searcher

DIM, BYTES, K = 64, 16, 10
Search = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=300)
    asked = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(24, DIM))
    centres = rng.normal(size=(2000, 24))

    def vectors(count: int) -> np.ndarray:
        hidden = centres[rng.integers(len(centres), size=count)]
        hidden = hidden + 0.5 * rng.normal(size=hidden.shape)
        return (hidden @ mixing + 0.2 * rng.normal(size=(count, DIM))).astype(np.float32)

    base, queries = vectors(asked.rows), vectors(asked.queries)
    exact = faiss.knn(queries, base, K)[1]
    peers = {
        "dq_cluster Searcher, 8-bit": lambda: searcher(base, 8),
        "dq_cluster Searcher, 4-bit": lambda: searcher(base, 4),
        "faiss IndexPQ, 8-bit": lambda: plain_faiss(base),
        "lancedb IVF_PQ, all partitions": lambda: lancedb_ivf_pq(base),
        "hnswlib, whole vectors": lambda: hnsw(base),
    }
    for name, build in peers.items():
        begin = time.perf_counter()
        try:
            search = build()
        except ImportError as error:
            print(f"{name:32s} not measured: {error}")
            continue
        built = time.perf_counter() - begin
        report(name, search, queries, exact, built)


def report(name: str, search: Search, queries: np.ndarray, exact: np.ndarray, built: float) -> None:
    """One line: recall, then one query at a time."""
    search(queries[:1])
    found, times = [], []
    for query in queries:
        begin = time.perf_counter()
        found.append(search(query[None])[0])
        times.append(1e3 * (time.perf_counter() - begin))
    recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found, exact, strict=True)])
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    print(
        f"{name:32s} recall@10 {recall:.3f}  {1e3 / np.mean(times):7.0f} queries/s  "
        f"p50 {p50:.2f} ms  p95 {p95:.2f} ms  p99 {p99:.2f} ms  built in {built:.1f} s"
    )


def searcher(base: np.ndarray, nbits: Any) -> Search:
    geometry = CodeGeometry(dim=DIM, m=BYTES * 8 // nbits, nbits=nbits)
    pq = faiss.ProductQuantizer(DIM, geometry.m, nbits)
    pq.train(base[:20_000])
    books = faiss.vector_to_array(pq.centroids)
    books = books.reshape(geometry.m, geometry.ksub, geometry.dsub)
    made = Searcher(pq.compute_codes(base), books, geometry)
    return lambda queries: made.search(queries, K)[1]


def plain_faiss(base: np.ndarray) -> Search:
    index = faiss.IndexPQ(DIM, BYTES, 8)
    index.train(base[:20_000])
    index.add(base)
    return lambda queries: index.search(queries, K)[1]


def lancedb_ivf_pq(base: np.ndarray) -> Search:
    import lancedb
    import pyarrow as pa
    from lancedb.index import IvfPq

    folder = Path(tempfile.mkdtemp())
    flat = pa.FixedSizeListArray.from_arrays(pa.array(base.ravel()), DIM)
    table = lancedb.connect(folder).create_table(
        "codes", pa.table({"id": np.arange(len(base)), "vector": flat})
    )
    partitions = 16
    coding = IvfPq(distance_type="l2", num_partitions=partitions, num_sub_vectors=BYTES)
    table.create_index("vector", config=coding)

    def search(queries: np.ndarray) -> np.ndarray:
        found = [table.search(q).nprobes(partitions).limit(K).to_arrow() for q in queries]
        return np.array([each.column("id").to_numpy() for each in found])

    return search


def hnsw(base: np.ndarray) -> Search:
    import hnswlib

    index = hnswlib.Index("l2", DIM)
    index.init_index(len(base), ef_construction=100, M=16)
    index.add_items(base, num_threads=1)
    index.set_ef(64)
    return lambda queries: index.knn_query(queries, K, num_threads=1)[0]


if __name__ == "__main__":
    main()
