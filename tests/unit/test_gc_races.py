"""Garbage collection beside every other writer, at every step of either: no version loses a file.

Both sides are the real code on a real local index. What stands between two steps is any call of
the storage.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dq_cluster import run as run_module
from dq_cluster.encoding.plan import Plan
from dq_cluster.encoding.publish import publish_run
from dq_cluster.encoding.request import EncodeRequest
from dq_cluster.encoding.resume import resume
from dq_cluster.errors import ConflictError, NotFoundError
from dq_cluster.fragments.ledger import Ledger
from dq_cluster.images.config import SourceSettings
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import code_table, write_code_file
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
NO_GRACE = timedelta(0)
# Every step takes minutes; the quick tests take some, other ones for each pair.
STRIDES = [7, pytest.param(1, marks=pytest.mark.slow)]

Collector = Callable[[Index], None]
Writer = Callable[[Index, Path], None]  # the path: features for a run to encode


def grow_old(folder: Path) -> None:
    """Let everything look as if it was written a month ago."""
    stamp = time.time() - OLD
    for path in folder.rglob("*"):
        os.utime(path, (stamp, stamp))


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory, where there is one: thousands of small files are written here."""
    shared = Path("/dev/shm")
    if os.access(shared, os.W_OK):
        with tempfile.TemporaryDirectory(dir=shared) as folder:
            yield Path(folder)
    else:
        yield tmp_path_factory.mktemp("races")


@pytest.fixture(scope="module")
def template(memory: Path) -> Path:
    """Versions 1 … 4, of which 3 is current; a quiet run that only has to publish, one that has
    a fragment to encode as well, and a training."""
    folder = memory
    features = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(24 * 8, np.float32)), 8)
    table = pa.table({"id": range(24), "feature": features})
    pq.write_table(table, folder / "features.parquet", row_group_size=8)
    index = make_version(folder / "index", pa.array(range(300)))
    for id in (1, 2, 3):
        delete_ids(index, [id])
    index.rollback(3)
    for run, fragments in (("whole", (0, 1, 2)), ("part", (0, 2))):
        _begin(index, run, folder / "features.parquet", append=run == "part")
        for fragment in fragments:
            _encode_fragment(index, run, fragment)
    index.storage.write("runs/gone/train/run.json", b"{}")
    index.storage.write("runs/gone/train/checkpoints/epoch-00000.json", b"{}")
    grow_old(folder)
    return folder


def _begin(index: Index, run: str, features: Path, *, append: bool) -> Plan:
    source = SourceSettings(kind="features", uri=str(features))
    request = EncodeRequest(source=source, append=append, fragment_rows=8, model="m")
    return resume(
        index.storage,
        f"runs/{run}",
        request,
        source,
        fragment_rows=8,
        written=[f"data/{run}"],
        newest=4,
    )


def _encode_fragment(index: Index, run: str, fragment: int) -> None:
    receipt = receipt_of(run, fragment)
    card = read_card(index.storage, list_models(index.storage)[0])
    rows = np.arange(8 * fragment, 8 * fragment + 8)
    table = code_table(
        pa.array(rows),
        np.zeros((8, card.geometry.code_size), np.uint8),
        card.geometry,
        pa.table({"position": rows}),
    )
    path = receipt.files[0].path
    entry = write_code_file(index.storage, path, table, model=card.digest, geometry=card.geometry)
    files = (entry,)
    columns = receipt.columns | {"position": "int64"}
    Ledger(index.storage, f"runs/{run}").commit(
        receipt.model_copy(update={"rows": 8, "files": files, "columns": columns})
    )


def _encode(index: Index, run: str, features: Path, *, append: bool) -> None:
    """What `encode` does, without Ray."""
    own = Run(index.storage.child(f"runs/{run}"))
    with own.at_work():
        plan = _begin(index, run, features, append=append)
        done = Ledger(index.storage, f"runs/{run}").done()
        for fragment in set(range(plan.fragments)) - set(done):
            _encode_fragment(index, run, fragment)
        own.confirm()
        card = read_card(index.storage, list_models(index.storage)[0])
        publish_run(
            index, run, plan, card, append=append, columns=("position",), max_reject_fraction=0.0
        )


def publish_what_is_whole(index: Index, features: Path) -> None:
    _encode(index, "whole", features, append=False)


