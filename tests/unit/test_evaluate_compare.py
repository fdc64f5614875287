import numpy as np
import pytest
import torch

from dq_cluster.errors import InputError
from dq_cluster.evaluate.baselines import BASELINES
from dq_cluster.evaluate.baselines.hashing import (
    anchor_graph_hashing,
    kmeans_hashing,
    spectral_hashing,
)
from dq_cluster.evaluate.compare import METHODS, compare
from dq_cluster.evaluate.metrics import mean_average_precision
from dq_cluster.evaluate.rows import Row
from dq_cluster.evaluate.tables import by_length
from dq_cluster.evaluate.variants import ABLATIONS, search_codes
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.fit import fit
from dq_cluster.model.quantizer import decode, unpack


def clusters(n: int, seed: int, dim: int = 72) -> tuple[np.ndarray, np.ndarray]:
    """n points of 8 clusters, sorted by cluster as files on disk often are."""
    centres = np.random.default_rng(0).normal(size=(8, dim))
    generator = np.random.default_rng(seed)
    labels = np.sort(generator.integers(0, 8, n))
    return (centres[labels] + 0.8 * generator.normal(size=(n, dim))).astype("f4"), labels


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_beats_chance_and_ranks_every_query(name: str) -> None:
    (x, y), (q, yq) = clusters(600, 1), clusters(40, 2)
    found = BASELINES[name](x, q, 16, 100, 0)
    assert found.shape == (40, 100)
    assert all(len(set(row)) == 100 for row in found)
    assert mean_average_precision(found, yq, y, 100) > 2 / 8


@pytest.mark.parametrize("name", ["k-means hashing", "anchor-graph hashing"])
def test_equal_seeds_give_equal_rankings(name: str) -> None:
    (x, _), (q, _) = clusters(1000, 1), clusters(20, 2)
    once, twice = (BASELINES[name](x, q, 16, 10, 5) for _ in range(2))
    np.testing.assert_array_equal(once, twice)


def test_spectral_hashing_spends_more_bits_on_longer_axes() -> None:
    generator = np.random.default_rng(0)
    box = generator.uniform(-1, 1, (4000, 4)) * [8, 1, 0.1, 0.1]
    codes = spectral_hashing(box, [box], 4, 0)[0]
    # All four modes of the longest axis vary slower than the first of the next: the code
    # follows position along it, so that near points differ in few bits and far ones in more.
    order = np.argsort(box[:, 0])
    distance = (codes[order[:, None]][:-1000] != codes[order[:, None]][1000:]).mean()
    near = (codes[order][:-10] != codes[order][10:]).mean()
    assert near < 0.05 < 0.2 < distance


def test_anchor_graph_hashing_follows_a_manifold() -> None:
    """A spiral: one bit cuts it once along its length, where any hyperplane cuts it often."""
    length = np.sqrt(np.random.default_rng(0).uniform(0, 1, 2000)) * 4 * np.pi
    spiral = np.stack([length * np.cos(length), length * np.sin(length)], 1).astype("f4")
    code = anchor_graph_hashing(spiral, [spiral], 1, 0, anchors=100, nearest=2)[0][:, 0]
    changes = (np.diff(code[np.argsort(length)].astype(int)) != 0).sum()
    assert 0.3 < code.mean() < 0.7
    assert changes < 10


def test_kmeans_hashing_keeps_distances_in_hamming_space() -> None:
    x = np.random.default_rng(0).normal(size=(3000, 8)).astype("f4")
    codes = kmeans_hashing(x, [x], 8, 0)[0]
    one, other = np.arange(1500), np.arange(1500, 3000)
    euclidean = np.linalg.norm(x[one] - x[other], axis=1)
    hamming = (codes[one] != codes[other]).sum(1)
    assert np.corrcoef(euclidean, hamming)[0, 1] > 0.4
    assert 0.3 < codes.mean() < 0.7


def test_a_code_longer_than_the_features_allow_is_refused() -> None:
    x = np.eye(8, dtype="f4")
    with pytest.raises(InputError, match="ITQ16,LSH of 8 dimensions"):
        BASELINES["ITQ"](x, x, 16, 2, 0)


def test_anchor_graph_hashing_needs_more_anchors_than_bits() -> None:
    with pytest.raises(InputError, match="32 bits"):
        anchor_graph_hashing(np.zeros((50, 4), "f4"), [], 32, 0, anchors=32)


