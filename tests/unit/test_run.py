"""A run: whose request it is, who is at work on it, and that nothing ends a sign of life."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dq_cluster import run as run_module
from dq_cluster.config import Settings
from dq_cluster.errors import ConfigError, IntegrityError, StorageError
from dq_cluster.run import ALIVE_FOR, Heartbeat, Run, differences
from dq_cluster.storage import Storage
from tests.interleave import Watched

leaves = st.sampled_from([None, True, 7, "x", [1, 2]])
inner = st.dictionaries(st.sampled_from("de"), leaves)
documents = st.dictionaries(st.sampled_from("abc"), leaves | inner)


class Inner(Settings):
    bits: int = 32
    wide: tuple[int, ...] = ()


class Asked(Settings):
    inner: Inner = Inner()
    seed: int


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    place = str(tmp_path) if request.param == "folder" else request.getfixturevalue("s3")
    return Storage(f"{place}/run")


def signs(storage: Storage) -> list[str]:
    return [info.path for info in storage.list("alive")]


def grow_old(storage: Storage, name: str) -> None:
    """Let a file look as if it was written when its writer was given up."""
    path = storage.local(name)
    assert path is not None
    stamp = path.stat().st_mtime - ALIVE_FOR.total_seconds() - 1
    os.utime(path, (stamp, stamp))


class TestRequest:
    def test_the_first_request_counts(self, storage: Storage) -> None:
        run = Run(storage)
        run.check(Asked(seed=1))
        assert not storage.exists("run.json")
        run.claim(Asked(seed=1))
        Run(storage).claim(Asked(seed=1))
        with pytest.raises(ConfigError) as caught:
            Run(storage).claim(Asked(seed=2, inner=Inner(bits=64)))
        assert str(caught.value) == (
            f"the run at {storage.uri} was begun with inner.bits 32 (now 64), seed 1 (now 2); "
            "continue it with what it was begun with, or begin another under another name"
        )

    def test_a_field_that_was_added_since_has_its_default(self, storage: Storage) -> None:
        storage.write("run.json", b'{"seed": 1, "inner": {"bits": 32}}')
        run = Run(storage)
        run.claim(Asked(seed=1))
        with pytest.raises(ConfigError, match=r"inner\.wide \[\] \(now \[7\]\)"):
            run.claim(Asked(seed=1, inner=Inner(wide=(7,))))

    def test_a_field_that_is_no_more_is_named(self, storage: Storage) -> None:
        storage.write("run.json", b'{"seed": 1, "inner": {"bits": 32, "wide": []}, "gone": "x"}')
        with pytest.raises(ConfigError, match=r'begun with gone "x" \(now absent\);'):
            Run(storage).claim(Asked(seed=1))

    def test_what_an_older_release_recorded_elsewhere_counts(self, storage: Storage) -> None:
        recorded = {"seed": 1, "inner": {"bits": 32}}
        with pytest.raises(ConfigError, match=r"seed 1 \(now 2\)"):
            Run(storage).claim(Asked(seed=2), recorded)
        assert not storage.exists("run.json")
        Run(storage).claim(Asked(seed=1), recorded)
        Run(storage).claim(Asked(seed=1), {"seed": 7})  # run.json counts now

    def test_a_damaged_record_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text('{"seed": ')
        with pytest.raises(IntegrityError, match=r"run\.json is not a JSON object"):
            Run(Storage(str(tmp_path))).check(Asked(seed=1))

    def test_a_long_value_is_cut(self) -> None:
        (found,) = differences({"a": "x" * 500}, {"a": None})
        assert len(str(found)) < 110

    @settings(suppress_health_check=[HealthCheck.too_slow])
    @given(documents, documents)
    def test_differences_are_all_that_differs(
        self, one: dict[str, Any], other: dict[str, Any]
    ) -> None:
        assert differences(one, one) == []
        found = differences(one, other)
        assert bool(found) == (_without_nulls(one) != _without_nulls(other))
        assert [(d.key, d.requested, d.stored) for d in found] == [
            tuple(d) for d in differences(other, one)
        ]

    def test_a_result_is_kept(self, storage: Storage) -> None:
        run = Run(storage)
        assert run.result() is None
        run.finish(7)
        assert Run(storage).result() == 7
        assert json.loads(storage.read("published")) == 7


def _without_nulls(value: Any) -> Any:
    """Absent and null are one."""
    if not isinstance(value, dict):
        return value
    return {k: _without_nulls(v) for k, v in value.items() if v is not None}


class TestAlive:
    def test_a_driver_is_alive_while_it_works(self, storage: Storage) -> None:
        with Run(storage).at_work():
            assert len(signs(storage)) == 1
            with Run(storage).at_work():
                assert len(signs(storage)) == 2
            assert len(signs(storage)) == 1
        assert signs(storage) == []

    def test_a_storage_that_fails_does_not_end_the_signs_of_life(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_module, "BEAT_EVERY", 0.001)
        beats = threading.Semaphore(0)
        count = 0

        def before(operation: str, name: str) -> None:
            nonlocal count
            if operation == "write":
                count += 1
                beats.release()
                if 2 <= count <= 5:
                    raise (StorageError, OSError, KeyError, MemoryError)[count - 2]("busy")

        storage = Watched(str(tmp_path), before)
        with Heartbeat(storage, "alive/me"):
            written = [storage.read("alive/me")]
            for _ in range(7):
                assert beats.acquire(timeout=240)
            written.append(storage.read("alive/me"))
        assert written[0] != written[1]
        assert list(storage.list()) == []

    def test_one_that_cannot_say_that_it_is_alive_does_not_begin(self, tmp_path: Path) -> None:
        def before(operation: str, name: str) -> None:
            if operation == "write":
                raise StorageError("full")

        with pytest.raises(StorageError), Run(Watched(str(tmp_path), before)).at_work():
            pytest.fail("it began")

    def test_what_killed_drivers_left_is_removed(self, tmp_path: Path) -> None:
        storage = Storage(str(tmp_path))
        storage.write("alive/killed-long-ago", b"x")
        storage.write("alive/killed-just-now", b"x")
        grow_old(storage, "alive/killed-long-ago")
        with Run(storage).at_work():
            assert len(signs(storage)) == 2
        assert signs(storage) == ["alive/killed-just-now"]


class TestCollecting:
    @pytest.fixture
    def pauses(self, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
        """What happens during the pauses of a driver that waits, one after the other."""
        actions: list[Callable[[], None]] = []
        monkeypatch.setattr(run_module, "_pause", lambda seconds: actions.pop(0)())
        return actions

    def test_a_driver_waits_and_says_for_what(
        self,
        storage: Storage,
        pauses: list[Callable[[], None]],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        run = Run(storage)
        with run.at_work():
            now = run.now()
        with run.collecting(now) as mark:
            assert mark is not None
            pauses += [mark.beat, lambda: storage.delete("collecting/mark")]
            with Run(storage).at_work():
                assert pauses == []
        (first,) = caplog.messages  # and one more a minute
        assert first.startswith(f"{storage.uri}: waiting for a garbage collection that removes")

    def test_a_killed_collection_is_not_waited_for(self, tmp_path: Path) -> None:
        storage = Storage(str(tmp_path))
        storage.write("collecting/mark", b"x")
        grow_old(storage, "collecting/mark")
        with Run(storage).at_work():
            pass

    def test_one_collection_at_a_time(self, storage: Storage) -> None:
        run = Run(storage)
        with run.at_work():
            now = run.now()
        with run.collecting(now) as first, Run(storage).collecting(now) as second:
            assert (first is None, second is None) == (False, True)
        with run.collecting(now) as third:
            assert third is not None
        assert list(storage.list("collecting")) == []

    def test_what_a_killed_collection_left_is_taken_over_once(self, tmp_path: Path) -> None:
        storage = Storage(str(tmp_path))
        storage.write("collecting/mark", b"x")
        grow_old(storage, "collecting/mark")
        run = Run(storage)
        with run.at_work():
            now = run.now()
        with run.collecting(now) as first, Run(storage).collecting(now) as second:
            assert (first is None, second is None) == (False, True)

    def test_a_collection_that_stood_still_no_longer_trusts_its_mark(
        self, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Heartbeat(storage, "collecting/mark") as mark:
            assert mark.fresh
            clock = run_module.time.time() + ALIVE_FOR.total_seconds() / 2
            monkeypatch.setattr(run_module.time, "time", lambda: clock)
            assert not mark.fresh
            mark.beat()
            assert mark.fresh