def append_what_is_part(index: Index, features: Path) -> None:
    _encode(index, "part", features, append=True)


def delete(index: Index, features: Path) -> None:
    try:
        delete_ids(index, [7])
    except NotFoundError as error:
        if "ids are not in version" not in str(error):  # deleted before it was killed
            raise


def compact_all(index: Index, features: Path) -> None:
    # Another version came first; or without a grace period, what it reads was dropped.
    with suppress(ConflictError, NotFoundError):
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
        publish_what_is_whole,
        append_what_is_part,
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


def collect_all(index: Index) -> None:
    collect_garbage(index, NO_GRACE, keep=0, trainings=["gone"])


def collect_the_quiet(index: Index) -> None:
    collect_garbage(index, timedelta(days=1), keep=0, trainings=["gone"])


def go_back_and_collect(index: Index) -> None:
    with suppress(NotFoundError):
        index.rollback(1)
    collect_all(index)


COLLECTORS = (collect_all, collect_the_quiet, go_back_and_collect)


def hash_of(name: str, function: Callable[..., None]) -> int:
    return sum((name + function.__name__).encode())


def copy_of(template: Path) -> Path:
    folder = template / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    # Links do: what is written is a new file each time.
    shutil.copytree(template / "index", folder, copy_function=os.link)
    return folder


def play(
    template: Path, collector: Collector, name: str, schedule: list[int], *, first: bool
) -> Turns:
    """A collector and a writer by turns, on a copy of the template; checked afterwards.

    first: whether the collector begins.
    """
    folder = str(copy_of(template))
    features = template / "features.parquet"
    turns = Turns(schedule)
    tasks: list[Callable[[Before], object]] = [
        lambda before: collector(Index(Watched(folder, before))),
        lambda before: WRITERS[name](Index(Watched(folder, before)), features),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_pause", turns.wait)
        patch.setattr(os, "fsync", lambda handle: None)  # nobody pulls the plug
        for found in turns.run(*(tasks if first else reversed(tasks))):
            if isinstance(found, BaseException):
                raise found
    check(Index.at(folder))
    return turns


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("first", [True, False], ids=["collector-first", "writer-first"])
@pytest.mark.parametrize("collector", COLLECTORS)
@pytest.mark.parametrize("name", WRITERS)
def test_at_every_step(
    template: Path, name: str, collector: Collector, first: bool, stride: int
) -> None:
    """One side is interrupted once, wherever, by all that the other does."""
    steps, step = stride, hash_of(name, collector) % stride
    while step <= steps:
        steps = play(template, collector, name, [step], first=first).steps[0]
        step += stride
    assert steps > 5


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(WRITERS)),
    st.sampled_from(COLLECTORS),
    st.lists(st.integers(0, 12), min_size=4, max_size=12),
    st.booleans(),
)
def test_by_turns(
    template: Path, name: str, collector: Collector, schedule: list[int], first: bool
) -> None:
    play(template, collector, name, schedule, first=first)


class Killed(BaseException):
    pass


def kill_at(step: int) -> Before:
    """What ends a process at its `step`-th call of the storage, and all that would come after."""
    calls = 0

    def before(operation: str, name: str) -> None:
        nonlocal calls
        calls += 1
        if calls > step:
            raise Killed

    return before


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("name", WRITERS)
def test_killed_at_every_step(template: Path, name: str, stride: int) -> None:
    """A collection is killed, the writer comes, and another collection: no version lost a file.

    And likewise a writer, who comes again after the collection.
    """
    features = template / "features.parquet"
    writer = WRITERS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        for collector_dies in (True, False):
            killed, step = True, hash_of(name, writer) % stride
            while killed:
                folder = copy_of(template)
                victim, index = Index(Watched(str(folder), kill_at(step))), Index.at(str(folder))
                killed = False
                try:
                    collect_all(victim) if collector_dies else writer(victim, features)
                except Killed:
                    killed = True
                check(index)
                for place in ("alive", "collecting"):  # ten minutes later
                    for path in folder.rglob(f"{place}/*"):
                        path.unlink()
                if not collector_dies:
                    collect_garbage(index, NO_GRACE, keep=0)
                    check(index)
                writer(index, features)
                check(index)
                collect_garbage(index, NO_GRACE, keep=0)
                check(index)
                step += stride
            assert step > 5
