"""The decoder of codes: sums that are exact in any order, one answer for every sharding, a gain."""

import asyncio
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_cluster.client import Client
from dq_cluster.errors import InputError, IntegrityError
from dq_cluster.geometry import DECODER_GRID, CodeGeometry, Metric
from dq_cluster.index.catalog import Index
from dq_cluster.model import quantizer
from dq_cluster.model.bundle import load_model
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.fit import embed_all, fit
from dq_cluster.search.codebooks import Codebooks
from dq_cluster.search.codes import Codes
from dq_cluster.search.decoder import Decoder, Redecoder
from dq_cluster.search.merge import MISSING, rerank
from dq_cluster.search.placement import Places
from dq_cluster.search.searcher import Searcher
from dq_cluster.search.shard import load_whole
from dq_cluster.serve.api import parse_request
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.local import LocalService
from tests.support import make_model, make_vectors, make_version

GEOMETRY = CodeGeometry(dim=16, m=2)


def tensors_of(geometry: CodeGeometry, hidden: int = 24, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    m, ksub, dim = geometry.m, geometry.ksub, geometry.dim
    shapes = {
        "words": (m, ksub, dim),
        "hidden_words": (m, ksub, hidden),
        "hidden_bias": (hidden,),
        "output": (hidden, dim),
    }
    return {
        f"decode.{name}": (np.round(rng.normal(size=shape) / DECODER_GRID) * DECODER_GRID).astype(
            np.float32
        )
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(("m", "nbits"), [(2, 8), (4, 4)])
def test_it_sums_exactly_whatever_the_order(m: int, nbits: int) -> None:
    geometry = CodeGeometry(dim=16, m=m, nbits=nbits)
    tensors = tensors_of(geometry, hidden=300)
    codes = np.random.default_rng(1).integers(0, 256, (50, geometry.code_size), np.uint8)
    found = Decoder(tensors, geometry).of(codes)
    # In whole numbers, which nothing rounds, and with the hidden layer backwards.
    whole = {
        name: (t.astype(np.float64) / DECODER_GRID).astype(np.int64) for name, t in tensors.items()
    }
    parts = quantizer.unpack(torch.from_numpy(codes), nbits).numpy()
    at = np.arange(m)
    hidden = whole["decode.hidden_words"][at, parts].sum(1) + whole["decode.hidden_bias"]
    wanted = (
        whole["decode.words"][at, parts].sum(1) * 4096
        + np.maximum(hidden, 0) @ whole["decode.output"]
    )
    np.testing.assert_array_equal(found, wanted * DECODER_GRID**2)
    tensors |= {
        "decode.hidden_words": tensors["decode.hidden_words"][..., ::-1],
        "decode.hidden_bias": tensors["decode.hidden_bias"][::-1],
        "decode.output": tensors["decode.output"][::-1],
    }
    np.testing.assert_array_equal(Decoder(tensors, geometry).of(codes), found)
    np.testing.assert_array_equal(Decoder(tensors, geometry).of(codes[:1]), found[:1])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("words", lambda t: t + np.float32(1e-5), "off the grid"),
        ("words", lambda t: t * np.float32(np.nan), "off the grid"),
        ("output", lambda t: t[:-1], "must have shape"),
        ("output", lambda t: t * np.float32(2**30), "too large"),
        ("hidden_bias", None, "lacks the tensor"),
    ],
)
def test_a_decoder_that_could_round_is_refused(name: str, change: object, message: str) -> None:
    tensors = tensors_of(GEOMETRY)
    old = tensors.pop(f"decode.{name}")
    if callable(change):
        tensors[f"decode.{name}"] = change(old)
    with pytest.raises(IntegrityError, match=message):
        Decoder(tensors, GEOMETRY)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@settings(max_examples=20)
