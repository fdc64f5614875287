"""What a filter and a look-up by id cost, beside a plain search in the same run.

    python -m benchmarks.lookups --rows 1000000 --ids 20000000 --shards 4

One client asks through the query API. A filter keeps a tenth of `rows` codes of 16 bytes (4-bit):
each time another one, and then the same one again. Then, among `ids` codes with random 64-bit ids,
a search by id beside a search by embedding.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.serve import DIM, make_codes, query_api, row
from dq_cluster import __version__
from dq_cluster.client import Client
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import code_table, write_code_file
from dq_cluster.index.manifest import Manifest, Producer
from dq_cluster.index.sizing import FRAGMENT_ROWS
from dq_cluster.index.tombstones import live_ids
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.run import fast_serve

_TIMES = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--ids", type=int, default=20_000_000)
    parser.add_argument("--shards", type=int, default=4)
    asked = parser.parse_args()
    fast_serve()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {vars(asked)}")
        rows = filters(f"{folder}/labelled", asked.rows, asked.shards)
        rows += by_id(f"{folder}/ids", asked.ids, asked.shards)
    for each in rows:
        print(" | ".join(f"{name} {value}" for name, value in each.items()))
    print(json.dumps(rows))


def filters(uri: str, rows: int, shards: int) -> list[dict[str, Any]]:
    labelled(Index.at(uri), make_codes(uri, 1000, 32, 4), rows)
    with query_api(ServeSettings(index=uri, shards=shards, port=0)) as url, Client(url) as client:
        embedding = np.random.default_rng(1).normal(size=DIM)

        def search(label: Any) -> Callable[[], object]:
            asked = None if label is None else {"label": label}
            return partial(client.search, embedding=embedding, filter=asked)

        others = (search({"ge": n, "lt": n + 100}) for n in range(_TIMES))
        plain = measured("no filter", (search(None) for _ in range(_TIMES)))
        first = measured("a filter of 10%, for the first time", others)
        again = measured("a filter of 10%, again", (search({"lt": 100}) for _ in range(_TIMES)))
    for each in (first, again):
        each["of no filter"] = round(each["p50_ms"] / plain["p50_ms"], 2)
    return [plain, first, again]


def by_id(uri: str, ids: int, shards: int) -> list[dict[str, Any]]:
    make_codes(uri, ids, 32, 4, files=max(shards, ids // FRAGMENT_ROWS), random_ids=True)
    index = Index.at(uri)
    rng = np.random.default_rng(1)
    known: list[int] = []
    for _, found in live_ids(index.storage, index.manifest()):
        known += [found[int(row)].as_py() for row in rng.integers(len(found), size=4)]
    asked = iter(rng.permutation(known)[:_TIMES].tolist())
    settings = ServeSettings(index=uri, shards=shards, port=0, timeout_ms=10_000)
    with query_api(settings) as url, Client(url) as client:
        embedding = rng.normal(size=DIM)
        plain = measured(
            f"by embedding, {ids:,} codes",
            (partial(client.search, embedding=embedding) for _ in range(_TIMES)),
        )
        asks = (partial(client.search, id=id) for id in asked)
        found = measured(f"by id, {ids:,} random ids", asks)
    found["ms more"] = round(found["p50_ms"] - plain["p50_ms"], 2)
    return [plain, found]


def labelled(index: Index, model_of: int, rows: int) -> None:
    """Publish random codes with a random label from 0 to 999."""
    old = index.manifest(model_of)
    rng = np.random.default_rng(2)
    entries = []
    for start in range(0, rows, FRAGMENT_ROWS):
        count = min(FRAGMENT_ROWS, rows - start)
        codes = rng.integers(0, 256, (count, old.geometry.code_size), dtype=np.uint8)
        labels = pa.table({"label": rng.integers(0, 1000, count)})
        table = code_table(pa.array(np.arange(start, start + count)), codes, old.geometry, labels)
        path = f"data/labelled/part-{start:09d}.parquet"
        entries.append(
            write_code_file(index.storage, path, table, model=old.model, geometry=old.geometry)
        )
    index.publish(
        lambda version, parent: Manifest(
            version=version,
            parent=parent,
            model=old.model,
            geometry=old.geometry,
            id_type="int64",
            columns=("label",),
            files=tuple(entries),
            rows=rows,
            producer=Producer(dq_cluster=__version__, run="labelled"),
        )
    )


def measured(case: str, asks: Iterator[Callable[[], object]]) -> dict[str, Any]:
    times = []
    for number, ask in enumerate(asks):
        begin = time.perf_counter()
        ask()
        if number >= _TIMES // 10:  # the first ones make connections and caches
            times.append(time.perf_counter() - begin)
    return row(case, 1, times)


if __name__ == "__main__":
    main()
