"""The first receipt of a fragment counts, whoever else comes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dq_cluster.errors import IntegrityError
from dq_cluster.fragments.ledger import Ledger, Receipt
from dq_cluster.index.manifest import FileEntry
from dq_cluster.storage import Storage


def receipt(fragment: int, rows: int = 1) -> Receipt:
    file = FileEntry(path=f"part-{fragment}-{rows}", rows=rows, size=9, sha256="0")
    return Receipt(
        fragment=fragment,
        rows=rows,
        rejected=0,
        reasons={},
        files=(file,),
        rejects=(),
        columns={"id": "int64"},
        seconds={"load": 0.5},
    )


@pytest.fixture(params=["folder", "s3"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    place = str(tmp_path) if request.param == "folder" else request.getfixturevalue("s3")
    return Ledger(Storage(place), "runs/r")


def test_entries_come_back_in_order(ledger: Ledger) -> None:
    for fragment in (2, 0, 100_000):
        assert not ledger.contains(fragment)
        assert ledger.commit(receipt(fragment)) == receipt(fragment)
        assert ledger.contains(fragment)
    assert ledger.done() == [0, 2, 100_000]
    assert list(ledger.receipts()) == [receipt(0), receipt(2), receipt(100_000)]


def test_the_first_of_many_writers_wins(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        counted = set(pool.map(lambda n: ledger.commit(receipt(5, n)).rows, range(1, 9)))
    assert len(counted) == 1
    assert ledger.read(5).rows in counted


def test_an_entry_sent_twice_is_its_own(ledger: Ledger) -> None:
    assert ledger.commit(receipt(1)) == ledger.commit(receipt(1)) == receipt(1)


def test_an_unreadable_entry_says_what_to_do(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("runs/r/ledger/00000003.json", b"{}")
    with pytest.raises(IntegrityError, match="delete it to encode its fragment again"):
        list(Ledger(storage, "runs/r").receipts())