@given(data=st.data())
def test_sharding_changes_neither_candidates_nor_winners(
    metric: Metric, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31), label="seed"))
    rows = data.draw(st.integers(1, 200), label="rows")
    k = data.draw(st.integers(1, 30), label="k")
    candidates = k * data.draw(st.integers(2, 8), label="decode_factor")
    cuts = data.draw(st.lists(st.integers(0, rows), max_size=4), label="cuts")
    geometry = CodeGeometry(dim=16, m=2, metric=metric)
    tensors = tensors_of(geometry)
    tensors["codebooks"] = rng.normal(size=(2, 256, 8)).astype(np.float32)
    codebooks = Codebooks.of(tensors, geometry)
    assert codebooks.decoder is not None
    codes = rng.integers(0, 256, (12, 2), np.uint8)[rng.integers(12, size=rows)]  # ties at all cuts
    queries = rng.normal(size=(3, 16)).astype(np.float32)

    answers = []
    for a, b in itertools.pairwise([0, *sorted(cuts), rows]):
        places = Places([b - a], [a])
        scores, found = Searcher([Codes(codes[a:b], codebooks)], codebooks, places).search(
            queries, candidates
        )
        decoded = Redecoder([codes[a:b]], codebooks.decoder, places).scores(queries, found)
        answers.append((scores, found, decoded))
    scores, ordinals, _ = rerank(answers, k)

    _, found = Searcher([Codes(codes, codebooks)], codebooks).search(queries, candidates)
    for query, row in enumerate(found):
        competing = np.sort(row[row != MISSING])
        vectors = codebooks.decoder.of(codes[competing])
        asked = queries[query].astype(float)
        exact = vectors @ asked if metric == "ip" else -np.square(asked - vectors).sum(1)
        order = np.argsort(-exact.astype(np.float32), kind="stable")[:k]
        assert set(ordinals[query, : len(order)]) <= set(competing)
        np.testing.assert_allclose(scores[query, : len(order)], exact[order], rtol=1e-5)
        assert (np.diff(scores[query, : len(order)]) <= 0).all()
        assert (ordinals[query, len(order) :] == MISSING).all()


def test_it_comes_nearer_than_the_centroids_and_the_same_seed_learns_the_same() -> None:
    features = make_vectors(600, 24)
    plain = ModelSettings(
        bits=16,
        dim=16,
        hidden=(),
        components=16,
        neighbours=5,
        epochs=1,
        batch_size=100,
        objective="neighbours",
    )
    learnt = plain.model_copy(update={"decode_hidden": 32, "decode_epochs": 20})
    one, other = fit(features, learnt, seed=0), fit(features, learnt, seed=0)
    assert all(
        torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items()
    )
    for name, tensor in fit(features, plain, seed=0).state_dict().items():
        assert torch.equal(tensor, one.state_dict()[name])  # the codes are those without it
    embedding = embed_all(one, torch.from_numpy(features))
    decoded = one.decode(one.assign(embedding))
    before = (one.quantize(embedding) - embedding).square().sum()
    assert (decoded - embedding).square().sum() < 0.9 * before
    tensors = {name: tensor.numpy() for name, tensor in one.state_dict().items()}
    codes = one.code(embedding).numpy()
    np.testing.assert_allclose(Decoder(tensors, one.geometry).of(codes), decoded.numpy(), atol=1e-5)


def test_a_second_code_and_a_decoder_are_not_both_taken() -> None:
    with pytest.raises(ValueError, match="refine_bits 64 and decode_hidden 8"):
        ModelSettings(refine_bits=64, decode_hidden=8)
    assert "decode" not in ModelSettings().model_dump_json()  # as it was before there were any


def test_an_index_is_searched_by_what_its_codes_decode_to(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    card = make_model(uri, decode_hidden=16)
    manifest, features = make_version(uri, card, rows=500, files=5)
    index = Index.at(uri)
    network, _ = load_model(index.storage, card.digest)
    assert card.decodes
    shard = load_whole(index, manifest)
    assert isinstance(shard.refiner, Redecoder)
    queries = embed_all(network, torch.from_numpy(features[:4])).numpy()
    scores, candidates = shard.searcher.search(queries, 30)
    wanted_scores, wanted, _ = rerank(
        [(scores, candidates, shard.refiner.scores(queries, candidates))], 10
    )
    plain = shard.searcher.search(queries, 10)
    assert (plain[1] != wanted).any()
    asked = {"vectors": features[:4].tolist(), "k": 10}
    for shards in (1, 3):
        service = LocalService(ServeSettings(index=uri, shards=shards))
        for factor, by in ((3, (wanted_scores, wanted)), (1, plain)):
            request = parse_request(asked | {"decode_factor": factor})
            answer = asyncio.run(service.search(request))
            np.testing.assert_array_equal([[h.score for h in hits] for hits in answer.hits], by[0])
            np.testing.assert_array_equal([[h.id for h in hits] for hits in answer.hits], by[1])
    with Client(uri) as client:
        assert client.info().decoder
        hits = client.search(id=7, k=1000, decode_factor=2).hits[0]
        of_row = shard.refiner.embeddings(np.array([7]))
        np.testing.assert_array_equal(of_row[0], shard.find(7).embedding)  # type: ignore[union-attr]
        assert next(hit.score for hit in hits if hit.id == 7) == pytest.approx(0, abs=1e-6)
        with pytest.raises(InputError, match="no second code"):
            client.search(id=7, k_factor=2)
        with pytest.raises(
            InputError, match=r"decode_factor 100 are .* or lower k or decode_factor"
        ):
            client.search(embeddings=np.zeros((11, 16)), k=1000, decode_factor=100)
