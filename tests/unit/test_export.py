"""A version as faiss files: another program finds what a shard finds."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.cli.main import run
from dq_cluster.geometry import Metric
from dq_cluster.index.tombstones import delete_ids
from dq_cluster.search.export import export_faiss
from dq_cluster.search.shard import load_whole
from tests.support import make_index

K = 10


@pytest.mark.parametrize("nlist", [0, 8])
@pytest.mark.parametrize("nbits", [4, 8])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_faiss_finds_what_a_shard_finds(
    tmp_path: Path, nlist: int, nbits: Literal[4, 8], metric: Metric
) -> None:
    uri = str(tmp_path / "index")
    index, _, queries = make_index(uri, rows=900, files=6, nlist=nlist, nbits=nbits, metric=metric)
    delete_ids(index, pa.array([3, 500]))
    manifest = index.manifest()
    summary = export_faiss(index, str(tmp_path / "out"), shards=3)
    assert summary["rows"] == 898
    assert summary["index"] == ("IndexIVFPQ" if nlist else "IndexPQ")

    shard = load_whole(index, manifest)
    queries = queries[:50]
    scores, ordinals = shard.searcher.search(queries, K)
    found_scores, found_ids = [], []
    for number in range(3):
        part = faiss.read_index(str(tmp_path / f"out/shard-{number:03d}.faiss"))
        if nlist:
            part.nprobe = nlist
        ids = pq.read_table(tmp_path / f"out/shard-{number:03d}.parquet").column("id").to_numpy()
        assert part.ntotal == len(ids)
        assert not {3, 500} & set(ids.tolist())
        near, rows = part.search(queries, K)
        found_scores.append(near if metric == "ip" else -near)
        found_ids.append(ids[rows])
    merged = np.concatenate(found_scores, axis=1)
    best = np.sort(merged, axis=1)[:, ::-1][:, :K]
    np.testing.assert_allclose(best, scores, rtol=1e-3, atol=1e-3)
    # The ids agree wherever the score is not one of several.
    order = np.argsort(-merged, axis=1, kind="stable")[:, :K]
    ids = np.take_along_axis(np.concatenate(found_ids, axis=1), order, axis=1)
    names = shard.rows.take(ordinals.ravel()).column("id").to_numpy().reshape(ordinals.shape)
    first = best[:, 0] - best[:, 1] > 1e-2
    assert (ids[first, 0] == names[first, 0]).all()


def test_export_is_a_command_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = str(tmp_path / "index")
    make_index(uri, rows=300, files=2)
    assert run(["export", uri, "--to", "faiss", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["output"], said["rows"]) == (f"{uri}-faiss", 300)
    assert faiss.read_index(f"{uri}-faiss/shard-000.faiss").ntotal == 300


def test_duckdb_reads_an_index_as_the_docs_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    duckdb = pytest.importorskip("duckdb")
    index, *_ = make_index(str(tmp_path / "my-index"), rows=300, files=3)
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs/howto/notebook.md").read_text()
    (query,) = re.findall(r'duckdb -c "([^"]+)"', text)
    labels = [
        label
        for file in index.manifest().files
        for label in pq.read_table(index.storage.open(file.path)).column("label").to_pylist()
    ]
    assert dict(duckdb.sql(query).fetchall()) == Counter(labels)
