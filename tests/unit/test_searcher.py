"""A Searcher answers exactly, and merged shards answer what one Searcher over all codes does."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_cluster.errors import InputError, IntegrityError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.tombstones import delete_ids
from dq_cluster.search import faiss_index
from dq_cluster.search.codebooks import Codebooks
from dq_cluster.search.codes import Codes
from dq_cluster.search.exact import Centroids, ExactScores
from dq_cluster.search.filters import parse_filter
from dq_cluster.search.merge import merge
from dq_cluster.search.placement import Places
from dq_cluster.search.searcher import Searcher
from dq_cluster.search.selection import Selection
from dq_cluster.search.shard import load_whole
from tests.support import encode, make_index, make_vectors, shards_of

GEOMETRIES = {
    "8-bit": CodeGeometry(dim=8, m=2, nbits=8),
    "8-bit-ip": CodeGeometry(dim=8, m=2, nbits=8, metric="ip"),
    "4-bit": CodeGeometry(dim=8, m=4, nbits=4),
    "4-bit-ip": CodeGeometry(dim=8, m=4, nbits=4, metric="ip"),
    "ivf": CodeGeometry(dim=8, m=2, nbits=8, nlist=5),
    "ivf-4-bit": CodeGeometry(dim=8, m=4, nbits=4, nlist=5),
    "ivf-4-bit-ip": CodeGeometry(dim=8, m=4, nbits=4, metric="ip", nlist=5),
}


def tensors_of(geometry: CodeGeometry, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (geometry.m, geometry.ksub, geometry.dsub)
    return {
        "codebooks": rng.normal(size=shape).astype(np.float32),
        "coarse_centroids": rng.normal(size=(geometry.nlist, geometry.dim)).astype(np.float32),
    }


def searcher_over(
    codes: np.ndarray,
    cells: np.ndarray,
    tensors: dict[str, np.ndarray],
    geometry: CodeGeometry,
    base: int = 0,
    cuts: Sequence[int] = (),
) -> Searcher:
    """`cuts`: where one segment ends and the next begins."""
    codebooks = Codebooks.of(tensors, geometry)
    edges = [0, *cuts, len(codes)]
    segments = [
        Codes(codes[a:b], codebooks, cells[a:b] if geometry.nlist else None)
        for a, b in itertools.pairwise(edges)
    ]
    return Searcher(segments, codebooks, Places([len(codes)], [base]))


def selection(keep: np.ndarray) -> Selection:
    """`keep` (rows,) bool, over the one segment that a small index has."""
    return Selection([keep])


def brute_force(
    queries: np.ndarray, codes: np.ndarray, tensors: dict[str, np.ndarray], geometry: CodeGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """All rows in order: the definition, computed without faiss."""
    words = Centroids(tensors["codebooks"], geometry).of(codes)[None]
    query = queries[:, None].astype(np.float64)
    terms = query * words if geometry.metric == "ip" else -np.square(query - words)
    parts = terms.reshape(len(queries), len(codes), geometry.m, geometry.dsub)
    exact = (parts.sum(3).sum(2) + 0).astype(np.float32)
    order = np.argsort(-exact, axis=1, kind="stable")
    return np.take_along_axis(exact, order, axis=1), order


@pytest.mark.parametrize("name", GEOMETRIES)
@settings(max_examples=25)
@given(data=st.data())
def test_merged_shards_equal_one_index_and_the_definition(name: str, data: st.DataObject) -> None:
    geometry = GEOMETRIES[name]
    tensors = tensors_of(geometry)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31), label="seed"))
    rows = data.draw(st.integers(0, 300), label="rows")
    k = data.draw(st.integers(1, 350), label="k")
    distinct = data.draw(st.sampled_from([1, 3, 40, 1000]), label="distinct codes")
    pool = rng.integers(0, 256, (distinct, geometry.code_size), dtype=np.uint8)
    codes = pool[rng.integers(distinct, size=rows)]
    cells = rng.integers(0, max(geometry.nlist, 1), rows).astype(np.int32)
    queries = rng.normal(size=(3, geometry.dim)).astype(np.float32)
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4), label="cuts"))
    edges = [0, *cuts, rows]

    one = searcher_over(codes, cells, tensors, geometry).search(queries, k)
    answers = [
        searcher_over(codes[a:b], cells[a:b], tensors, geometry, base=a).search(queries, k)
        for a, b in itertools.pairwise(edges)
    ]
    cut = searcher_over(codes, cells, tensors, geometry, cuts=cuts).search(queries, k)
    scores, ordinals, _ = merge(answers, k)

    np.testing.assert_array_equal(ordinals, one[1])
    np.testing.assert_array_equal(scores, one[0])
    np.testing.assert_array_equal(cut[1], one[1])
    np.testing.assert_array_equal(cut[0], one[0])
    wanted_scores, wanted = brute_force(queries, codes, tensors, geometry)
    found = min(k, rows)
    np.testing.assert_array_equal(ordinals[:, :found], wanted[:, :found])
    np.testing.assert_array_equal(scores[:, :found], wanted_scores[:, :found])
    assert (ordinals[:, found:] == -1).all()
    assert np.isneginf(scores[:, found:]).all()


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("nbits", [4, 8])
def test_a_score_does_not_depend_on_what_is_scored_beside_it(
    nbits: Literal[4, 8], metric: Literal["l2", "ip"]
) -> None:
    geometry = CodeGeometry(dim=96, m=24, nbits=nbits, metric=metric)
    words = Centroids(tensors_of(geometry)["codebooks"], geometry)
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 256, (5000, geometry.code_size), dtype=np.uint8)
    queries = rng.normal(size=(17, geometry.dim)).astype(np.float32)
    rows = rng.integers(0, 5000, (17, 5000))  # more than are scored in one piece
    scores = ExactScores(queries, words).of(codes, rows)
    for query, place in [(0, 0), (3, 4999), (16, 2501)]:
        alone = ExactScores(queries[query : query + 1], words)
        np.testing.assert_array_equal(
            alone.of(codes, rows[query : query + 1, place : place + 1])[0, 0], scores[query, place]
        )
    plain = words.of(codes[rows[0]])
    wanted = plain @ queries[0] if metric == "ip" else -np.square(queries[0] - plain).sum(1)
    np.testing.assert_allclose(scores[0], wanted, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("level", ["NONE", "AVX2", "AVX512"])
@pytest.mark.parametrize("name", ["8-bit", "4-bit"])
def test_the_instruction_set_does_not_change_the_answer(name: str, level: str) -> None:
    simd = getattr(faiss, f"SIMDLevel_{level}")
    if not faiss.SIMDConfig.is_simd_level_available(simd):
        pytest.skip(f"this processor has no {level}")
    geometry = GEOMETRIES[name]
    tensors = tensors_of(geometry)
    codes = np.random.default_rng(1).integers(0, 256, (3000, geometry.code_size), dtype=np.uint8)
    queries = np.random.default_rng(2).normal(size=(5, geometry.dim)).astype(np.float32)
    searcher = searcher_over(codes, np.zeros(3000, np.int32), tensors, geometry)
    before = faiss.SIMDConfig.get_level()
    try:
        faiss.SIMDConfig.set_level(simd)
        scores, ordinals = searcher.search(queries, 50)
    finally:
        faiss.SIMDConfig.set_level(before)
    wanted_scores, wanted = brute_force(queries, codes, tensors, geometry)
    np.testing.assert_array_equal(ordinals, wanted[:, :50])
    np.testing.assert_array_equal(scores, wanted_scores[:, :50])


@pytest.mark.parametrize("name", ["8-bit", "8-bit-ip", "4-bit", "4-bit-ip"])
def test_scores_are_those_of_a_plain_faiss_index(name: str) -> None:
    geometry = GEOMETRIES[name]
    tensors = tensors_of(geometry)
    vectors = make_vectors(2000, geometry.dim)
    codes, _ = encode(vectors, tensors, geometry)
    plain = faiss_index.unfilled(0, tensors["codebooks"], geometry)
    plain.add_sa_codes(codes)
    found, labels = plain.search(vectors[:20], 10)
    searcher = searcher_over(codes, np.empty(0), tensors, geometry)
    scores, ordinals = searcher.search(vectors[:20], 10)
    np.testing.assert_allclose(
        scores, found if geometry.metric == "ip" else -found, rtol=1e-4, atol=1e-4
    )
    for row in range(len(scores)):  # faiss orders equal scores as it likes: compare the rest
        clear = scores[row] > scores[row, -1] + 1e-3
        assert set(ordinals[row][clear]) <= set(labels[row])


def test_nprobe_looks_into_the_nearest_cells_only() -> None:
    geometry = GEOMETRIES["ivf"]
    tensors = tensors_of(geometry)
    vectors = make_vectors(500, geometry.dim)
    codes, cells = encode(vectors, tensors, geometry)
    assert cells is not None
    searcher = searcher_over(codes, cells, tensors, geometry)
    query = vectors[:1]
    _, ordinals = searcher.search(query, 500, nprobe=1)
    nearest = ((tensors["coarse_centroids"] - query) ** 2).sum(1).argmin()
    assert set(ordinals[ordinals >= 0]) == set(np.flatnonzero(cells == nearest))


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_a_kept_subset_is_searched_as_if_the_rest_did_not_exist(name: str, share: float) -> None:
    geometry = GEOMETRIES[name]
    tensors = tensors_of(geometry)
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, (400, geometry.code_size), dtype=np.uint8)
    cells = rng.integers(0, 5, 400).astype(np.int32)
    keep = rng.random(400) < share
    queries = rng.normal(size=(4, geometry.dim)).astype(np.float32)
    searcher = searcher_over(codes, cells, tensors, geometry, base=7, cuts=[0, 130])
    scores, ordinals = searcher.search(
        queries, 10, keep=Selection([keep[:0], keep[:130], keep[130:]])
    )
    rows = np.flatnonzero(keep)
    wanted_scores, wanted = brute_force(queries, codes[rows], tensors, geometry)
    found = min(10, len(rows))
    np.testing.assert_array_equal(ordinals[:, :found], rows[wanted[:, :found]] + 7)
    np.testing.assert_array_equal(scores[:, :found], wanted_scores[:, :found])
    assert (ordinals[:, found:] == -1).all()


@pytest.mark.parametrize("nbits", [4, 8])
@pytest.mark.parametrize("nlist", [0, 4])
def test_loading_shards_from_storage(tmp_path: Path, nbits: Literal[4, 8], nlist: int) -> None:
    index, manifest, vectors = make_index(str(tmp_path), rows=700, nbits=nbits, nlist=nlist)
    whole = load_whole(index, manifest).searcher
    assert whole.rows == 700
    parts = [shard.searcher for shard in shards_of(index, manifest, 3)]
    queries = vectors[:6]
    scores, ordinals, _ = merge([part.search(queries, 30) for part in parts], 30)
    one_scores, one_ordinals = whole.search(queries, 30)
    np.testing.assert_array_equal(ordinals, one_ordinals)
    np.testing.assert_array_equal(scores, one_scores)
    first = parts[1].places.bases[:1]
    np.testing.assert_array_equal(parts[1].embeddings(first), whole.embeddings(first))


def test_a_file_of_another_model_is_refused(tmp_path: object) -> None:
    index, manifest, _ = make_index(str(tmp_path), rows=300)
    _, other, _ = make_index(str(tmp_path), rows=300, seed=1)
    mixed = manifest.model_copy(update={"files": other.files})
    with pytest.raises(IntegrityError, match="model is"):
        load_whole(index, mixed)


def test_wrong_questions_are_refused() -> None:
    geometry = GEOMETRIES["8-bit"]
    codes = np.zeros((3, 2), np.uint8)
    searcher = searcher_over(codes, np.empty(0), tensors_of(geometry), geometry)
    with pytest.raises(InputError, match=r"shape \(n, 8\)"):
        searcher.search(np.zeros((1, 5), np.float32), 1)
    with pytest.raises(InputError, match="at least 1"):
        searcher.search(np.zeros((1, 8), np.float32), 0)


@pytest.mark.parametrize("nbits", [4, 8])
@pytest.mark.parametrize("nlist", [0, 4])
def test_deleted_rows_are_gone_and_ordinals_stay(
    tmp_path: object, nbits: Literal[4, 8], nlist: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dq_cluster.index.codefile._BATCH_ROWS", 64)  # several to a file
    index, before, vectors = make_index(str(tmp_path), rows=700, nbits=nbits, nlist=nlist)
    full = load_whole(index, before)
    whole = full.searcher
    gone = [0, 1, 5, 99, 100, 350, 698, 699]
    ids = full.rows.take(np.arange(700)).column("id").to_pylist()
    after = delete_ids(index, [ids[row] for row in gone])
    keep = np.ones(700, bool)
    keep[gone] = False
    wanted = whole.search(vectors[:6], 40, keep=selection(keep))
    for count in (1, 3):
        parts = [shard.searcher for shard in shards_of(index, after, count)]
        assert sum(part.rows for part in parts) == 692
        scores, ordinals, _ = merge([part.search(vectors[:6], 40) for part in parts], 40)
        np.testing.assert_array_equal(ordinals, wanted[1])
        np.testing.assert_array_equal(scores, wanted[0])
    left = load_whole(index, after)
    for row in np.array([[2], [101], [697]]):
        np.testing.assert_array_equal(left.searcher.embeddings(row), whole.embeddings(row))
    assert left.rows.find(ids[99]) is None
    assert left.rows.find(ids[101]) == 101
    label = parse_filter({"label": 1}, left.rows.schema)
    kept = left.rows.matching(label)
    assert kept.count == (keep & (np.arange(700) % 10 == 1)).sum()
