"""Garbage collection removes what no version names, never what a run at work will name."""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from dq_cluster.errors import InputError, NotFoundError
from dq_cluster.index.catalog import Index
from dq_cluster.index.garbage import expired, sort_files
from dq_cluster.index.gc import collect_garbage
from dq_cluster.index.tombstones import delete_ids
from dq_cluster.index.verify import verify
from dq_cluster.run import Run
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


def age_all(index: Index, days: float) -> None:
    for folder in ("data", "versions", "superseded"):
        age(index, folder, days)


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
    age_all(index, 30)
    report = collect_garbage(index, DAY, keep=1)
    assert report.versions == (1, 2, 3)
    assert report.files == 0  # the newest version names all tombstones
    assert index.versions() == [4]
    assert verify(index).problems == ()


def test_the_current_version_stays_even_if_it_is_old(index: Index) -> None:
    delete_ids(index, [1])
    delete_ids(index, [2])
    index.rollback(1)
    age_all(index, 30)
    assert collect_garbage(index, DAY, keep=1).versions == (2,)
    index.rollback(3)
    assert verify(index).problems == ()
    index.rollback(1)
    age_all(index, 30)
    report = collect_garbage(index, DAY, keep=0)
    assert (report.versions, report.files) == ((3,), 2)


def test_a_version_that_was_current_within_the_grace_period_stays(index: Index) -> None:
    delete_ids(index, [1])
    delete_ids(index, [2])
    age_all(index, 30)
    index.rollback(2)  # a service serves version 3 until it is refreshed
    report = collect_garbage(index, DAY, keep=0)
    assert (report.versions, index.versions()) == ((1,), [2, 3])
    assert ("version 3", "may have been current 0 min ago: grace period") in [
        (kept.what, kept.why) for kept in report.kept
    ]
    delete_ids(index, [3])
    assert collect_garbage(index, DAY, keep=0).versions == ()  # version 2 has just been left
    age_all(index, 2)
    assert collect_garbage(index, DAY, keep=0).versions == (2, 3)
    assert paths(index, "superseded") == []


def test_the_number_of_a_dropped_version_does_not_come_again(index: Index) -> None:
    delete_ids(index, [1])
    index.rollback(1)
    assert collect_garbage(index, timedelta(0), keep=0).versions == (2,)
    assert delete_ids(index, [2]).version == 3
    age_all(index, 30)
    assert collect_garbage(index, DAY, keep=0).versions == (1,)
    index.storage.delete("superseded/2")  # needed no longer: 3 is there
    assert delete_ids(index, [3]).version == 4


def test_an_older_release_left_no_word_of_when_a_version_was_left(index: Index) -> None:
    age_all(index, 30)
    delete_ids(index, [1])
    index.storage.delete("superseded/1")
    assert collect_garbage(index, DAY, keep=0).versions == ()  # its child is young
    age_all(index, 30)
    assert collect_garbage(index, DAY, keep=0).versions == (1,)


def test_a_run_whose_driver_is_alive_keeps_its_oldest_files(index: Index) -> None:
    for name in ("data/busy/part-0.parquet", "runs/busy/ledger/00000000.json"):
        index.storage.write(name, b"x")
    run = Run(index.storage.child("runs/busy"))
    with run.at_work():
        for top in ("data", "runs"):
            age(index, f"{top}/busy", 30)
        run.confirm()
        report = collect_garbage(index, timedelta(0))
        assert report.files == 0
        assert [(kept.what, kept.files) for kept in report.kept] == [("run busy", 2)]
        assert "a driver was at work" in report.kept[0].why
    assert collect_garbage(index, timedelta(0)).files == 2


def test_the_last_sign_of_a_killed_driver_goes_with_its_run(index: Index) -> None:
    index.storage.write("runs/r/published", b"1")
    index.storage.write("runs/r/run.json", b"{}")
    index.storage.write("runs/r/alive/host-1", b"host-1 1")
    assert collect_garbage(index, timedelta(0)).files == 0
    age(index, "runs/r", 1)
    assert collect_garbage(index, timedelta(0)).files == 1
    assert paths(index, "runs") == ["runs/r/published", "runs/r/run.json"]


