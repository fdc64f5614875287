"""The systems that `benchmarks.peers` compares: how each is built, loaded, and asked.

A system is built in one process and loaded in another, so that loading and memory are measured
apart. Libraries are imported inside: a peer's virtual environment need not have the others.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BYTES, SECOND_BYTES, K, SHARDS = 16, 32, 10, 4
_TRAINED_ON = 50_000
_LISTS = 256

Search = Callable[[np.ndarray, int], np.ndarray]
"""search(queries (n, d), effort): ids (n, K)."""


@dataclass(frozen=True)
class System:
    """`build(base, folder)` writes it; `load(folder)` opens it while the context lasts.

    efforts: values of its knob between speed and recall, ascending; `knob` names it. bytes: what
    it holds of a vector of d dimensions. note: what a reader of the table must know.
    """

    build: Callable[[np.ndarray, Path], None]
    load: Callable[[Path], Any]
    bytes: Callable[[int], str]
    efforts: tuple[int, ...] = (0,)
    knob: str = ""
    foreign: bool = True
    note: str = ""


def build_dq_cluster(nbits: Any) -> Callable[[np.ndarray, Path], None]:
    def build(base: np.ndarray, folder: Path) -> None:
        import faiss
        import torch

        from benchmarks.serve import publish_codes
        from dq_cluster.index.catalog import Index
        from dq_cluster.model.bundle import save_model
        from dq_cluster.model.config import ModelSettings
        from dq_cluster.model.deepquan import DeepQuan

        # Every product quantizer here is trained by k-means on the vectors as they are: the
        # table compares search, not models. The network is not asked for anything.
        dim = base.shape[1]
        settings = ModelSettings(
            bits=BYTES * 8,
            nbits=nbits,
            refine_bits=SECOND_BYTES * 8,
            dim=dim,
            hidden=(dim,),
            components=dim,
        )
        network = DeepQuan(settings, dim)
        quantizers = [
            faiss.ProductQuantizer(dim, BYTES * 8 // nbits, nbits),
            faiss.ProductQuantizer(dim, SECOND_BYTES, 8),
        ]
        for pq, codebooks in zip(
            quantizers, (network.codebooks, network.refine_codebooks), strict=True
        ):
            pq.train(base[:_TRAINED_ON])
            centroids = torch.from_numpy(faiss.vector_to_array(pq.centroids))
            codebooks.copy_(centroids.reshape(codebooks.shape))
        index = Index.at(str(folder))
        card = save_model(index.storage, network, preprocessing={}, training={}, evaluation={})
        parts = np.array_split(np.arange(len(base)), 8)
        publish_codes(
            index,
            card,
            ((part, *(pq.compute_codes(base[part]) for pq in quantizers)) for part in parts),
        )

    return build


@contextmanager
def load_dq_cluster(target: Path | str) -> Iterator[Search]:
    from dq_cluster.client import Client

    with Client(target) as client:
        yield lambda queries, effort: ids_of(
            client.search(embeddings=queries, k=K, k_factor=effort)
        )


@dataclass(frozen=True)
class Api:
    """A search over HTTP; clients that measure it talk to `url` themselves."""

    url: str
    search: Search

    def __call__(self, queries: np.ndarray, effort: int) -> np.ndarray:
        return self.search(queries, effort)


@contextmanager
def load_api(folder: Path) -> Iterator[Api]:
    from benchmarks.serve import query_api
    from dq_cluster.serve.config import ServeSettings
    from dq_cluster.serve.run import fast_serve

    fast_serve()
    settings = ServeSettings(index=str(folder), shards=SHARDS, port=0)
    with query_api(settings) as url, load_dq_cluster(url) as search:
        yield Api(url, search)


def ids_of(response: Any) -> np.ndarray:
    return np.array([[hit.id for hit in hits] for hits in response.hits])


def build_faiss(base: np.ndarray, folder: Path) -> None:
    import faiss

    index = faiss.IndexPQ(base.shape[1], BYTES, 8)
    index.train(base[:_TRAINED_ON])
    index.add(base)
    faiss.write_index(index, str(folder / "index"))


@contextmanager
def load_faiss(folder: Path) -> Iterator[Search]:
    import faiss

    index = faiss.read_index(str(folder / "index"))
    yield lambda queries, effort: index.search(queries, K)[1]


def build_lancedb(base: np.ndarray, folder: Path) -> None:
    import lancedb
    import pyarrow as pa
    from lancedb.index import IvfPq

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(base.ravel()), base.shape[1])
    table = lancedb.connect(folder).create_table(
        "codes", pa.table({"id": np.arange(len(base)), "vector": vectors})
    )
    coding = IvfPq(distance_type="l2", num_partitions=_LISTS, num_sub_vectors=BYTES)
    table.create_index("vector", config=coding)


@contextmanager
def load_lancedb(folder: Path) -> Iterator[Search]:
    import lancedb

    table = lancedb.connect(folder).open_table("codes")

    def search(queries: np.ndarray, effort: int) -> np.ndarray:
        query = table.search(queries if len(queries) > 1 else queries[0])
        query = query.nprobes(_LISTS).limit(K).select(["id"])
        found = (query.refine_factor(effort) if effort else query).to_arrow()
        ids = found.column("id").to_numpy()
        if len(queries) == 1:
            return ids[None]
        order = np.argsort(found.column("query_index").to_numpy(), kind="stable")
        return ids[order].reshape(len(queries), -1)

    yield search


def build_hnswlib(base: np.ndarray, folder: Path) -> None:
    import hnswlib

    index = hnswlib.Index("l2", base.shape[1])
    index.init_index(len(base), ef_construction=100, M=16)
    index.add_items(base)
    index.save_index(str(folder / "index"))
    (folder / "dim").write_text(str(base.shape[1]))


@contextmanager
def load_hnswlib(folder: Path) -> Iterator[Search]:
    import hnswlib

    index = hnswlib.Index("l2", int((folder / "dim").read_text()))
    index.load_index(str(folder / "index"))

    def search(queries: np.ndarray, effort: int) -> np.ndarray:
        index.set_ef(effort)
        return index.knn_query(queries, K)[0]

    yield search


def build_milvus_lite(base: np.ndarray, folder: Path) -> None:
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(str(folder / "milvus.db"))
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=base.shape[1])
    params = client.prepare_index_params()
    params.add_index("vector", index_type="IVF_SQ8", metric_type="L2", params={"nlist": _LISTS})
    client.create_collection("codes", schema=schema, index_params=params)
    for start in range(0, len(base), 5000):
        part = base[start : start + 5000]
        client.insert(
            "codes",
            [{"id": start + n, "vector": row} for n, row in enumerate(part.tolist())],
        )
    client.flush("codes")
    client.load_collection("codes")
    client.close()


@contextmanager
def load_milvus_lite(folder: Path) -> Iterator[Search]:
    from pymilvus import MilvusClient

    client = MilvusClient(str(folder / "milvus.db"))
    client.load_collection("codes")

    def search(queries: np.ndarray, effort: int) -> np.ndarray:
        found = client.search(
            "codes",
            data=queries.tolist(),
            limit=K,
            search_params={"metric_type": "L2", "params": {"nprobe": effort}},
        )
        rows = [[hit["id"] for hit in hits] for hits in found]
        return np.array([row + [-1] * (K - len(row)) for row in rows])

    yield search
    client.close()


def build_qdrant(base: np.ndarray, folder: Path) -> None:
    np.save(folder / "base.npy", base)


@contextmanager
def load_qdrant(folder: Path) -> Iterator[Search]:
    from qdrant_client import QdrantClient, models

    base = np.load(folder / "base.npy")
    client = QdrantClient(":memory:")
    client.create_collection(
        "codes",
        vectors_config=models.VectorParams(size=base.shape[1], distance=models.Distance.EUCLID),
    )
    client.upload_collection("codes", vectors=base, ids=range(len(base)))
    del base

    def search(queries: np.ndarray, effort: int) -> np.ndarray:
        requests = [models.QueryRequest(query=q, limit=K) for q in queries.tolist()]
        found = client.query_batch_points("codes", requests=requests)
        return np.array([[point.id for point in each.points] for each in found])

    yield search
    client.close()


def _two_codes(dim: int) -> str:
    return f"{BYTES} + {SECOND_BYTES} on disk"


_FACTORS = (1, 2, 4, 8, 16, 32)

SYSTEMS: dict[str, System] = {
    "faiss IndexPQ, 8-bit": System(build_faiss, load_faiss, lambda d: f"{BYTES}", foreign=False),
    "dq_cluster, 8-bit": System(
        build_dq_cluster(8), load_dq_cluster, _two_codes, _FACTORS, "k_factor", foreign=False
    ),
    "dq_cluster, 4-bit": System(
        build_dq_cluster(4), load_dq_cluster, _two_codes, _FACTORS, "k_factor", foreign=False
    ),
    "dq_cluster, 4-bit, query API": System(
        build_dq_cluster(4),
        load_api,
        _two_codes,
        _FACTORS,
        "k_factor",
        foreign=False,
        note=f"{SHARDS} shards over HTTP; RAM and loading are of all of Ray and Serve",
    ),
    "lancedb IVF_PQ": System(
        build_lancedb,
        load_lancedb,
        lambda d: f"{BYTES} + {4 * d} on disk",
        efforts=(0, 1, 2, 4, 8, 16, 32),
        knob="refine_factor",
        note="every partition is searched; refining reads whole vectors from disk",
    ),
    "milvus-lite IVF_SQ8": System(
        build_milvus_lite,
        load_milvus_lite,
        str,
        efforts=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        knob="nprobe",
        note="has no product quantizer: one byte per dimension is its shortest code",
    ),
    "hnswlib": System(
        build_hnswlib,
        load_hnswlib,
        lambda d: f"{4 * d + 16 * 2 * 4}",
        efforts=(10, 20, 40, 80, 160),
        knob="ef",
        note="whole vectors and a graph",
    ),
    "qdrant-client, local mode": System(
        build_qdrant,
        load_qdrant,
        lambda d: f"{4 * d}",
        note="local mode compares whole vectors by brute force in numpy, whatever is configured; "
        "in memory, because on disk it commits every vector on its own, so loading is building",
    ),
}
