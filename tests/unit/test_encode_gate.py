"""How many inputs of a run may be rejects."""

import pytest

from dq_cluster.encoding.gate import allowed_rejects, check_rejects
from dq_cluster.errors import QualityGateError
from dq_cluster.fragments.ledger import Receipt


@pytest.mark.parametrize(
    ("fraction", "inputs", "allowed"),
    [
        (None, 1, 0),
        (None, 3, 0),
        (None, 4, 1),
        (None, 32, 8),
        (None, 40, 10),
        (None, 100, 10),
        (None, 999, 10),
        (None, 1_000, 10),
        (None, 100_000, 1_000),
        (0.0, 100, 0),
        (0.05, 44, 2),  # what was typed is what counts, also for a small pile
        (1.0, 44, 44),
    ],
)
def test_how_many_may_be(fraction: float | None, inputs: int, allowed: int) -> None:
    assert allowed_rejects(fraction, inputs) == allowed


def receipt(rows: int, **reasons: int) -> Receipt:
    return Receipt(
        fragment=0,
        rows=rows,
        rejected=sum(reasons.values()),
        reasons=reasons,
        files=(),
        rejects=(),
        columns={},
        seconds={},
    )


def test_the_fragments_of_a_run_count_together() -> None:
    check_rejects([receipt(20, corrupt=2), receipt(10, empty=1)], None)
    with pytest.raises(
        QualityGateError,
        match=r"12 of 42 inputs are rejects \(11 corrupt, 1 empty\), at most 10 may be",
    ):
        check_rejects([receipt(20, corrupt=11), receipt(10, empty=1)], None)


def test_a_run_of_nothing_but_rejects_publishes_nothing() -> None:
    with pytest.raises(QualityGateError, match="all 3 inputs are rejects"):
        check_rejects([receipt(0, corrupt=3)], 1.0)
