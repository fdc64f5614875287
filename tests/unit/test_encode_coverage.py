"""What a run does not cover is counted and said."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.encoding.coverage import Difference, compare, look_again, summary
from dq_cluster.encoding.plan import Plan, PlanReader, find_plan, make_plan
from dq_cluster.encoding.resume import resume
from dq_cluster.errors import InputError
from dq_cluster.fragments.ledger import Receipt
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.files import Folder
from dq_cluster.images.units import Unit
from dq_cluster.storage import FileInfo, Storage
from tests.pictures import crops, write_folder, write_parquet

JPEG = crops(1)[0]
files = st.dictionaries(st.text("ab/.é", min_size=1, max_size=4), st.integers(0, 2), max_size=12)


def info(path: str, stamp: int) -> FileInfo:
    return FileInfo(path, 1, None, stamp)  # type: ignore[arg-type]


@given(files, files, st.integers(1, 20))
def test_two_sorted_lists(planned: dict[str, int], present: dict[str, int], most: int) -> None:
    units = [Unit(path, size=1, stamp=planned[path]) for path in sorted(planned)]
    there = [info(path, present[path]) for path in sorted(present)]
    found = compare(units, there, lambda _: True, most)
    seen = {i.path: i.stamp for i in there[:most]}
    assert found.whole == (len(there) <= most)
    assert found.compared == len(seen)
    assert found.new == len(seen.keys() - planned.keys())
    assert found.changed == sum(seen[p] != planned[p] for p in seen.keys() & planned.keys())
    if found.whole:
        assert found.gone == len(planned.keys() - seen.keys())


def test_a_file_that_is_no_input_is_not_new() -> None:
    found = compare([], [info("a", 0), info("b", 0)], lambda i: i.path == "b")
    assert found.new == 1


def plan_again(storage: Storage, uri: Path) -> tuple[Plan, int | None]:
    source = SourceSettings(kind="folder", uri=str(uri))
    plan, found = planned(storage, source, rows=2)
    return plan, found.new if found else None


def planned(storage: Storage, source: SourceSettings, rows: int) -> tuple[Plan, Difference | None]:
    """As a driver begins."""
    begun = find_plan(storage, "r")
    found = look_again(storage, begun, source, "give another name") if begun else None
    return resume(storage, "r", source, source, fragment_rows=rows, written=[]), found


@pytest.mark.usefixtures("no_plugins")
def test_a_continued_run_says_what_was_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pile, storage = tmp_path / "pile", Storage(f"{tmp_path}/index")
    write_folder(pile, {f"{n}.jpg": JPEG for n in range(3)} | {"a.txt": b"", "b.heic": b"x" * 20})
    plan, new = plan_again(storage, pile)
    assert (plan.files, plan.rows, new) == (3, 3, None)
    assert plan.skipped == {".heic": 1, ".txt": 1}
    assert "planned 3 files, 3 rows; 2 skipped (.heic 1, .txt 1)" in capsys.readouterr().err

    assert plan_again(storage, pile) == (plan, 0)
    said = capsys.readouterr().err
    assert f"planned {plan.planned:%Y-%m-%d %H:%M} UTC with 3 files" in said
    assert "nothing was added or changed since" in said
    assert "give another name" not in said

    write_folder(pile, {"0a": JPEG, "README": b"words", "4.jpg": JPEG})
    os.utime(pile / "1.jpg", ns=(0, 0))
    (pile / "2.jpg").unlink()
    assert plan_again(storage, pile) == (plan, 2)
    said = capsys.readouterr().err
    assert "files there now that are not in it: 2, changed since: 1, gone since: 1" in said
    assert "give another name" in said


def test_a_source_that_is_gone_is_no_fault_of_a_complete_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(str(tmp_path))
    path = write_parquet(tmp_path / "a.parquet", {"id": [1], "image": [JPEG]})
    plan = make_plan(storage, "r", [Unit("a.parquet")], fragment_rows=1)
    path.unlink()
    source = SourceSettings(kind="parquet", uri=str(path))
    assert look_again(storage, plan, source, "") is None
    assert "cannot compare" in capsys.readouterr().err


def test_every_row_group_of_a_file_is_one_file(tmp_path: Path) -> None:
    columns = {"id": range(10), "image": [JPEG] * 10}
    path = write_parquet(tmp_path / "a.parquet", columns, row_group_size=2)
    source = SourceSettings(kind="parquet", uri=str(path))
    storage = Storage(f"{tmp_path}/index")
    plan, _ = planned(storage, source, rows=3)
    assert (plan.files, plan.units, plan.rows, plan.fragments) == (1, 5, 10, 3)
    found = look_again(storage, plan, source, "")
    assert found is not None
    assert (found.new, found.changed, found.gone) == (0, 0, 0)


def test_the_summary_adds_what_tars_left_out() -> None:
    plan = Plan(path="", fragments=2, units=2, rows=None, request={}, skipped={".txt": 2})
    receipts = [
        Receipt(
            fragment=n,
            rows=1,
            rejected=0,
            reasons={},
            files=(),
            rejects=(),
            columns={},
            seconds={},
            skipped={"hidden": 1 + n, ".txt": n},
        )
        for n in range(2)
    ]
    assert summary(plan, receipts, None) == {"skipped": {".txt": 3, "hidden": 3}}


def test_plans_and_receipts_of_earlier_versions_are_read(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    table = pa.table({"path": ["a.jpg", "b.jpg"], "start": [0, 0], "rows": [1, 1]})
    pq.write_table(table, tmp_path / "plan-old.parquet")
    about = '{"format": 1, "path": "plan-old.parquet", "fragments": 1, "units": 2, "rows": 2, '
    storage.write("r/plan.json", (about + '"request": {}, "newest": 0}').encode())
    plan = find_plan(storage, "r")
    assert plan is not None
    assert PlanReader(storage, plan).fragment(0) == [Unit("a.jpg"), Unit("b.jpg")]
    assert (plan.planned, plan.files, plan.skipped) == (None, None, {})
    write_folder(tmp_path / "pile", {"a.jpg": JPEG, "b.jpg": JPEG, "c.jpg": JPEG})
    source = SourceSettings(kind="folder", uri=f"{tmp_path}/pile")
    found = look_again(storage, plan, source, "")
    assert found is not None
    assert (found.new, found.changed) == (1, 0)
    receipt = (
        '{"fragment": 0, "rows": 1, "rejected": 0, "reasons": {}, "files": [], "rejects": [], '
        '"columns": {}, "seconds": {}}'
    )
    assert Receipt.model_validate_json(receipt).skipped == {}


@pytest.mark.usefixtures("no_plugins")
def test_nothing_to_plan_says_what_was_there(tmp_path: Path) -> None:
    pile = write_folder(tmp_path / "pile", {"a.heic": b"\0\0\0\x18ftypheic" + bytes(20)})
    source = Folder(SourceSettings(kind="folder", uri=str(pile)))
    with pytest.raises(InputError, match=r"1 skipped \(.heic 1\); 1 HEIC: pip install pillow-heif"):
        make_plan(
            Storage(f"{tmp_path}/i"),
            "r",
            source.units(),
            source.skipped,
            fragment_rows=1,
        )