def write_training(index: Index, name: str) -> None:
    for file in ("run.json", "checkpoints/epoch-00001.json", "neighbours/00000.parquet"):
        index.storage.write(f"runs/{name}/train/{file}", b"1234")
    age(index, f"runs/{name}", 365)


def test_trainings_stay_unless_they_are_named(index: Index) -> None:
    write_training(index, "paused")
    write_training(index, "done")
    index.storage.write("runs/done/plan.json", b"of an encoding run of the same name")
    Run(index.storage.child("runs/done/train")).finish("0123456789abcdef")
    age(index, "runs", 365)
    report = collect_garbage(index, DAY)
    assert report.files == 1
    assert [(kept.what, kept.files, kept.bytes) for kept in report.kept] == [
        ("training done", 4, 12 + 18),
        ("training paused", 3, 12),
    ]
    assert report.kept[0].why == "finished, model 0123456789ab; goes only when it is named"
    assert report.kept[1].why == "can be resumed; goes only when it is named"
    with pytest.raises(NotFoundError, match="no training pause; trainings: done, paused"):
        collect_garbage(index, DAY, trainings=["done", "pause"])
    assert collect_garbage(index, DAY, trainings=["done"], dry_run=True).files == 4
    assert collect_garbage(index, DAY, trainings=["done"]).files == 4
    assert {path.split("/")[1] for path in paths(index, "runs")} == {"paused"}


def test_a_named_training_at_work_stays(index: Index) -> None:
    write_training(index, "busy")
    with Run(index.storage.child("runs/busy/train")).at_work():
        report = collect_garbage(index, timedelta(0), trainings=["busy"])
    assert report.files == 0
    assert "a driver was at work" in report.kept[0].why


@pytest.mark.parametrize(
    "path",
    [
        "data/pile/.run/plan.json",  # features
        "data/pile/pictures.parquet",
        "data/pile/sub/part-0.parquet",
        "runs/pile/neighbours/00000.parquet",  # a training with storage of its own choice
        "runs/pile/notes.txt",
    ],
)
def test_what_encoding_does_not_write_stays(index: Index, path: str) -> None:
    index.storage.write(path, b"theirs")
    index.storage.write("data/pile/part-000000.parquet", b"theirs?")
    index.storage.write("runs/pile/run.json", b"{}")
    for folder in ("data/pile", "runs/pile", "data/pile/.run"):
        age(index, folder, 365)
    before = paths(index)
    report = collect_garbage(index, DAY)
    assert (report.files, paths(index)) == (0, before)
    assert report.kept[0].why == "its folders hold what encoding does not write"


def test_a_ledger_goes_before_its_plan_and_both_before_the_files(index: Index) -> None:
    names = [
        "runs/r2/ledger/00000000.json",
        "runs/r2/plan.json",
        "runs/r2/plan-0.parquet",
        "runs/r2/run.json",
        "data/r2/part-0.parquet",
    ]
    for name in reversed(names):
        index.storage.write(name, b"x")
    runs, _ = sort_files([*index.storage.list("data"), *index.storage.list("runs")])
    assert [i.path for i in runs["r2"].garbage(set(), datetime.now(UTC))] == names


@pytest.mark.parametrize("keep", [None, 0])
def test_where_there_is_no_index_there_is_no_garbage(tmp_path: Path, keep: int | None) -> None:
    with pytest.raises(NotFoundError, match="holds no published index"):
        collect_garbage(Index.at(str(tmp_path / "absent")), keep=keep)
    assert not (tmp_path / "absent").exists()


def test_wrong_numbers_are_refused(index: Index) -> None:
    with pytest.raises(InputError, match="keep must be 0"):
        collect_garbage(index, keep=-1)
    with pytest.raises(InputError, match="grace period must be 0 hours or more, not -24"):
        collect_garbage(index, -DAY)


@pytest.mark.parametrize(("keep", "dropped"), [(None, ()), (0, (1, 2, 4)), (1, (1, 2)), (9, ())])
def test_what_expires(keep: int | None, dropped: tuple[int, ...]) -> None:
    assert expired([1, 2, 3, 4], 3, keep) == dropped
