"""Neighbours of a whole version: exact, resumable, of every kind of index."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.errors import ConfigError, InputError, NotFoundError
from dq_cluster.fragments.ledger import Ledger
from dq_cluster.index.catalog import Index
from dq_cluster.index.tombstones import delete_ids
from dq_cluster.knn.config import DuplicatesSettings, NeighboursSettings
from dq_cluster.knn.duplicates import duplicates
from dq_cluster.knn.result import parts, read_result
from dq_cluster.knn.run import neighbours
from dq_cluster.search.merge import rerank
from dq_cluster.search.shard import load_whole
from dq_cluster.storage import Storage
from tests.support import make_index, make_model, make_vectors, make_version

pytestmark = pytest.mark.ray


def result_of(output: str) -> pa.Table:
    storage = Storage(output)
    return pa.concat_tables(list(parts(storage, read_result(storage))))


def wanted_of(index: Index, k: int, k_factor: int) -> dict[int, list[tuple[int, float]]]:
    """The definition: each row asks for itself and the others, and is left out."""
    shard = load_whole(index, index.manifest())
    rows = shard.living(np.arange(index.manifest().rows))
    ids = dict(zip(rows.tolist(), shard.rows.take(rows).column("id").to_pylist(), strict=True))
    wanted = {}
    for row in rows:
        embedding = shard.embeddings(row[None])
        scores, found = shard.searcher.search(embedding, (k + 1) * k_factor)
        if shard.refiner is not None and k_factor > 1:
            second = shard.refiner.scores(embedding, found)
            scores, found, _ = rerank([(scores, found, second)], k + 1)
        pairs = zip(found[0].tolist(), scores[0].tolist(), strict=True)
        others = [(ids[other], score) for other, score in pairs if other not in (row, -1)]
        wanted[ids[int(row)]] = others[:k]
    return wanted


@pytest.mark.parametrize(
    "made", [{}, {"nbits": 4, "nlist": 4}, {"refine_m": 8}], ids=["flat", "cells", "second codes"]
)
def test_a_version_with_itself(ray_cluster: None, tmp_path: Path, made: dict[str, Any]) -> None:
    index, _, _ = make_index(str(tmp_path / "index"), rows=500, files=5, **made)
    delete_ids(index, [3, 4, 499])
    output = str(tmp_path / "out")
    asked = {"index": index.storage.uri, "output": output, "k": 7, "fragment_rows": 120}
    settings = NeighboursSettings(**asked)
    summary = neighbours(settings)
    assert (summary["queries"], summary["full"], summary["version"]) == (497, 497, 2)
    table = result_of(output)
    wanted = wanted_of(index, 7, 4)
    assert table.column("row").to_pylist() == [r for r in range(500) if r in set_of(table)]
    for row in table.to_pylist():
        found = list(zip(row["neighbours"], row["scores"], strict=True))
        assert found == wanted[row["id"]]
    # Nothing is searched again; another request is refused.
    assert neighbours(settings) == summary
    with pytest.raises(ConfigError, match=r"k 7 \(now 8\)"):
        neighbours(settings.model_copy(update={"k": 8}))


def set_of(table: pa.Table) -> set[int]:
    return set(table.column("row").to_pylist())


def test_a_run_goes_on_where_it_stopped(ray_cluster: None, tmp_path: Path) -> None:
    index, _, _ = make_index(str(tmp_path / "index"), rows=400, files=4)
    whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
    asked = {"index": index.storage.uri, "k": 5, "within": -3.0, "fragment_rows": 50}
    neighbours(NeighboursSettings(output=whole, **asked))
    neighbours(NeighboursSettings(output=broken, **asked))
    storage = Storage(broken)
    before = {receipt.fragment: receipt for receipt in Ledger(storage, "").receipts()}
    for fragment in (0, 3, 7):
        Ledger(storage, "").forget(fragment)
    for name in ("published", "neighbours.json"):
        storage.delete(name)
    make_index(str(tmp_path / "index"), rows=300, seed=1)  # CURRENT moves on; the run does not
    assert neighbours(NeighboursSettings(output=broken, **asked))["version"] == 1
    after = {receipt.fragment: receipt for receipt in Ledger(storage, "").receipts()}
    assert after.keys() == before.keys()
    for fragment, receipt in after.items():
        again = fragment in (0, 3, 7)
        assert (receipt.files[0].path != before[fragment].files[0].path) == again
        assert receipt.files[0].sha256 == before[fragment].files[0].sha256
    assert result_of(broken).equals(result_of(whole))


def test_of_features(ray_cluster: None, tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    make_version(uri, make_model(uri), rows=300, files=3)
    queries = make_vectors(70, 12, seed=5)
    folder = tmp_path / "features"
    folder.mkdir()
    rows = pa.FixedSizeListArray.from_arrays(pa.array(queries.ravel()), 12)
    names = pa.array([f"q{n}" for n in range(70)])
    pq.write_table(pa.table({"id": names, "feature": rows}), folder / "part-0.parquet")
    output = str(tmp_path / "out")
    asked = NeighboursSettings(index=uri, output=output, features=str(folder), k=4)
    assert neighbours(asked)["queries"] == 70
    table = result_of(output)
    assert table.column("id").to_pylist() == names.to_pylist()
    from dq_cluster.serve.embed import Embedder

    index = Index.at(uri)
    shard = load_whole(index, index.manifest())
    embedder = Embedder(index.storage, index.manifest().model, lambda *_: None)  # type: ignore[arg-type]
    scores, ordinals = shard.searcher.search(embedder.embed(queries), 4)
    np.testing.assert_array_equal(np.stack(table.column("rows").to_numpy()), ordinals)
    np.testing.assert_array_equal(np.stack(table.column("scores").to_numpy()), scores)


def test_what_cannot_be_answered(ray_cluster: None, tmp_path: Path) -> None:
    uri, output = str(tmp_path / "index"), str(tmp_path / "out")
    make_index(uri, rows=300, files=1)
    with pytest.raises(ConfigError, match="has no cells"):
        neighbours(NeighboursSettings(index=uri, output=output, nprobe=3))
    with pytest.raises(NotFoundError, match="has no version 9"):
        neighbours(NeighboursSettings(index=uri, output=output, version=9))
    with pytest.raises(InputError, match="carries no column size"):
        duplicates(DuplicatesSettings(index=uri, output=output, within=-1, keep="max:size"))
    # More neighbours than there are: all of them.
    found = neighbours(NeighboursSettings(index=uri, output=output, k=1000))
    assert (found["queries"], found["full"]) == (300, 0)
    assert all(len(each) == 299 for each in result_of(output).column("rows"))


def test_duplicates_are_found_and_all_but_one_go(ray_cluster: None, tmp_path: Path) -> None:
    uri, output = str(tmp_path / "index"), str(tmp_path / "out")
    vectors = make_vectors(300, 16, seed=3) * 5
    embeddings = np.concatenate([vectors, vectors[:20], vectors[:5]])
    index, _, _ = make_index(uri, rows=325, files=4, m=16, embeddings=embeddings)
    asked = {"index": uri, "output": output, "within": 0.0}
    found = duplicates(DuplicatesSettings(**asked, keep="max:label"))
    table = pq.read_table(Path(output) / "duplicates.parquet").to_pylist()
    shard = load_whole(index, index.manifest())
    codes = shard.embeddings(np.arange(325))
    groups: dict[int, list[int]] = {}
    for row in table:
        groups.setdefault(row["group"], []).append(row["id"])
        assert np.array_equal(codes[row["id"]], codes[row["group"]])
        assert row["keep"] == (row["id"] == row["group"])
    _, counts = np.unique(codes, axis=0, return_counts=True)
    assert len(table) == found["images"] == counts[counts > 1].sum()
    assert found["groups"] == len(groups) == (counts > 1).sum()
    for kept_id, members in groups.items():
        assert kept_id % 10 == max(member % 10 for member in members)
    done = duplicates(DuplicatesSettings(**asked, keep="max:label", delete=True))
    after = index.manifest()
    assert after.version == done["published"] == 2
    assert after.deleted == found["others"] == len(table) - len(groups)
