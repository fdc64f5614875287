"""Deadline, hedge, retry, coverage, batching, keys: decisions, tested without Ray."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.errors import ConfigError
from dq_cluster.serve.batcher import Batcher
from dq_cluster.serve.config import Limits
from dq_cluster.serve.fanout import Failure, Fanout
from dq_cluster.serve.policy import (
    MAX_ATTEMPTS,
    Attempts,
    HedgeBudget,
    Latencies,
    Step,
    coverage,
    next_step,
    time_left,
)
from dq_cluster.serve.security import AuthenticationError, Guard, LimitError, read_keys


@given(
    started=st.integers(1, MAX_ATTEMPTS),
    failed=st.integers(0, MAX_ATTEMPTS),
    hedged=st.booleans(),
    now=st.floats(0, 10),
    hedge_at=st.floats(0, 10),
    allowed=st.booleans(),
)
def test_steps_keep_the_rules(
    started: int, failed: int, hedged: bool, now: float, hedge_at: float, allowed: bool
) -> None:
    failed = min(failed, started)
    step = next_step(Attempts(started, failed, hedged), now, 5.0, hedge_at, allowed)
    assert (step is Step.TIME_OUT) == (now >= 5.0)
    if step in (Step.HEDGE, Step.RETRY):
        assert started < MAX_ATTEMPTS
    if step is Step.HEDGE:
        assert allowed
        assert not hedged
        assert now >= hedge_at
    if step is Step.FAIL:
        assert failed == started == MAX_ATTEMPTS
    if step is Step.WAIT:
        assert failed < started


@given(st.lists(st.booleans(), max_size=2000))
def test_hedges_stay_within_their_share(slow: list[bool]) -> None:
    budget, hedges = HedgeBudget(share=0.05, reserve=10), 0
    for is_slow in slow:
        budget.earn()
        if is_slow and budget.allows:
            budget.spend()
            hedges += 1
    assert hedges <= 10 + 0.05 * len(slow)


def test_a_request_is_slow_when_slower_than_95_percent() -> None:
    latencies = Latencies()
    unknown = latencies.hedge_after()
    for milliseconds in range(20, 120):
        latencies.add(milliseconds / 1e3)
    assert latencies.hedge_after() == pytest.approx(0.115)
    assert unknown > latencies.hedge_after()


def test_coverage_counts_rows() -> None:
    assert coverage([10, 0, 30], [True, False, True]) == 1
    assert coverage([10, 0, 30], [False, True, True]) == 0.75
    assert coverage([], []) == 1


@given(st.integers(1, 20_000), st.floats(0, 30_000))
def test_a_look_up_and_a_search_share_one_deadline(timeout_ms: int, spent_ms: float) -> None:
    left = time_left(timeout_ms, spent_ms)
    assert 1 <= left <= max(1, timeout_ms - spent_ms)
    assert left == 1 or left > timeout_ms - spent_ms - max(1, timeout_ms / 8)
    assert time_left(timeout_ms, 0.001) == time_left(timeout_ms, 0.01), "a batch can be shared"


def ask_once(ask: Callable[[int], Awaitable[Any]], timeout: float = 5.0) -> Any:
    async def run() -> Any:
        return (await Fanout(1).ask_all(ask, [0], time.monotonic() + timeout, "kind"))[0]

    return asyncio.run(run())


def test_a_slow_first_request_is_overtaken_by_its_hedge() -> None:
    calls = 0

    async def ask(shard: int) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.sleep(30)
        return f"call {calls}"

    begin = time.monotonic()
    assert ask_once(ask) == "call 2"
    assert time.monotonic() - begin < 3


def test_quick_questions_are_no_measure_for_slow_ones() -> None:
    async def run() -> None:
        fanout = Fanout(2)

        async def find(shard: int) -> None:
            pass

        for _ in range(100):
            await fanout.ask_all(find, [0], time.monotonic() + 60, "find")
        unknown = Latencies().hedge_after()
        assert fanout._latencies_of("find")[0].hedge_after() < unknown
        assert fanout._latencies_of("find")[1].hedge_after() == unknown
        assert fanout._latencies_of("search")[0].hedge_after() == unknown
        for kind in range(1000):
            await fanout.ask_all(find, [0], time.monotonic() + 60, kind)
        assert len(fanout._latencies) <= 64

    asyncio.run(run())


def test_a_failed_request_is_retried_and_a_refused_one_is_not() -> None:
    seen: list[str] = []

    async def flaky(shard: int) -> Any:
        seen.append("flaky")
        if len(seen) == 1:
            raise ConnectionError("the replica died")
        return Failure("not loaded") if len(seen) == 2 else "answer"

    assert ask_once(flaky) == "answer"

    async def refusing(shard: int) -> Any:
        seen.append("refusing")
        return Failure("bad filter", refused=True)

    assert ask_once(refusing).refused
    assert seen.count("refusing") == 1


def test_failures_end_after_a_few_attempts_and_say_why() -> None:
    calls = 0

    async def broken(shard: int) -> Any:
        nonlocal calls
        calls += 1
        raise ConnectionError("10.0.0.7:/secret/path")

    failure = ask_once(broken)
    assert calls == MAX_ATTEMPTS
    assert failure == Failure("ConnectionError")


def test_a_deadline_is_kept_and_told_apart() -> None:
    async def hanging(shard: int) -> Any:
        await asyncio.sleep(30)

    begin = time.monotonic()
    failure = ask_once(hanging, timeout=0.3)
    assert failure.timed_out
    assert 0.3 <= time.monotonic() - begin < 2


def test_queries_that_wait_share_a_batch() -> None:
    sizes: list[int] = []

    async def run() -> list[Any]:
        async def work(key: str, vectors: np.ndarray) -> np.ndarray:
            sizes.append(len(vectors))
            await asyncio.sleep(0.01)
            return vectors * 2

        batcher: Batcher[str, np.ndarray] = Batcher(work, limit=lambda _: 8)
        return await asyncio.gather(
            *(batcher.run("same", np.full((2, 1), n)) for n in range(10)),
            batcher.run("other", np.ones((1, 1))),
        )

    results = asyncio.run(run())
    for number, (places, doubled) in enumerate(results[:10]):
        assert doubled[places].tolist() == [[2 * number]] * 2
    assert sum(sizes) == 21
    assert sorted(sizes) == [1, 4, 8, 8]


def test_callers_who_ask_again_at_once_stay_in_one_batch() -> None:
    sizes: list[int] = []

    async def run() -> None:
        async def work(key: str, vectors: np.ndarray) -> None:
            sizes.append(len(vectors))
            await asyncio.sleep(0.001)

        batcher: Batcher[str, None] = Batcher(work, limit=lambda _: 64)

        async def client(number: int) -> None:
            for _ in range(6):
                await batcher.run("key", np.ones((1, 1)))
                for _ in range(number % 4):  # some come back later than others
                    await asyncio.sleep(0)

        await asyncio.gather(*(client(number) for number in range(16)))

    asyncio.run(run())
    assert sizes == [16] * 6


def test_what_one_kind_of_query_expects_slows_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dq_cluster.serve.batcher._NAP_S", 3600)

    async def run() -> None:
        async def work(key: int, vectors: np.ndarray) -> None:
            await asyncio.sleep(0)

        batcher: Batcher[int, None] = Batcher(work, limit=lambda _: 64)
        for kind in range(200):
            await asyncio.gather(*(batcher.run(kind, np.ones((1, 1))) for _ in range(16)))
            await asyncio.wait_for(batcher.run(-1, np.ones((1, 1))), 10)
        assert len(batcher._expected) <= 64, "kinds that are over are forgotten"
        assert not batcher._waiting

    asyncio.run(run())


def test_batches_that_hang_hold_nobody_up() -> None:
    async def run() -> None:
        hanging = asyncio.Event()

        async def work(key: str, vectors: np.ndarray) -> None:
            if vectors[0, 0] == 0:
                await hanging.wait()

        batcher: Batcher[str, None] = Batcher(work, limit=lambda _: 1)
        stuck = [asyncio.ensure_future(batcher.run("key", np.zeros((1, 1)))) for _ in range(2)]
        await asyncio.wait_for(batcher.run("key", np.ones((1, 1))), 10)
        assert not any(task.done() for task in stuck)
        hanging.set()
        await asyncio.gather(*stuck)

    asyncio.run(run())


def test_an_error_reaches_every_caller_of_its_batch() -> None:
    async def run() -> list[Any]:
        async def work(key: str, vectors: np.ndarray) -> None:
            raise ValueError("no")

        batcher: Batcher[str, None] = Batcher(work, limit=lambda _: 8)
        callers = [batcher.run("key", np.ones((1, 1))) for _ in range(3)]
        return await asyncio.gather(*callers, return_exceptions=True)

    assert [type(error) for error in asyncio.run(run())] == [ValueError] * 3


def test_keys_are_needed_once_there_are_any() -> None:
    Guard(frozenset(), Limits()).admit(None)
    guard = Guard(frozenset({hashlib.sha256(b"open sesame").hexdigest()}), Limits())
    guard.admit("Bearer open sesame")
    for wrong in (None, "", "Bearer", "Bearer wrong", "Basic open sesame"):
        with pytest.raises(AuthenticationError):
            guard.admit(wrong)


def test_a_key_is_limited_by_itself() -> None:
    now = 0.0
    keys = frozenset(hashlib.sha256(key).hexdigest() for key in (b"one", b"two"))
    guard = Guard(keys, Limits(requests_per_second=2), clock=lambda: now)
    for _ in range(2):
        guard.admit("Bearer one")
    with pytest.raises(LimitError) as limited:
        guard.admit("Bearer one")
    assert limited.value.retry_after == pytest.approx(0.5)
    guard.admit("Bearer two")
    now = 0.5
    guard.admit("Bearer one")


def test_keys_come_from_the_environment_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    one, two = (hashlib.sha256(key).hexdigest() for key in (b"one", b"two"))
    monkeypatch.setenv("DQ_API_KEYS", f"{one},{two.upper()}")
    assert read_keys() == {one, two}
    monkeypatch.setenv("DQ_API_KEYS", "plain text")
    with pytest.raises(ConfigError, match="SHA-256"):
        read_keys()
    monkeypatch.setenv("DQ_API_KEYS", "")
    file = tmp_path / "keys"
    file.write_text(f"{one}\n{two}\n")
    monkeypatch.setenv("DQ_API_KEYS_FILE", str(file))
    assert read_keys() == {one, two}
    file.write_text("\n")
    with pytest.raises(ConfigError, match="no key"):
        read_keys()


def test_what_nobody_waits_for_is_over_when_the_fanout_closes() -> None:
    async def run() -> None:
        fanout, gate, calls = Fanout(1), asyncio.Event(), 0

        async def ask(shard: int) -> str:
            nonlocal calls
            calls += 1
            if calls == 1:
                await gate.wait()
            return f"call {calls}"

        assert await fanout.ask_all(ask, [0], time.monotonic() + 600, "kind") == ["call 2"]
        closing = asyncio.ensure_future(fanout.close())
        await asyncio.sleep(0)
        assert not closing.done()
        gate.set()
        await closing
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
