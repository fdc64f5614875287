"""Merging is deterministic: score descending, ordinal ascending, missing last."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.search.merge import MISSING, merge


@given(
    st.lists(st.lists(st.sampled_from([0.0, -0.5, -1.0, 2.0]), max_size=6), min_size=1, max_size=5),
    st.integers(1, 12),
)
def test_the_best_k_of_all_parts(parts: list[list[float]], k: int) -> None:
    base, answers, everything = 0, [], []
    for values in parts:
        rows = sorted((-value, base + place) for place, value in enumerate(values))
        everything += rows
        base += len(values)
        scores = np.full((1, k), -np.inf, np.float32)
        ordinals = np.full((1, k), MISSING, np.int64)
        for place, (value, ordinal) in enumerate(rows[:k]):
            scores[0, place], ordinals[0, place] = -value, ordinal
        answers.append((scores, ordinals))
    scores, ordinals, columns = merge(answers, k)
    wanted = sorted(everything)[:k]
    assert ordinals[0, : len(wanted)].tolist() == [ordinal for _, ordinal in wanted]
    assert scores[0, : len(wanted)].tolist() == [-value for value, _ in wanted]
    assert (ordinals[0, len(wanted) :] == MISSING).all()
    side_by_side = np.hstack([ordinals for _, ordinals in answers])
    np.testing.assert_array_equal(np.take_along_axis(side_by_side, columns, axis=1), ordinals)
