"""Garbage collection beside every other writer, at every step of either: no version loses a file.

Both sides are the real code on a real local index. What stands between two steps is any call of
the storage.
"""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster import run as run_module
from dq_cluster.encode.ledger import Ledger
from dq_cluster.encode.plan import Plan
from dq_cluster.encode.publish import publish_run
from dq_cluster.encode.request import EncodeRequest
from dq_cluster.encode.resume import resume
from dq_cluster.errors import ConflictError, NotFoundError
from dq_cluster.images.config import SourceSettings
from dq_cluster.index.catalog import Index
from dq_cluster.index.compact import compact
from dq_cluster.index.garbage import named_files
from dq_cluster.index.gc import collect_garbage
from dq_cluster.index.models import list_models, read_card
from dq_cluster.index.tombstones import delete_ids
from dq_cluster.run import Run
from tests.interleave import Before, Turns, Watched
from tests.unit.test_encode_publish import receipt_of
from tests.unit.test_verify import make_version

OLD = 30 * 86400
NO_GRACE, GRACE = timedelta(0), timedelta(days=1)

Writer = Callable[[Index, Path], None]  # the path: features for a run to encode


def grow_old(folder: Path) -> None:
    """Let everything look as if it was written a month ago."""
    stamp = time.time() - OLD
    for path in folder.rglob("*"):
        os.utime(path, (stamp, stamp))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 … 4, of which 3 is current, and a quiet run with all but one fragment done."""
    folder = tmp_path_factory.mktemp("template")
    features = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(24 * 8, np.float32)), 8)
    table = pa.table({"id": range(24), "feature": features})
    pq.write_table(table, folder / "features.parquet", row_group_size=8)
    index = make_version(folder / "index", pa.array(range(300)))
    for id in (1, 2, 3):
        delete_ids(index, [id])
    index.rollback(3)
    _begin(index, folder / "features.parquet")
    for fragment in (0, 2):
        _encode_fragment(index, fragment)
    index.storage.write("runs/gone/train/run.json", b"{}")
    index.storage.write("runs/gone/train/checkpoints/epoch-00000.json", b"{}")
    grow_old(folder)
    return folder


def _begin(index: Index, features: Path) -> Plan:
    source = SourceSettings(kind="features", uri=str(features))
    request = EncodeRequest(source=source, append=False, fragment_rows=8, model="m")
    return resume(
        index.storage, "runs/q", request, source, fragment_rows=8, written=["data/q"], newest=4
    )


def _encode_fragment(index: Index, fragment: int) -> None:
    receipt = receipt_of("q", fragment).model_copy(update={"rows": 8})
    (file,) = receipt.files
    index.storage.write(file.path, b"data")
    file = file.model_copy(update={"rows": 8})
    Ledger(index.storage, "runs/q").commit(receipt.model_copy(update={"files": (file,)}))


def resume_and_publish(index: Index, features: Path) -> None:
    """What `encode` does, without Ray."""
    run = Run(index.storage.child("runs/q"))
    with run.at_work():
        plan = _begin(index, features)
        done = Ledger(index.storage, "runs/q").done()
        for fragment in set(range(plan.fragments)) - set(done):
            _encode_fragment(index, fragment)
        run.confirm()
        card = read_card(index.storage, list_models(index.storage)[0])
        publish_run(index, "q", plan, card, append=False, columns=(), max_reject_fraction=0.0)


def delete(index: Index, features: Path) -> None:
    delete_ids(index, [7])


def compact_all(index: Index, features: Path) -> None:
    with suppress(ConflictError):
        compact(index, target_rows=200)


def back_and_forth(index: Index, features: Path) -> None:
    for version in (1, 4, 2):
        with suppress(NotFoundError):
            index.rollback(version)


def back_then_delete(index: Index, features: Path) -> None:
    with suppress(NotFoundError):
        index.rollback(2)
    delete(index, features)


def collect(index: Index, features: Path) -> None:
    collect_garbage(index, NO_GRACE, keep=1)


def go_on_training(index: Index, features: Path) -> None:
    run = Run(index.storage.child("runs/gone/train"))
    with run.at_work():
        begun = run.storage.exists("checkpoints/epoch-00000.json")
        run.confirm()
        assert run.storage.exists("checkpoints/epoch-00000.json") == begun
        assert run.storage.exists("run.json") >= begun


WRITERS: dict[str, Writer] = {
    writer.__name__: writer
    for writer in (
        resume_and_publish,
        delete,
        compact_all,
        back_and_forth,
        back_then_delete,
        collect,
        go_on_training,
    )
}


def check(index: Index) -> None:
    """Every file that a version names is there, and so is the version that readers use."""
    sizes = {info.path: info.size for info in index.storage.list("data")}
    for number in index.versions():
        for file in named_files(index.manifest(number)):
            assert sizes.get(file.path) == file.size, f"version {number} lost {file.path}"
    index.manifest()


def play(
    template: Path, name: str, schedule: list[int], grace: timedelta, *, gc_first: bool
) -> Turns:
    """Garbage collection and a writer by turns, on a copy of the template; checked afterwards."""
    folder = template / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template / "index", folder)
    turns = Turns(schedule)
    tasks: list[Callable[[Before], object]] = [
        lambda before: collect_garbage(
            Index(Watched(str(folder), before)), grace, keep=0, trainings=["gone"]
        ),
        lambda before: WRITERS[name](
            Index(Watched(str(folder), before)), template / "features.parquet"
        ),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_pause", turns.wait)
        for found in turns.run(*(tasks if gc_first else reversed(tasks))):
            if isinstance(found, BaseException):
                raise found
    check(Index.at(str(folder)))
    return turns


@pytest.mark.parametrize("gc_first", [True, False], ids=["gc-first", "gc-second"])
@pytest.mark.parametrize("grace", [NO_GRACE, GRACE], ids=["no-grace", "grace"])
@pytest.mark.parametrize("name", WRITERS)
def test_at_every_step(template: Path, name: str, grace: timedelta, gc_first: bool) -> None:
    """One side is interrupted once, wherever, by all that the other does."""
    step = steps = 0
    while step <= steps:
        turns = play(template, name, [step], grace, gc_first=gc_first)
        steps = turns.steps[0]
        step += 1
    assert steps > 10
