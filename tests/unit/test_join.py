"""A join gives the answers of a search, to the bit, whatever the version is like."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq_cluster.index.tombstones import delete_ids
from dq_cluster.knn import join
from dq_cluster.knn.candidates import Candidates
from dq_cluster.knn.join import Join
from dq_cluster.search.shard import load_whole
from tests.support import make_index, make_vectors

KINDS: list[dict[str, Any]] = [
    {},
    {"metric": "ip"},
    {"nbits": 4, "m": 8},
    {"nlist": 24},
    {"nlist": 24, "nbits": 4, "m": 8},
    {"nlist": 24, "nbits": 4, "m": 8, "metric": "ip"},
    {"nlist": 24, "m": 2, "dim": 8},  # many codes are equal
]


@pytest.mark.parametrize("made", KINDS, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_answers_are_those_of_a_search(
    tmp_path: Path, made: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "_CODES", 256)  # a list takes several products
    monkeypatch.setattr(join, "_QUERIES", 100)
    index, _, _ = make_index(str(tmp_path), rows=3000, files=3, **made)
    delete_ids(index, range(100, 400))
    shard = load_whole(index, index.manifest())
    queries = shard.embeddings(np.arange(0, 3000, 7))
    for nprobe in (0, 3) if made.get("nlist") else (0,):
        scores, ordinals = Join(shard, threads).search(queries, 9, nprobe=nprobe)
        wanted = shard.searcher.search(queries, 9, nprobe=nprobe or None)
        np.testing.assert_array_equal(ordinals, wanted[1])
        np.testing.assert_array_equal(scores, wanted[0])
        # What scores less than a bound may be missing, and nothing else.
        limit = float(np.median(wanted[0]))
        near, rows = Join(shard, threads).search(queries, 9, nprobe=nprobe, within=limit)
        there = wanted[0] >= limit
        np.testing.assert_array_equal(rows[there], wanted[1][there])
        np.testing.assert_array_equal(near[there], wanted[0][there])
        assert (near[~there] < limit).all()


def test_more_neighbours_than_codes_and_no_queries(tmp_path: Path) -> None:
    index, manifest, _ = make_index(str(tmp_path), rows=300, files=2)
    shard = load_whole(index, manifest)
    queries = shard.embeddings(np.arange(70))
    found, wanted = Join(shard, 2).search(queries, 500), shard.searcher.search(queries, 500)
    np.testing.assert_array_equal(found[1], wanted[1])
    np.testing.assert_array_equal(found[0], wanted[0])
    assert Join(shard, 2).search(queries[:0], 5)[1].shape == (0, 5)


def test_one_code_for_all(tmp_path: Path) -> None:
    same = np.repeat(make_vectors(1, 16), 1500, axis=0)
    embeddings = np.concatenate([same, make_vectors(500, 16, seed=9)])
    index, manifest, _ = make_index(str(tmp_path), rows=2000, files=2, embeddings=embeddings)
    shard = load_whole(index, manifest)
    queries = shard.embeddings(np.arange(0, 2000, 50))
    found, wanted = Join(shard, 1).search(queries, 20), shard.searcher.search(queries, 20)
    np.testing.assert_array_equal(found[1], wanted[1])


def test_candidates_stay_bounded() -> None:
    import torch

    rng, n, depth = np.random.default_rng(0), 50, 5
    found, every = Candidates(np.full(n, -np.inf, np.float32), depth), []
    for block in range(60):
        scores = rng.normal(size=(n, 64)).astype(np.float32) + block / 30  # ever better ones
        every.append(scores)
        found.offer(np.arange(n), np.arange(64) + 64 * block, torch.from_numpy(scores), 8)
        assert found._count <= 2 * n * depth + n * 64
    values, rows = found.best()
    stacked = np.hstack(every)
    wanted = np.argsort(-stacked, axis=1)[:, :depth]
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_array_equal(values, np.take_along_axis(stacked, wanted, axis=1))
