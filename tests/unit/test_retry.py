"""How often a fragment is tried."""

from collections import Counter

from dq_cluster.fragments.reports import summary
from dq_cluster.fragments.retry import PAUSES_S, Failures


def test_a_failure_is_followed_by_a_pause_and_the_last_by_none() -> None:
    failures, pauses = Failures(), []
    while not failures.count or failures.pause_s is not None:
        failures = failures.and_another(loss=False)
        pauses.append(failures.pause_s)
    assert pauses == [*PAUSES_S, None]
    assert failures.count == len(PAUSES_S) + 1


def test_after_two_losses_images_are_decoded_apart() -> None:
    once = Failures().and_another(loss=True)
    assert not once.apart
    assert not once.and_another(loss=False).apart
    assert once.and_another(loss=False).and_another(loss=True).apart


def test_failures_are_summed_up_in_a_line() -> None:
    assert summary(Counter(), "") == ""
    assert summary(Counter({3: 1}), "StorageError: gone") == (
        "1 failure of 1 fragment (3), tried again; the last: StorageError: gone"
    )
    many = Counter(dict.fromkeys(range(9), 2))
    assert summary(many, "x").startswith("18 failures of 9 fragments (0, 1, 2, 3, 4, …), tried")
