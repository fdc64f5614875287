"""From ledger to version: only what is whole, only once, and nobody's rows are lost in a race."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dq_cluster.encoding.plan import Plan
from dq_cluster.encoding.pool import MEASURED
from dq_cluster.encoding.publish import publish_run
from dq_cluster.errors import IntegrityError, QualityGateError
from dq_cluster.fragments.ledger import Ledger, Receipt
from dq_cluster.fragments.progress import RunProgress, Work
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.catalog import Index
from dq_cluster.index.manifest import FileEntry, Manifest
from dq_cluster.index.models import ModelCard

CARD = ModelCard(digest="d", geometry=CodeGeometry(dim=8, m=4), feature_dim=8, network={})
FRAGMENTS, ROWS = 3, 10


def receipt_of(run: str, fragment: int, rejected: int = 0) -> Receipt:
    def entry(kind: str, rows: int) -> FileEntry:
        path = f"data/{run}/{kind}-{fragment}.parquet"
        return FileEntry(path=path, rows=rows, size=4, sha256="0")

    return Receipt(
        fragment=fragment,
        rows=ROWS - rejected,
        rejected=rejected,
        reasons={"empty": rejected} if rejected else {},
        files=(entry("part", ROWS - rejected),),
        rejects=(entry("rejects", rejected),) if rejected else (),
        columns={"id": "int64", "code": "fixed_size_binary[4]"},
        seconds={"load": 1.0},
    )


def finished(index: Index, run: str, rejected: int = 0) -> Plan:
    """A run with all its fragments in the ledger, the first with `rejected` rejects."""
    for fragment in range(FRAGMENTS):
        receipt = receipt_of(run, fragment, rejected if fragment == 0 else 0)
        for file in (*receipt.files, *receipt.rejects):
            index.storage.write(file.path, b"data")
        Ledger(index.storage, f"runs/{run}").commit(receipt)
    return Plan(
        path="p",
        fragments=FRAGMENTS,
        units=FRAGMENTS,
        rows=FRAGMENTS * ROWS,
        newest=max(index.versions(), default=0),
    )


def publish(index: Index, run: str, plan: Plan, **others: object) -> Manifest:
    options = {"append": False, "columns": (), "max_reject_fraction": 0.0} | others
    return publish_run(index, run, plan, CARD, **options)  # type: ignore[arg-type]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.at(str(tmp_path))


def test_a_whole_run_becomes_a_version(index: Index) -> None:
    plan = finished(index, "r")
    manifest = publish(index, "r", plan)
    assert index.manifest() == manifest
    assert (manifest.version, manifest.rows, len(manifest.files)) == (1, 30, FRAGMENTS)
    assert publish(index, "r", plan) == manifest


def test_what_is_not_whole_is_not_published(index: Index) -> None:
    plan = finished(index, "r")
    with pytest.raises(
        IntegrityError, match="the plan has 31 rows but the receipts account for 30"
    ):
        publish(index, "r", plan.model_copy(update={"rows": 31}))
    index.storage.write("data/r/part-1.parquet", b"half")
    index.storage.write("data/r/part-2.parquet", b"longer")
    with pytest.raises(IntegrityError, match="4 bytes were written, storage has 6"):
        publish(index, "r", plan)
    index.storage.delete("data/r/part-2.parquet")
    with pytest.raises(IntegrityError, match="storage has no file"):
        publish(index, "r", plan)
    index.storage.delete("runs/r/ledger/00000001.json")
    with pytest.raises(IntegrityError, match="2 of 3 fragments are committed"):
        publish(index, "r", plan)
    assert index.versions() == []


def test_too_many_rejects_are_named_and_nothing_is_published(index: Index) -> None:
    plan = finished(index, "r", rejected=3)
    with pytest.raises(QualityGateError, match=r"3 of 30 inputs are rejects \(3 empty\)"):
        publish(index, "r", plan, max_reject_fraction=0.09)
    assert index.versions() == []
    manifest = publish(index, "r", plan, max_reject_fraction=0.1)
    assert (manifest.rows, manifest.rejected) == (27, 3)


def test_drivers_of_one_run_make_one_version(index: Index) -> None:
    plan = finished(index, "r")
    with ThreadPoolExecutor(6) as pool:
        made = {m.version for m in pool.map(lambda _: publish(index, "r", plan), range(6))}
    assert made == {index.current()}
    assert [v for v in index.versions() if index.manifest(v).producer.run == "r"] == [
        index.current()
    ]


def test_runs_that_append_at_the_same_time_are_all_there(index: Index) -> None:
    plans = {f"r{n}": finished(index, f"r{n}") for n in range(5)}
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda run: publish(index, run, plans[run], append=True), plans))
    manifest = index.manifest()
    assert manifest.rows == 5 * FRAGMENTS * ROWS
    assert len({file.path for file in manifest.files}) == 5 * FRAGMENTS


def test_a_run_that_lost_a_race_and_won_the_next_is_not_published_again(index: Index) -> None:
    plan, other = finished(index, "mine"), finished(index, "other")
    lost = publish(index, "mine", plan, append=True)
    index.storage.delete("CURRENT")
    publish(index, "other", other, append=True)  # on the same parent: `lost` is a dead end
    won = publish(index, "mine", plan, append=True)
    publish(index, "later", finished(index, "later"), append=True)
    index.storage.delete("runs/mine/published")
    assert publish(index, "mine", plan, append=True) == won
    assert won.version not in (lost.version, index.current())
    assert index.manifest().rows == 3 * FRAGMENTS * ROWS


def test_a_run_killed_between_its_version_and_current_is_finished_not_repeated(
    index: Index,
) -> None:
    first = publish(index, "a", finished(index, "a"))
    plan = finished(index, "b")
    second = publish(index, "b", plan, append=True)
    index.storage.write("CURRENT", b"1")
    index.storage.delete("runs/b/published")
    assert publish(index, "b", plan, append=True) == second
    assert (index.current(), index.versions()) == (2, [first.version, 2])


def test_a_version_that_lost_files_is_not_taken_for_the_run_as_it_is_now(index: Index) -> None:
    publish(index, "a", finished(index, "a"))
    plan = finished(index, "b")
    publish(index, "b", plan, append=True)
    index.storage.delete("runs/b/published")
    receipt = receipt_of("b", 1)
    again = receipt.files[0].model_copy(update={"path": "data/b/part-1-again.parquet"})
    index.storage.write(again.path, b"data")
    Ledger(index.storage, "runs/b").forget(1)
    Ledger(index.storage, "runs/b").commit(receipt.model_copy(update={"files": (again,)}))
    with pytest.raises(IntegrityError, match="published as version 2, whose files are not those"):
        publish(index, "b", plan, append=True)
    index.rollback(1)
    manifest = publish(index, "b", plan, append=True)
    assert manifest.version == 3
    assert again in manifest.files
    assert manifest.rows == 2 * FRAGMENTS * ROWS


def test_progress_without_a_terminal_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress("encode r", fragments=10, done=4, measured=MEASURED) as progress:
        progress.add(receipt_of("r", 4, rejected=1))
        assert progress.figures().startswith("10 rows, 5/10 fragments, ")
        assert "1 rejects" in progress.figures()
        assert progress.figures().endswith("left")
    printed = capsys.readouterr()
    assert printed.out == ""
    begun, ended = printed.err.splitlines()
    assert begun == "encode r: continuing: 4 of 10 fragments are done"
    assert ended.startswith("encode r: 10 rows, 5/10 fragments")


def test_progress_counts_the_rows_of_fragments_in_hand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dq_cluster.fragments.progress.LINE_EVERY", 0)
    lanes = {"load": 4, "encode": 1}
    with RunProgress(
        "encode r", 10, 4, MEASURED, rows=1000, done_rows=400, lanes=lanes
    ) as progress:
        progress.working({4: Work(5, 2, {"load": 8.0, "encode": 1.0})})
        progress.working({4: Work(7, 3, {"load": 9.0, "encode": 3.0}), 5: Work(1, 0, {})})
        assert progress.figures().startswith("411/1,000 rows, 4/10 fragments, ")
        assert progress.figures().endswith(" left, the slowest stage is encode")
        progress.add(receipt_of("r", 4, rejected=1))
        assert progress.figures().startswith("411/1,000 rows, 5/10 fragments, ")
        progress.working({4: Work(9, 9, {})})  # a report that comes late
        assert progress.figures().startswith("411/1,000 rows, 5/10 fragments, ")
    shown = capsys.readouterr().err.splitlines()
    assert shown[1].startswith("encode r: 407/1,000 rows, 4/10 fragments, ")
    assert len(shown) == 6
