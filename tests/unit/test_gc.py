"""Garbage collection removes what no version names, never what a run at work will name."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from dq_cluster.index.catalog import Index
from dq_cluster.index.gc import collect_garbage, expired
from dq_cluster.index.tombstones import delete_ids
from dq_cluster.index.verify import verify
from tests.unit.test_verify import make_version

DAY = timedelta(days=1)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return make_version(tmp_path / "index", pa.array(range(300)))


def age(index: Index, prefix: str, days: float) -> None:
    """Make every file below `prefix` `days` old."""
    stamp = time.time() - days * 86400
    for info in index.storage.list(prefix):
        os.utime(index.storage.path(info.path), (stamp, stamp))


def paths(index: Index, prefix: str = "") -> list[str]:
    return [info.path for info in index.storage.list(prefix)]


def test_an_orphan_of_a_quiet_run_goes(index: Index) -> None:
    index.storage.write("data/r/part-0-loser.parquet", b"x" * 10)
    index.storage.write("runs/r/ledger/00000000.json", b"{}")
    index.storage.write("runs/r/published", b"1")
    assert collect_garbage(index, DAY).files == 0
    age(index, "data/r", 2)
    age(index, "runs/r", 2)
    before = paths(index)
    dry = collect_garbage(index, DAY, dry_run=True)
    assert (dry.files, dry.bytes, paths(index)) == (2, 12, before)
    assert collect_garbage(index, DAY).files == 2
    assert set(before) - set(paths(index)) == {
        "data/r/part-0-loser.parquet",
        "runs/r/ledger/00000000.json",
    }
    assert verify(index).problems == ()


def test_a_run_at_work_keeps_its_oldest_files(index: Index) -> None:
    index.storage.write("data/busy/part-0.parquet", b"x")
    age(index, "data/busy", 30)
    index.storage.write("runs/busy/ledger/00000007.json", b"{}")
    assert collect_garbage(index, DAY).files == 0


def test_an_abandoned_run_goes_ledger_first(index: Index) -> None:
    for name in ("data/old/part-0.parquet", "runs/old/plan.json", "runs/old/ledger/00000000.json"):
        index.storage.write(name, b"x")
    age(index, "data/old", 30)
    age(index, "runs/old", 30)
    assert collect_garbage(index, DAY).files == 3
    assert paths(index, "runs") == []


def test_old_versions_go_with_the_files_only_they_name(index: Index) -> None:
    delete_ids(index, [1])
    delete_ids(index, [2])
    delete_ids(index, [3])
    age(index, "data", 30)
    report = collect_garbage(index, DAY, keep=1)
    assert report.versions == (1, 2, 3)
    assert report.files == 0  # the newest version names all tombstones
    assert index.versions() == [4]
    assert verify(index).problems == ()


def test_the_current_version_stays_even_if_it_is_old(index: Index) -> None:
    delete_ids(index, [1])
    delete_ids(index, [2])
    index.rollback(1)
    age(index, "data", 30)
    assert collect_garbage(index, DAY, keep=1).versions == (2,)
    index.rollback(3)
    assert verify(index).problems == ()
    index.rollback(1)
    report = collect_garbage(index, DAY, keep=0)
    assert (report.versions, report.files) == ((3,), 2)


@pytest.mark.parametrize(("keep", "dropped"), [(None, ()), (0, (1, 2, 4)), (1, (1, 2)), (9, ())])
def test_what_expires(keep: int | None, dropped: tuple[int, ...]) -> None:
    assert expired([1, 2, 3, 4], 3, keep) == dropped
