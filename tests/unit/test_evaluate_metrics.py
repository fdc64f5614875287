import numpy as np
import pytest

from dq_cluster.errors import InputError
from dq_cluster.evaluate.metrics import (
    average_precision,
    mean_average_precision,
    precision_recall_curve,
    recall_at_k,
    relevance,
    relevant_in,
)


def test_average_precision_divides_by_the_hits_in_the_top_k() -> None:
    relevant = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]], bool)
    expected = [(1 + 2 / 3) / 2, 0, (1 / 2 + 2 / 4) / 2]
    np.testing.assert_allclose(average_precision(relevant, 4), expected)
    np.testing.assert_allclose(average_precision(relevant, 2), [1, 0, 1 / 2])


def test_average_precision_needs_k_results() -> None:
    with pytest.raises(InputError, match="needs 5"):
        average_precision(np.ones((2, 4), bool), 5)


def test_mean_average_precision_with_missing_results() -> None:
    labels = np.array([0, 1, 0, 1])
    neighbours = np.array([[0, 1, 2], [1, -1, -1]])
    value = mean_average_precision(neighbours, np.array([0, 1]), labels, k=3)
    assert value == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)


def test_what_has_no_label_shares_none() -> None:
    labels = np.array(["a", None, "b", None], object)
    queries = np.array(["a", None], object)
    neighbours = np.array([[0, 1], [1, 3]])
    assert relevance(neighbours, queries, labels).tolist() == [[True, False], [False, False]]
    assert relevant_in(queries, labels).tolist() == [1, 0]
    assert mean_average_precision(neighbours, queries, labels, k=2) == 1
    numbers = np.array([1.0, np.nan])
    assert relevant_in(numbers, numbers).tolist() == [1, 0]
    with pytest.raises(InputError, match="none of the 1 queries"):
        mean_average_precision(neighbours[1:], queries[1:], labels, k=2)


def test_relevant_in_the_whole_database() -> None:
    assert relevant_in(np.array([2, 7, 1]), np.array([1, 2, 2, 3])).tolist() == [2, 0, 1]
    labels = np.array([[1, 1, 0], [0, 0, 1]], bool)
    assert relevant_in(np.array([[0, 1, 1], [1, 0, 0]], bool), labels).tolist() == [2, 1]


def test_one_shared_class_is_relevant_for_multiple_labels() -> None:
    labels = np.array([[1, 1, 0], [0, 0, 1]], bool)
    queries = np.array([[0, 1, 1], [1, 0, 0]], bool)
    neighbours = np.array([[0, 1], [0, 1]])
    assert relevance(neighbours, queries, labels).tolist() == [[True, True], [True, False]]


def test_recall_counts_the_exact_neighbours_found() -> None:
    exact = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[4, 3, 9, 1], [6, 5, 0, 2]])
    assert recall_at_k(found, exact, k=2) == pytest.approx((0 + 1) / 2)
    assert recall_at_k(found, exact, k=4) == pytest.approx((3 / 4 + 2 / 4) / 2)
    with pytest.raises(InputError, match="recall@10"):
        recall_at_k(found, exact)


def test_precision_recall_curve() -> None:
    relevant = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 0]], bool)
    precision, recall = precision_recall_curve(relevant, np.array([4, 2, 0]))
    np.testing.assert_allclose(precision, [1, 3 / 4, 2 / 3])
    np.testing.assert_allclose(recall, [(1 / 4 + 1 / 2) / 2, (1 / 4 + 1) / 2, (2 / 4 + 1) / 2])