def test_comparison_measures_all_methods_alike() -> None:
    (x, y), (q, yq) = clusters(500, 1), clusters(40, 2)
    settings = ModelSettings(dim=16, hidden=(32,), components=32, epochs=2)
    methods = ("exact search", "ITQ", "LSH", "DeepQuan", "DeepQuan 4-bit")
    seen: list[Row] = []
    rows = compare(
        x, y, q, yq, methods=methods, bits=(16,), seeds=(0, 1), settings=settings, k=100,
        on_row=seen.append,
    )  # fmt: skip
    assert seen == rows
    assert [row.method for row in rows] == list(methods)
    exact, itq, lsh, deep, _ = rows
    assert exact.recall == (1.0,)
    assert len(itq.map) == len(itq.recall) == 2
    assert min(itq.map) > max(lsh.map)
    assert min(deep.map) > max(lsh.map)
    assert all(row.map[0] == pytest.approx(np.mean(row.ap), abs=1e-4) for row in rows)
    assert all(0 < value <= 1 for value in deep.training["variance"])
    table = by_length(rows, ("mAP@100", "recall@10"), 100)
    assert [line["method"] for line in table] == list(methods)
    assert table[0]["recall@10, 16 bits"] == "1.000"
    assert "±" in table[1]["mAP@100, 16 bits"]


def test_rows_remember_the_first_neighbours_as_the_caller_numbers_them() -> None:
    (x, y), (q, yq) = clusters(300, 1), clusters(10, 2)
    (row,) = compare(x, y, q, yq, methods=["exact search"], k=100)
    mean = x.mean(0)
    cosine = (
        (q - mean)
        / np.linalg.norm(q - mean, axis=1, keepdims=True)
        @ ((x - mean) / np.linalg.norm(x - mean, axis=1, keepdims=True)).T
    )
    np.testing.assert_array_equal(np.array(row.first), np.argsort(-cosine, 1)[:, :8])
    recall, precision = zip(*row.curve, strict=True)
    assert np.all(np.diff(recall) >= 0)
    right = y[np.argsort(-cosine, 1)[:, :100]] == yq[:, None]
    assert precision[-1] == pytest.approx(right.mean(), abs=1e-4)


def test_every_ablation_changes_the_network_or_how_it_is_trained() -> None:
    (x, y), (q, yq) = clusters(500, 1), clusters(40, 2)
    settings = ModelSettings(dim=16, hidden=(32,), components=32, epochs=2, neighbours=20)
    views = x[:200], x[:200] + 0.3 * np.random.default_rng(3).normal(size=(200, 72)).astype("f4")
    rows = compare(
        x, y, q, yq, methods=["DeepQuan", *ABLATIONS], bits=[16], seeds=[0],
        settings=settings, views=views, k=100,
    )  # fmt: skip
    assert len({row.training["variance"] for row in rows}) == len(rows)


def test_methods_without_chance_run_once() -> None:
    (x, y), (q, yq) = clusters(500, 1), clusters(10, 2)
    rows = compare(x, y, q, yq, methods=["spectral hashing", "LSH"], bits=[16], k=100)
    assert [len(row.map) for row in rows] == [1, 3]
    assert len(set(rows[1].map)) == 3  # LSH draws its hyperplanes at random


def test_null_labels_are_no_class() -> None:
    (x, y), (q, yq) = clusters(300, 1), clusters(20, 2)
    some, asked = y.astype(object), yq.astype(object)
    some[::3], asked[:5] = None, None
    whole = compare(x, some, q[5:], asked[5:], methods=["LSH"], bits=[16], seeds=[0], k=100)
    partly = compare(x, some, q, asked, methods=["LSH"], bits=[16], seeds=[0], k=100)
    assert partly[0].map == whole[0].map
    assert partly[0].ap[:5] == (0,) * 5
    with pytest.raises(InputError, match="none of the 5 queries"):
        compare(x, some, q[:5], asked[:5], methods=["LSH"], k=100)


def test_the_order_of_rows_is_no_hint() -> None:
    """With one word for everything, rows sorted by class would still rank by class."""
    (x, y), (q, yq) = clusters(800, 1), clusters(200, 2)
    same = np.ones_like(x) + 1e-6 * x
    rows = compare(same, y, q, yq, methods=("LSH",), bits=(8,), seeds=(0,), k=100)
    assert rows[0].map[0] < 0.6


def test_unknown_methods_and_too_few_features_are_refused() -> None:
    x, y = clusters(50, 1)
    with pytest.raises(InputError, match="unknown methods PCAH; known: exact search, PQ"):
        compare(x, y, x, y, methods=("PCAH",))
    with pytest.raises(InputError, match="mAP@1000 needs 1000"):
        compare(x, y, x, y, methods=METHODS)


def test_search_codes_is_the_asymmetric_distance() -> None:
    (x, _), (q, _) = clusters(600, 1), clusters(10, 2)
    network = fit(x, ModelSettings(dim=16, hidden=(), components=32, epochs=1, bits=16), 0)
    words = decode(unpack(network.encode(torch.from_numpy(x)), 8), network.codebooks)
    z = network.embed(torch.from_numpy(q)).detach()
    expected = torch.cdist(z, words).square().numpy()
    found = search_codes(network, x, q, 20)
    np.testing.assert_allclose(
        np.take_along_axis(expected, found, 1), np.sort(expected, 1)[:, :20], atol=1e-4
    )
