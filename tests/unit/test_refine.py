"""The second code: the same winners for every sharding, from disk, through every index tool."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_cluster.errors import IntegrityError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.codefile import row_schema
from dq_cluster.index.compact import compact
from dq_cluster.index.tombstones import delete_ids
from dq_cluster.index.verify import verify
from dq_cluster.model import quantizer
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.fit import embed_all, fit
from dq_cluster.search.codebooks import Codebooks
from dq_cluster.search.codes import Codes
from dq_cluster.search.decoder import Redecoder
from dq_cluster.search.exact import Centroids
from dq_cluster.search.merge import MISSING, rerank
from dq_cluster.search.placement import Places
from dq_cluster.search.refine import Refiner, load_second_codes
from dq_cluster.search.searcher import Searcher
from dq_cluster.search.segments import Segment
from dq_cluster.search.shard import load_whole
from dq_cluster.search.stored_rows import StoredRows
from tests.support import encode, make_index, make_vectors, shards_of, train_words

SECOND = CodeGeometry(dim=16, m=8)
Answer = tuple[np.ndarray, np.ndarray, np.ndarray]


def refined(
    searcher: Searcher, refiner: Refiner | Redecoder, queries: np.ndarray, candidates: int
) -> Answer:
    scores, ordinals = searcher.search(queries, candidates)
    return scores, ordinals, refiner.scores(queries, ordinals)


@settings(max_examples=40)
@given(data=st.data())
def test_sharding_changes_neither_candidates_nor_winners(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31), label="seed"))
    rows = data.draw(st.integers(1, 200), label="rows")
    k = data.draw(st.integers(1, 30), label="k")
    candidates = k * data.draw(st.integers(2, 8), label="k_factor")
    cuts = data.draw(st.lists(st.integers(0, rows), max_size=4), label="cuts")
    first = CodeGeometry(dim=16, m=2)
    codebooks = Codebooks.of({"codebooks": rng.normal(size=(2, 256, 8)).astype(np.float32)}, first)
    words = Centroids(rng.normal(size=(8, 256, 2)).astype(np.float32), SECOND)
    # Few distinct codes: equal scores at every cut.
    codes = rng.integers(0, 256, (12, 2), np.uint8)[rng.integers(12, size=rows)]
    second = rng.integers(0, 256, (30, 8), np.uint8)[rng.integers(30, size=rows)]
    queries = rng.normal(size=(3, 16)).astype(np.float32)

    scores, ordinals, _ = rerank(
        [
            refined(
                Searcher([Codes(codes[a:b], codebooks)], codebooks, Places([b - a], [a])),
                Refiner([second[a:b]], words, Places([b - a], [a])),
                queries,
                candidates,
            )
            for a, b in itertools.pairwise([0, *sorted(cuts), rows])
        ],
        k,
    )

    _, found = Searcher([Codes(codes, codebooks)], codebooks).search(queries, candidates)
    for query, row in enumerate(found):
        competing = np.sort(row[row != MISSING])
        exact = -np.square(queries[query].astype(float) - words.of(second[competing]))
        exact = exact.reshape(-1, 8, 2).sum(2).sum(1).astype(np.float32)
        order = np.argsort(-exact, kind="stable")[:k]
        np.testing.assert_array_equal(ordinals[query, : len(order)], competing[order])
        np.testing.assert_array_equal(scores[query, : len(order)], exact[order])
        assert (ordinals[query, len(order) :] == MISSING).all()


@pytest.mark.parametrize("nlist", [0, 4])
def test_deletes_compaction_and_verification_carry_it(tmp_path: Path, nlist: int) -> None:
    index, manifest, _ = make_index(str(tmp_path), rows=600, m=2, nlist=nlist, refine_m=8)
    before = load_whole(index, manifest)
    whole = before.refiner
    assert whole is not None
    ids = before.rows.take(np.arange(600)).column("id").to_numpy()
    kept = np.delete(np.arange(600), [0, 7, 599])
    wanted = dict(zip(ids[kept], whole.embeddings(kept), strict=True))

    delete_ids(index, ids[[0, 7, 599]].tolist())
    after = compact(index, target_rows=400)
    assert after.rows == 597
    assert verify(index).problems == ()
    new_ids = load_whole(index, after).rows.take(np.arange(597)).column("id").to_numpy()
    for count in (1, 2):
        for shard in shards_of(index, after, count):
            assert shard.refiner is not None
            some = shard.shard.places.ordinals(np.arange(0, shard.shard.rows, 17))
            for ordinal, found in zip(some, shard.refiner.embeddings(some), strict=True):
                np.testing.assert_array_equal(found, wanted[new_ids[ordinal]])
    assert set(new_ids) == set(wanted)


def test_rows_that_tombstones_name_do_not_shift_the_others(tmp_path: Path) -> None:
    index, manifest, vectors = make_index(str(tmp_path), rows=300, m=2, refine_m=8)
    before = load_whole(index, manifest).refiner
    after = load_whole(index, delete_ids(index, [0, 1, 2, 150])).refiner
    assert before is not None
    assert after is not None
    ordinals = np.array([[3, 149, 151, MISSING]])
    scores = after.scores(vectors[:1], ordinals)
    np.testing.assert_array_equal(scores, before.scores(vectors[:1], ordinals))
    assert np.isneginf(scores[0, 3])


def test_a_version_without_second_codes_has_no_refiner(tmp_path: Path) -> None:
    index, manifest, _ = make_index(str(tmp_path), rows=300)
    assert load_whole(index, manifest).refiner is None
    assert "refine" not in manifest.to_json().decode()  # as it was before there were any


def test_codes_are_those_of_an_unnamed_file(tmp_path: Path) -> None:
    index, manifest, _ = make_index(str(tmp_path), rows=300, refine_m=8)
    (segment, *_) = load_whole(index, manifest).segments
    assert segment.second is not None
    address = segment.second.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(edge, 16) for edge in line.split()[0].split("-"))
        if begin <= address < end:
            assert line.endswith("(deleted)")
            break
    else:
        pytest.fail("the codes lie in no mapping")


def test_a_longer_code_finds_more_of_the_exact_neighbours() -> None:
    vectors = make_vectors(3000, 16)
    first = CodeGeometry(dim=16, m=2)
    codebooks, words = train_words(vectors, first), train_words(vectors, SECOND)
    codes, _ = encode(vectors, {"codebooks": codebooks}, first)
    second, _ = encode(vectors, {"codebooks": words}, SECOND)
    queries = make_vectors(3050, 16)[3000:] + 0.05
    of_first = Codebooks.of({"codebooks": codebooks}, first)
    answer = refined(
        Searcher([Codes(codes, of_first)], of_first),
        Refiner([second], Centroids(words, SECOND), Places([3000], [0])),
        queries,
        100,
    )
    distances = np.square(queries[:, None] - vectors[None]).sum(2)
    exact = np.argsort(distances, axis=1)[:, :10]

    def recall(rows: np.ndarray) -> float:
        return float(np.mean([np.isin(e, r).mean() for e, r in zip(exact, rows, strict=True)]))

    assert recall(rerank([answer], 10)[1]) > recall(answer[1][:, :10]) + 0.2


def test_the_first_codes_are_those_of_the_model_without_it() -> None:
    features = make_vectors(400, 24)
    plain = ModelSettings(
        bits=16, dim=16, hidden=(), components=16, neighbours=5, epochs=1, batch_size=100
    )
    one = fit(features, plain, seed=0).state_dict()
    other = fit(features, plain.model_copy(update={"refine_bits": 64}), seed=0)
    for name, tensor in one.items():
        torch.testing.assert_close(other.state_dict()[name], tensor, atol=0, rtol=0)
    embedding = embed_all(other, torch.from_numpy(features))
    words = quantizer.decode(other.refine(embedding).long(), other.refine_codebooks)
    assert (words - embedding).square().sum() < (
        other.quantize(embedding) - embedding
    ).square().sum()


def test_a_bucket_answers_like_a_disk(tmp_path: Path, s3: str) -> None:
    """Many small files, read ahead by threads: every row has its own codes, id, and columns."""
    answers = []
    for uri in (str(tmp_path / "index"), f"{s3}/index"):
        index, manifest, vectors = make_index(uri, rows=900, files=40, refine_m=8, string_ids=True)
        shard = shards_of(index, manifest, 2)[1]
        assert shard.refiner is not None
        found = refined(shard.searcher, shard.refiner, vectors[:5], 500)
        ordinals = shard.shard.places.ordinals(np.arange(shard.shard.rows))
        answers.append((*found, ordinals, shard.rows.take(ordinals, ["id", "label"])))
    for one, other in zip(*answers, strict=True):
        assert one.equals(other) if hasattr(one, "equals") else np.array_equal(one, other)
    gone = manifest.files[0]
    schema, segment = row_schema(index.storage, manifest), Segment(manifest.files)
    index.storage.delete(gone.path)
    for load in (
        lambda: Codes.load(index, manifest, segment, Codebooks.load(index.storage, manifest)),
        lambda: StoredRows.load(index, manifest, segment, schema),
        lambda: load_second_codes(index, manifest, segment),
    ):
        with pytest.raises(
            IntegrityError, match=rf"{gone.path} is named by the manifest but missing"
        ):
            load()
