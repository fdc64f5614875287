"""An id is found wherever and however it lies, without looking at every one."""

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.search.lookup import IdIndex, key_of

NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)
TEXTS = st.text(max_size=12) | st.sampled_from(["a", "b", "a\0", "", "ab"])


def check(ids: Sequence[int | str], kind: pa.DataType, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    # Slices, as batches of a mapped file are.
    padded = pa.array([*ids[:1], *ids], kind)[len(ids[:1]) :]
    index = IdIndex([padded[a:b] for a, b in itertools.pairwise(edges)])
    for id in set(ids):
        found = index.find(key_of(id)).tolist()
        assert found == sorted(found)
        assert [row for row in found if ids[row] == id] == [
            row for row, other in enumerate(ids) if other == id
        ]


@given(st.lists(NUMBERS, max_size=60), st.lists(st.integers(0, 60), max_size=3), st.booleans())
def test_numbers(ids: list[int], cuts: list[int], ordered: bool) -> None:
    check(sorted(ids) if ordered else ids, pa.int64(), cuts)


@given(st.lists(TEXTS, max_size=60), st.lists(st.integers(0, 60), max_size=3))
def test_texts(ids: list[str], cuts: list[int]) -> None:
    check(ids, pa.string(), cuts)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40))
def test_numbers_of_64_bits_without_a_sign(ids: list[int]) -> None:
    check(ids, pa.uint64(), [7])


@pytest.mark.parametrize("step", [1, 3])
def test_many_in_order_and_what_is_not_there(step: int) -> None:
    ids = np.repeat(np.arange(0, 9000, 3), step)
    index = IdIndex([pa.array(ids[:4000]), pa.array(ids[4000:])])
    assert index._sorted is None, "ids in order need no other index"
    for id in (0, 3, 2997, 3072, 8997):
        rows = np.flatnonzero(ids == id)
        np.testing.assert_array_equal(index.find(key_of(id)), rows)
    for id in (-1, 1, 9000, 10**12):
        assert not len(index.find(key_of(id)))


def test_texts_that_share_a_hash_are_told_apart_by_who_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`Rows.find` compares the ids themselves."""
    monkeypatch.setattr("dq_cluster.search.lookup._PRIME", np.uint64(0))
    index = IdIndex([pa.array(["b", "a"])])
    assert index.find(key_of("a")).tolist() == [0, 1]
