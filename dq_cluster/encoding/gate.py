"""The quality gate: how many inputs of a run may be rejects. Decisions only."""

from collections import Counter
from collections.abc import Iterable

from dq_cluster.errors import QualityGateError
from dq_cluster.fragments.ledger import Receipt

_FRACTION = 0.01
# A few damaged files do not make a small folder a failure.
_FEW, _SMALL_FRACTION = 10, 0.25


def allowed_rejects(max_fraction: float | None, inputs: int) -> int:
    """How many of `inputs` may be rejects.

    None: one in a hundred; below 1,000 inputs up to ten of them, but no more than one in four.
    """
    if max_fraction is not None:
        return int(max_fraction * inputs)
    return int(max(_FRACTION * inputs, min(_FEW, _SMALL_FRACTION * inputs)))


def check_rejects(receipts: Iterable[Receipt], max_fraction: float | None) -> None:
    """Raise QualityGateError if more of a run's inputs are rejects than may be, or all."""
    rows, reasons = 0, Counter[str]()
    for receipt in receipts:
        rows += receipt.rows
        reasons.update(receipt.reasons)
    rejected = reasons.total()
    allowed = allowed_rejects(max_fraction, rows + rejected)
    if rejected > allowed:
        why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        raise QualityGateError(
            f"{rejected:,} of {rows + rejected:,} inputs are rejects ({why}), at most {allowed:,} "
            "may be (max_reject_fraction); nothing is published"
        )
    if not rows:
        raise QualityGateError(f"all {rejected:,} inputs are rejects; nothing is published")
