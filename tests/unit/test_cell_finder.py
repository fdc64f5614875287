"""Cells of embeddings: the nearest ones, and near ones where there are many."""

import numpy as np
import pytest
import torch

from dq_cluster.geometry import Metric
from dq_cluster.model import cells as cells_module
from dq_cluster.model.cells import CellFinder, learn_cells

METRICS: tuple[Metric, ...] = ("l2", "ip")


def brute_force(embedding: torch.Tensor, centroids: torch.Tensor, metric: Metric) -> torch.Tensor:
    if metric == "ip":
        return (embedding @ centroids.T).argmax(1)
    return torch.cdist(embedding.double(), centroids.double()).argmin(1)


@pytest.mark.parametrize("metric", METRICS)
def test_few_cells_are_all_compared_a_block_at_a_time(
    metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells_module, "_SCORES_AT_ONCE", 100)
    generator = torch.Generator().manual_seed(0)
    embedding, centroids = (torch.randn(n, 8, generator=generator) for n in (300, 40))
    found = CellFinder(centroids, metric)(embedding)
    assert torch.equal(found, brute_force(embedding, centroids, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_many_cells_are_learned_and_found_through_groups(
    metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells_module, "_MANY", 256)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(50, 8))
    points = (centres[rng.integers(0, 50, 12_000)] + 0.3 * rng.normal(size=(12_000, 8))).astype(
        "f4"
    )
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    learned = learn_cells(points, 256, metric, seed=3)
    assert learned.shape == (256, 8)
    assert np.isfinite(learned).all()
    np.testing.assert_array_equal(learned, learn_cells(points, 256, metric, seed=3))
    embedding, centroids = torch.from_numpy(points), torch.from_numpy(learned)
    wanted = brute_force(embedding, centroids, metric)
    assert (CellFinder(centroids, metric)(embedding) == wanted).float().mean() > 0.95
    assert len(CellFinder(centroids, metric)(embedding[:0])) == 0
