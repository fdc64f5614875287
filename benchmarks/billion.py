"""Many codes with cells: made, loaded, searched through the query API, and what grows with what.

    python -m benchmarks.billion --rows 10000000 --folder /mnt/disk/billion [--nbits 4]

The embeddings are a mixture with many scales: a tree of four levels, where a child lies beside its
parent by a vector that is half as long as that of the level above (branches of Zipf-like sizes),
and a little noise. So every vector has near-duplicates, relatives, and strangers. All is drawn from
the seed and the number of a block of rows: a run that was interrupted goes on with the next block.
The model (objective `neighbours`) and the cells are learned on a sample by the project's own code.

The exit status is 1 where a shard's peak memory exceeds codes + 1.5 bytes an image + 300 MB.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.processes import memory, replicas
from benchmarks.serve import drive, query_api, repeat, row
from dq_cluster import __version__
from dq_cluster.client import Client
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import code_table, write_code_file
from dq_cluster.index.manifest import FileEntry, Manifest, Producer
from dq_cluster.index.models import read_tensors
from dq_cluster.model.bundle import load_model, save_model
from dq_cluster.model.cells import CellFinder, learn_cells
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.fit import fit
from dq_cluster.search.faiss_index import in_lists, scans_fast
from dq_cluster.search.shard import load_whole
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.run import fast_serve

DIM, BLOCK, QUERIES, K = 32, 1_000_000, 1000, 10
_LEVELS, _VECTORS = 4, 1 << 14
_PROBES = (1, 4, 16, 64, 0)  # 0: every cell


def features(seed: int, block: int, rows: int) -> np.ndarray:
    """Unit vectors (rows, DIM) float32 of the mixture."""
    shared = np.random.default_rng(seed).normal(size=(_LEVELS, _VECTORS, DIM)).astype(np.float32)
    rng = np.random.default_rng([seed, block])
    path = np.zeros(rows, np.int64)
    vectors = 0.05 * rng.standard_normal((rows, DIM), np.float32)
    for level in range(_LEVELS):
        branch = (64 * rng.random(rows, np.float32) ** 2).astype(np.int64)
        path = path * 64 + branch
        place = (path * 0x9E3779B1 + level) % 4294967291 % _VECTORS
        vectors += shared[level, place] * np.float32(0.5**level)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def ids_of(rows: np.ndarray, kind: str) -> np.ndarray:
    """Ids (n,) int64 of rows: their numbers, or these mixed so that they look random."""
    if kind == "consecutive":
        return rows.astype(np.int64)
    mixed = rows.astype(np.uint64)
    for by, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(by))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))).view(np.int64)


def train(index: Index, asked: argparse.Namespace) -> str:
    """The digest of the model."""
    settings = ModelSettings(
        objective="neighbours", bits=64, nbits=asked.nbits, dim=DIM, components=DIM, epochs=1
    )
    sample = features(asked.seed, 1 << 40, max(20_000, asked.nlist * 64))
    network = fit(sample[:10_000], settings, asked.seed)
    with torch.no_grad():
        embedded = network.embed(torch.from_numpy(sample)).numpy()
    cells = learn_cells(embedded, asked.nlist, settings.metric, seed=asked.seed)
    card = save_model(
        index.storage, network, cells=cells, preprocessing={}, training={}, evaluation={}
    )
    return card.digest


_finder: dict[str, Any] = {}


def make(asked: argparse.Namespace, digest: str, block: int) -> float:
    """Encode one block into a file, unless that is done; CPU seconds of encoding."""
    done = Path(asked.folder) / "made" / f"{block:06d}.json"
    if done.exists():
        return float(json.loads(done.read_text())["cpu_s"])
    index = Index.at(f"{asked.folder}/index")
    if not _finder:
        torch.set_num_threads(1)
        network, card = load_model(index.storage, digest)
        centroids = torch.from_numpy(read_tensors(index.storage, card)["coarse_centroids"].copy())
        _finder.update(
            network=network, card=card, cells=CellFinder(centroids, card.geometry.metric)
        )
    network, card = _finder["network"], _finder["card"]
    rows = np.arange(block * BLOCK, min((block + 1) * BLOCK, asked.rows))
    made = torch.from_numpy(features(asked.seed, block, len(rows)))
    begin = time.process_time()
    with torch.no_grad():
        parts = [network.embed(part) for part in made.split(1 << 16)]
        codes = torch.cat([network.code(part) for part in parts]).numpy()
        cells = torch.cat([_finder["cells"](part) for part in parts]).numpy()
        ids = pa.array(ids_of(rows, asked.ids))
        table = code_table(ids, codes, card.geometry, cells=cells)
        path = f"data/billion/part-{block:06d}.parquet"
        entry = write_code_file(index.storage, path, table, model=digest, geometry=card.geometry)
        spent = time.process_time() - begin
        queries = network.embed(torch.from_numpy(features(asked.seed, 1 << 41, QUERIES)))
        best = [(queries @ part.T).topk(min(K, len(part))) for part in parts]
    scores = torch.cat([each.values for each in best], 1)
    starts = np.cumsum([0, *map(len, parts)])[:-1]
    nearest = torch.cat([b.indices + int(s) for b, s in zip(best, starts, strict=True)], 1)
    top = scores.topk(min(K, scores.shape[1]))
    chosen = rows[nearest.gather(1, top.indices).numpy()]
    np.savez(done.with_suffix(".npz"), scores=top.values.numpy(), rows=chosen)
    partial_file = done.with_suffix(".part")
    partial_file.write_text(json.dumps({"entry": entry.model_dump(), "cpu_s": spent}))
    partial_file.rename(done)
    return spent


def build(index: Index, asked: argparse.Namespace) -> dict[str, Any]:
    """Make and publish the version, unless it is there."""
    folder = Path(asked.folder) / "made"
    folder.mkdir(parents=True, exist_ok=True)
    blocks = -(-asked.rows // BLOCK)
    begin = time.perf_counter()
    if not (folder / "model").exists():
        (folder / "model").write_text(train(index, asked))
    digest, trained = (folder / "model").read_text(), time.perf_counter() - begin
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        seconds = []
        for spent in pool.imap(partial(make, asked, digest), range(blocks)):
            seconds.append(spent)
            print(f"{len(seconds)}/{blocks} blocks, {spent:.1f} s of a core", file=sys.stderr)
    entries = [
        FileEntry(**json.loads((folder / f"{n:06d}.json").read_text())["entry"])
        for n in range(blocks)
    ]
    if not index.versions():
        _, card = load_model(index.storage, digest)
        index.publish(
            lambda version, parent: Manifest(
                version=version,
                model=digest,
                geometry=card.geometry,
                id_type="int64",
                files=tuple(entries),
                rows=asked.rows,
                producer=Producer(dq_cluster=__version__, run="billion"),
            )
        )
    return {
        "train_s": trained,
        "make_s": time.perf_counter() - begin - trained,
        "encode_s_per_million_and_core": 1e6 * sum(seconds) / asked.rows,
        "bytes_per_image_on_disk": sum(entry.size for entry in entries) / asked.rows,
    }


def exact_neighbours(asked: argparse.Namespace) -> np.ndarray:
    """Ids (QUERIES, K) of the nearest embeddings of all blocks."""
    parts = [np.load(path) for path in sorted((Path(asked.folder) / "made").glob("*.npz"))]
    scores = np.concatenate([part["scores"] for part in parts], axis=1)
    rows = np.concatenate([part["rows"] for part in parts], axis=1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return ids_of(np.take_along_axis(rows, best, 1), asked.ids)


def recall(found: list[list[int]], wanted: list[list[int]]) -> float:
    pairs = zip(found, wanted, strict=True)
    return float(np.mean([len(set(a) & set(b)) / K for a, b in pairs]))


def serve(uri: str, asked: argparse.Namespace, queries: np.ndarray) -> dict[str, Any]:
    """The version behind the query API: speed, recall, memory of each shard."""
    fast_serve()
    begin = time.perf_counter()
    settings = ServeSettings(
        index=uri, shards=asked.shards, cpus=1, port=0, timeout_ms=60_000, nprobe=0
    )
    with query_api(settings) as url, Client(url, timeout_s=120) as client:
        client.search(embedding=queries[0], k=K, nprobe=1)
        first = time.perf_counter() - begin
        exact = exact_neighbours(asked).tolist()
        answers = {p: _answers(client, queries, p) for p in (0, *_PROBES[:-1])}
        table = []
        for nprobe in _PROBES:
            found = {
                "recall_of_codes": recall(answers[nprobe], answers[0]),
                "recall_of_embeddings": recall(answers[nprobe], exact),
            }
            for clients, batch in ((1, 1), (16, 1), (1, 64)):
                times, _ = drive(url, clients, batch, K, asked.seconds, queries, nprobe=nprobe)
                name = f"nprobe {nprobe or 'all'}, {clients} clients, batch {batch}"
                table.append(row(name, batch, times, elapsed=asked.seconds, **found))
                print(table[-1], file=sys.stderr)
        of_shards = {
            name: memory(pid)
            for name, pid in replicas(os.getpid()).items()
            if name.startswith("Shard")
        }
    return {"first_answer_s": first, "api": table, "shards": of_shards}


def _answers(client: Client, queries: np.ndarray, nprobe: int) -> list[list[int]]:
    parts = [queries[start : start + 50] for start in range(0, len(queries), 50)]
    hits = [client.search(embeddings=part, k=K, nprobe=nprobe or None).hits for part in parts]
    return [[int(hit.id) for hit in each] for part in hits for each in part]


def bare(index: Index, queries: np.ndarray, seconds: float) -> list[dict[str, Any]]:
    """faiss alone with the same codes and cells: its own lists, numbers of 8 bytes, in memory."""
    import faiss

    shard = load_whole(index, index.manifest())
    rows = [np.arange(len(each.codes)) for each in shard.segments]
    cells = np.concatenate(
        [e.codes.codes.runs.cells_of(r) for e, r in zip(shard.segments, rows, strict=True)]  # type: ignore[union-attr]
    )
    codes = np.concatenate([e.codes.codes[r] for e, r in zip(shard.segments, rows, strict=True)])
    books = shard.codebooks
    made = in_lists(codes, cells, books.vectors, books.coarse, books.geometry)
    whole = faiss.IndexIVFPQFastScan(made) if scans_fast(books.geometry) else made
    table = []
    for name, search in (("bare faiss", None), ("Searcher", shard.searcher)):
        for nprobe in _PROBES:
            for batch in (1, 64):
                if search is None:
                    whole.nprobe = nprobe or books.geometry.nlist
                    work = partial(whole.search, queries[:batch], K)
                else:
                    work = partial(search.search, queries[:batch], K, nprobe=nprobe or None)
                times = repeat(work, seconds / 2)
                table.append(row(f"{name}, nprobe {nprobe or 'all'}, batch {batch}", batch, times))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", required=True, help="for the index; kept, to go on from")
    parser.add_argument("--nbits", type=int, default=8, choices=(4, 8))
    parser.add_argument("--nlist", type=int, help="cells (default: by rows)")
    parser.add_argument("--ids", default="random", choices=("random", "consecutive"))
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-bare", action="store_true", help="where faiss' own lists do not fit")
    asked = parser.parse_args()
    # A power of two between 2 and 4 times the root of the rows.
    asked.nlist = asked.nlist or 1 << int(np.sqrt(asked.rows) * 2).bit_length()
    Path(asked.folder).mkdir(parents=True, exist_ok=True)
    needed, free = 18 * asked.rows + 10**9, shutil.disk_usage(asked.folder).free
    print(f"needs {needed / 1e9:.1f} GB in {asked.folder}, {free / 1e9:.1f} GB are free")
    if free < needed:
        sys.exit("too little disk")
    index = Index.at(f"{asked.folder}/index")
    hardware = f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    found: dict[str, Any] = {"command": vars(asked), "hardware": hardware} | build(index, asked)
    network, _ = load_model(index.storage, index.manifest().model)
    with torch.no_grad():
        queries = network.embed(torch.from_numpy(features(asked.seed, 1 << 41, QUERIES))).numpy()
    found |= serve(index.storage.uri, asked, queries)
    if not asked.no_bare:
        found["in_process"] = bare(index, queries, asked.seconds)
    allowed = (asked.rows / asked.shards * 9.5 + 300e6) / 1e6
    peak = max(each["peak"] for each in found["shards"].values())
    found |= {"peak_mb": peak, "allowed_mb": allowed}
    found["driver_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    found["load_at_end"] = os.getloadavg()[0]
    found["command"].pop("folder")
    print(json.dumps(found, indent=1))
    if peak > allowed:
        sys.exit(f"a shard took {peak:.0f} MB at its peak, {allowed:.0f} MB are allowed")


if __name__ == "__main__":
    main()
