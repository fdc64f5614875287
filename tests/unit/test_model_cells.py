"""Coarse cells are k-means centroids in the model's metric."""

from typing import Literal

import numpy as np
import pytest

from dq_cluster.model.cells import learn_cells


def clusters() -> tuple[np.ndarray, np.ndarray]:
    """Centres (3, 4), and 150 points close around them, of unit length."""
    centres = np.eye(4, dtype=np.float32)[:3]
    points = centres[np.arange(150) % 3] + 0.05 * np.random.default_rng(0).normal(size=(150, 4))
    return centres, (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_every_cluster_gets_its_cell(metric: Literal["l2", "ip"]) -> None:
    centres, points = clusters()
    cells = learn_cells(points, 3, metric, seed=1)
    assert (cells.shape, cells.dtype) == ((3, 4), np.float32)
    nearest = (centres @ cells.T).argmax(axis=1)
    np.testing.assert_allclose(cells[nearest], centres, atol=0.05)
    np.testing.assert_array_equal(cells, learn_cells(points, 3, metric, seed=1))


def test_cells_of_inner_products_are_directions() -> None:
    points = clusters()[1]
    lengths = {m: np.linalg.norm(learn_cells(points, 3, m), axis=1) for m in ("l2", "ip")}
    np.testing.assert_allclose(lengths["ip"], 1, atol=1e-6)
    assert (lengths["l2"] < 0.9999).all()
