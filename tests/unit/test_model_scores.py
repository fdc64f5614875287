from itertools import product
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dq_cluster.model import quantizer, scores
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.fit import fit_anchors

METRICS = pytest.mark.parametrize("metric", ["l2", "ip"])
Metric = Literal["l2", "ip"]
M, DSUB = 2, 3


def cluster(rows: int, seed: int) -> Tensor:
    """Unit vectors (rows, M * DSUB) float64 around eight centres, which no seed moves."""
    centres = torch.randn(8, M * DSUB, generator=torch.Generator().manual_seed(9)).double()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, M * DSUB, generator=generator).double()
    return F.normalize(centres[torch.arange(rows) % 8] + 0.3 * noise, dim=1)


@pytest.fixture(scope="module")
def codebooks() -> Tensor:
    sample = cluster(400, 1)
    return quantizer.lloyd(sample, quantizer.initial_codebooks(sample, M, 16, 0), 3)


def errors(
    embedding: Tensor, words: Tensor, anchors: Tensor, metric: Metric
) -> tuple[Tensor, Tensor]:
    """Weights, and the true scores less those of the words (n, M * DSUB): (n, a), (n, a)."""
    weights = torch.softmax(embedding @ anchors.T / scores._LOCALITY, dim=1)
    if metric == "ip":
        return weights, (embedding - words) @ anchors.T
    true, found = (torch.cdist(v, anchors).square() / -2 for v in (embedding, words))
    return weights, true - found


def cost(
    embedding: Tensor, words: Tensor, anchors: Tensor, offset: Tensor, metric: Metric
) -> Tensor:
    """What `assign` minimizes: (n,)."""
    weights, error = errors(embedding, words, anchors, metric)
    return (weights * (error - offset).square()).sum(1)


@METRICS
def test_scores_to_nearby_queries_are_better_than_of_the_nearest_words(
    codebooks: Tensor, metric: Metric
) -> None:
    embedding, anchors = cluster(300, 2), cluster(200, 3)
    offset = scores.mean_error(embedding, codebooks, anchors, metric)
    chosen = scores.assign(embedding, codebooks, anchors, offset, metric)
    nearest = quantizer.assign(embedding, codebooks)
    ours, theirs = (
        cost(embedding, quantizer.decode(codes, codebooks), anchors, offset, metric)
        for codes in (chosen, nearest)
    )
    assert (ours <= theirs + 1e-12).all()
    assert ours.mean() < 0.8 * theirs.mean()

    # Against every code there is: descent a sub-space at a time may end beside the best.
    every = torch.tensor(list(product(range(16), repeat=M)))
    words = quantizer.decode(every, codebooks)
    all_costs = torch.stack(
        [cost(embedding, w.expand_as(embedding), anchors, offset, metric) for w in words]
    )
    best = all_costs.min(0).values
    assert (ours >= best - 1e-12).all()
    assert (ours <= best + 1e-12).float().mean() > 0.8


@METRICS
def test_many_words_are_summed_as_products_of_coordinates(metric: Metric) -> None:
    sample, anchors = cluster(400, 1), cluster(200, 3)
    many = quantizer.initial_codebooks(sample, M, 256, 0)
    for queries, words in zip(*scores._extended(anchors, many, metric), strict=True):
        score, square = scores._scores_and_squares(queries, words, words @ queries.T)
        assert score.right is not None
        assert square.right is not None
        weights, dense = torch.rand(5, 200).double(), queries @ words.T
        torch.testing.assert_close(score.summed(weights), weights @ dense)
        torch.testing.assert_close(square.summed(weights), weights @ dense.square())
    offset = scores.mean_error(sample, many, anchors, metric)
    ours, theirs = (
        cost(sample, quantizer.decode(codes, many), anchors, offset, metric)
        for codes in (
            scores.assign(sample, many, anchors, offset, metric),
            quantizer.assign(sample, many),
        )
    )
    assert (ours <= theirs + 1e-12).all()
    assert ours.mean() < 0.8 * theirs.mean()


@METRICS
def test_the_mean_error_is_what_nearest_words_score_too_low(
    codebooks: Tensor, metric: Metric
) -> None:
    embedding, anchors = cluster(scores._BLOCK + 40, 2), cluster(100, 3)
    words = quantizer.decode(quantizer.assign(embedding, codebooks), codebooks)
    weights, error = errors(embedding, words, anchors, metric)
    torch.testing.assert_close(
        scores.mean_error(embedding, codebooks, anchors, metric), (weights * error).sum(1).mean()
    )


def test_a_code_does_not_depend_on_what_is_coded_beside_it(codebooks: Tensor) -> None:
    embedding, anchors, offset = cluster(scores._BLOCK + 40, 2), cluster(100, 3), torch.zeros(())
    together = scores.assign(embedding, codebooks, anchors, offset, "l2")
    for rows in (slice(0, 7), slice(scores._BLOCK - 3, None)):
        alone = scores.assign(embedding[rows], codebooks, anchors, offset, "l2")
        assert torch.equal(alone, together[rows])


@pytest.mark.parametrize("rows", [30, 2 * scores.ANCHORS])
def test_anchors_are_drawn_from_the_sample(rows: int) -> None:
    settings = ModelSettings(bits=8, nbits=4, dim=M * DSUB, hidden=(), components=12)
    network = DeepQuan(settings, 12).double()
    sample = cluster(rows, 2)
    network.codebooks.copy_(quantizer.initial_codebooks(sample, M, 16, 0))
    fit_anchors(network, sample, seed=0)
    found = {tuple(row) for row in network.anchors.tolist()}
    assert found <= {tuple(row) for row in sample.tolist()}
    assert len(found) == min(rows, scores.ANCHORS)
    assert float(network.offset) != 0
