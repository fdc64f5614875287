"""Neighbours by cells: exact where all are looked into, and nearly so where few are."""

import numpy as np
import torch

from dq_cluster.model.candidates import (
    EXACT_ROWS,
    PROBED,
    cells_of,
    nearest_cells,
    nearest_in_cells,
)
from dq_cluster.model.cells import learn_cells
from dq_cluster.model.neighbours import inverse, manifold_positives, nearest


def unit_rows(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count, 8)) @ rng.normal(size=(8, 32)) + 0.1 * rng.normal(
        size=(count, 32)
    )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("f4")


def test_small_sets_are_searched_exactly() -> None:
    assert cells_of(EXACT_ROWS) == 0
    assert cells_of(10_000_000) == 12_649


def test_few_cells_find_nearly_all_neighbours() -> None:
    rows, k = unit_rows(4_000), 20
    exact = nearest(torch.from_numpy(rows), torch.from_numpy(rows), k).rows.numpy()
    for nlist, least in ((PROBED, 1.0), (100, 0.95)):
        centroids = learn_cells(rows, nlist, "ip", seed=0)
        cells = nearest_cells(rows, centroids)
        assert cells.shape == (len(rows), PROBED)
        near = nearest_in_cells(rows, cells, rows, cells[:, 0], centroids, k)
        hits = (near.rows.numpy()[:, :, None] == exact[:, None, :]).any(2).mean()
        assert hits >= least - 1e-4


def test_a_place_without_a_row_says_so() -> None:
    rows = unit_rows(10)
    cells = np.zeros((10, 1), np.int32)
    near = nearest_in_cells(rows, cells, rows, np.arange(10) % 2, rows[:2], 8)
    assert (near.rows[:, :5] >= 0).all()
    assert (near.rows[:, 5:] == -1).all()
    assert torch.isinf(near.scores[:, 5:]).all()


def test_the_graph_is_turned_once_for_any_range_of_rows() -> None:
    rng = np.random.default_rng(0)
    graph = np.stack(
        [rng.choice(np.delete(np.arange(300), i), 7, replace=False) for i in range(300)]
    )
    turned = inverse(graph)
    whole = manifold_positives(graph, 7, turned)
    for first, last in ((0, 100), (100, 101), (101, 300)):
        part = manifold_positives(graph[first:last], 7, turned, first)
        np.testing.assert_array_equal(part.rows, whole.rows[first:last])
        np.testing.assert_array_equal(part.weights, whole.weights[first:last])
    closed = [{i, *map(int, near)} for i, near in enumerate(graph)]
    for image, others, weights in zip(range(300), whole.rows, whole.weights, strict=True):
        common = [len(closed[image] & closed[int(other)]) / 8 for other in others]
        np.testing.assert_allclose(weights, common, rtol=1e-6)
        best = sorted((len(closed[image] & c) / 8 for j, c in enumerate(closed) if j != image))[-7:]
        np.testing.assert_allclose(weights, best[::-1], rtol=1e-6)
