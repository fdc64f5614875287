"""What to do about a slow or failing shard, decided by pure functions of what was seen.

A shard that is slower than it usually is gets one second request on another replica (Dean and
Barroso, "The Tail at Scale", 2013), within a budget of a share of all requests, so that hedging
can never double the load of a cluster that is slow because it is full. A shard that failed is
asked again. Nothing goes on past the deadline.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

MAX_ATTEMPTS = 3
_HEDGE_FLOOR_S = 0.01
_HEDGE_UNKNOWN_S = 0.2  # before a shard's usual latency is known
_WINDOW = 200
_ENOUGH = 20


class Step(Enum):
    """What to do next about one shard."""

    WAIT = "wait"
    HEDGE = "hedge"
    RETRY = "retry"
    TIME_OUT = "time_out"
    FAIL = "fail"


@dataclass(frozen=True)
class Attempts:
    """What happened to one shard's requests so far; times are of one monotonic clock."""

    started: int
    failed: int
    hedged: bool


def next_step(
    attempts: Attempts, now: float, deadline: float, hedge_at: float, may_hedge: bool
) -> Step:
    """The next thing to do, given that no request has answered yet."""
    if now >= deadline:
        return Step.TIME_OUT
    if attempts.failed == attempts.started:
        return Step.RETRY if attempts.started < MAX_ATTEMPTS else Step.FAIL
    if not attempts.hedged and now >= hedge_at and may_hedge and attempts.started < MAX_ATTEMPTS:
        return Step.HEDGE
    return Step.WAIT


class Latencies:
    """The recent latencies of one shard, and when a request to it counts as slow."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._new = 0  # since the limit was computed
        self._limit = _HEDGE_UNKNOWN_S

    def add(self, seconds: float) -> None:
        self._recent.append(seconds)
        self._new += 1

    def hedge_after(self) -> float:
        """Seconds after which a request is slower than 95% of its kind, lately."""
        if self._new >= _ENOUGH:
            ordered = sorted(self._recent)
            self._limit = max(_HEDGE_FLOOR_S, ordered[int(0.95 * len(ordered))])
            self._new = 0
        return self._limit


class HedgeBudget:
    """Allows hedges up to a share of the requests, with a small reserve for the start.

    The share is twice what is slower than 95% of its kind: usual hedges leave the reserve for the
    moment when a replica hangs.
    """

    def __init__(self, share: float = 0.1, reserve: float = 10) -> None:
        self._share, self._reserve = share, reserve
        self._tokens = reserve

    def earn(self) -> None:
        """One more request was sent."""
        self._tokens = min(self._reserve, self._tokens + self._share)

    @property
    def allows(self) -> bool:
        return self._tokens >= 1

    def spend(self) -> None:
        """One hedge was sent."""
        self._tokens -= 1


def coverage(rows: Sequence[int], answered: Sequence[bool]) -> float:
    """Share of the version's codes that the answering shards hold; 1 for an empty version."""
    total = sum(rows)
    searched = sum(n for n, ok in zip(rows, answered, strict=True) if ok)
    return searched / total if total else 1.0


def time_left(timeout_ms: int, spent_ms: float) -> int:
    """What a look-up leaves of a query's deadline, at least 1 ms.

    In eighths of the deadline: queries are searched together only where they have equal ones.
    """
    step = max(1, timeout_ms // 8)
    return max(1, int((timeout_ms - spent_ms) // step) * step)
