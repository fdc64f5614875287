"""Which neighbours count, and which images are one group."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.knn.groups import NONE, Leaders, kept
from dq_cluster.knn.pick import lists, without_self


def test_a_query_is_no_neighbour_of_itself() -> None:
    scores = np.array([[0.0, -1, -2], [0, 0, -3], [0, 0, 0]], np.float32)
    ordinals = np.array([[5, 7, 8], [3, 6, 9], [0, 1, 2]])
    near, rows = without_self(scores, ordinals, np.array([5, 6, 4]))
    np.testing.assert_array_equal(rows, [[7, 8], [3, 9], [0, 1]])  # 4 has three equals
    np.testing.assert_array_equal(near, [[-1, -2], [0, -3], [0, 0]])


def test_only_what_is_there_and_near_enough_counts() -> None:
    scores = np.array([[-1, -2, -3], [-5, -np.inf, -np.inf]], np.float32)
    ordinals = np.array([[4, 2, 9], [1, -1, -1]])
    offsets, near, rows = lists(scores, ordinals, None)
    assert (offsets.tolist(), rows.tolist()) == ([0, 3, 4], [4, 2, 9, 1])
    offsets, near, rows = lists(scores, ordinals, -2)
    assert (offsets.tolist(), near.tolist(), rows.tolist()) == ([0, 2, 2], [-1, -2], [4, 2])


def grouped(points: list[float], radius: float, batch: int = 7) -> Leaders:
    """Groups of points on a line that are within `radius` of their leader."""
    line = np.array(points)
    leaders = Leaders(len(line))
    for start in range(0, len(line), batch):
        rows = np.arange(start, min(start + batch, len(line)))
        found = []
        for row in rows:
            others = np.flatnonzero(np.abs(line - line[row]) <= radius)
            others = others[others != row]
            found.append(others[np.argsort(np.abs(line[others] - line[row]), kind="stable")])
        offsets = np.cumsum([0, *map(len, found)])
        to = np.concatenate([np.empty(0, np.int64), *found]).astype(np.int64)
        near = -np.abs(line[to] - np.repeat(line[rows], np.diff(offsets)))
        leaders.add(rows, offsets, near.astype(np.float32), to)
    return leaders


@given(st.lists(st.floats(0, 30), max_size=40))
def test_every_member_is_near_its_leader_and_leaders_are_apart(points: list[float]) -> None:
    leaders, line = grouped(points, 1.0), np.array(points)
    for row, leader in enumerate(leaders.of.tolist()):
        others = np.delete(np.abs(line - line[row]), row)
        if leader == NONE:
            assert not (others <= 1).any(), "it is near another and has no group"
        else:
            assert leaders.of[leader] == leader
            assert abs(line[row] - line[leader]) <= 1
    heads = [row for row, leader in enumerate(leaders.of) if leader == row]
    for one in heads:
        assert all(abs(line[one] - line[two]) > 1 for two in heads if two != one)


def test_a_chain_is_not_one_group() -> None:
    chain = [0, 0.9, 1.8, 2.7, 3.6]
    assert grouped(chain, 1.0).of.tolist() == [0, 0, 2, 2, 4]
    # The last one is near 2.7 only, which is no leader: it leads itself, alone.
    members = grouped(chain, 1.0).members()
    assert members.tolist() == [0, 1, 2, 3]


def test_which_one_stays() -> None:
    groups = np.array([4, 4, 4, 9, 9])
    assert kept(groups, None, largest=True).tolist() == [True, False, False, True, False]
    sizes = pa.array([3, 8, None, None, None])
    assert kept(groups, sizes, largest=True).tolist() == [False, True, False, True, False]
    assert kept(groups, sizes, largest=False).tolist() == [True, False, False, True, False]
    names = pa.array(["b", "a", "c", "y", "x"])
    assert kept(groups, names, largest=False).tolist() == [False, True, False, False, True]
    assert kept(np.empty(0, np.int64), None, largest=True).tolist() == []
