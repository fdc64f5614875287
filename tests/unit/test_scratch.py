"""Temporary files on a full disk are errors with the numbers; nothing ends in a SIGBUS."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dq_cluster.errors import StorageError
from dq_cluster.storage import Storage, scratch
from dq_cluster.storage.scratch import reserve, scratch_folder, scratch_memory, scratch_room
from tests.support import make_index

# Each in turn, in a process whose TMPDIR has 1 MB: what it says, or what it ends with.
_NEEDY = """
import sys
from pathlib import Path
from dq_cluster.errors import StorageError
from dq_cluster.encoding.plan import make_plan
from dq_cluster.images.units import Unit
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import row_schema
from dq_cluster.search.codebooks import Codebooks
from dq_cluster.search.codes import Codes
from dq_cluster.search.refine import load_second_codes
from dq_cluster.search.segment_store import SegmentStore
from dq_cluster.search.placement import Layout
from dq_cluster.search.segments import Segment
from dq_cluster.search.shard import load_shard
from dq_cluster.search.stored_rows import StoredRows
from dq_cluster.storage import Storage
from dq_cluster.training.node import mapped, node_folder

index = Index.at(sys.argv[1])
manifest = index.manifest()
whole = index, manifest, Segment(manifest.files)
units = (Unit(f"{n}" * 60) for n in range(10**6))

def matrix():
    with node_folder("x") as folder:
        mapped(folder / "m.npy", (500_000,), "float32", lambda: [(slice(None), 1.0)])

def needy(what):
    match what:
        case "codes": Codes.load(*whole, Codebooks.load(index.storage, manifest))
        case "rows": StoredRows.load(*whole, row_schema(index.storage, manifest))
        case "refine": load_second_codes(*whole)
        case "shard": load_shard(SegmentStore(index), index, Layout(1, 1), 0)
        case "matrix": matrix()
        case "plan": make_plan(Storage(sys.argv[1]), "r", units, fragment_rows=9)

for what in sys.argv[2:]:
    try:
        needy(what)
        print(what, "done")
    except StorageError as error:
        print(what, error)
"""
_NEEDED = ["codes", "rows", "refine", "shard", "matrix", "plan"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("string_ids", [False, True])
def test_a_full_disk_is_named_and_not_the_version(
    tmp_path: Path, small_disk: Path, string_ids: bool
) -> None:
    uri = str(tmp_path / "index")
    make_index(uri, rows=40_000, dim=64, m=64, nbits=4, refine_m=32, files=3, string_ids=string_ids)
    done = subprocess.run(
        [sys.executable, "-c", _NEEDY, uri, *_NEEDED],
        env=os.environ | {"TMPDIR": str(small_disk), "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == _NEEDED
    for line in lines:
        assert re.search(
            rf"(\d\.\d MB (is|are)) needed in {small_disk}, .* and 1\.0 MB were free "
            r"\(No space left on device\); set TMPDIR to a folder on a larger disk$",
            line,
        )
    assert "1.3 MB are needed" in lines[0]
    assert not [path for path in small_disk.rglob("*") if path.is_file() and path.stat().st_size]


def test_an_index_on_a_full_disk(small_disk: Path) -> None:
    storage = Storage(str(small_disk))
    storage.write("x", b"old")
    for call in (
        storage.write,
        storage.create,
        lambda name, data: storage.replace(name, data, b"old"),
    ):
        with pytest.raises(StorageError, match=r"x: no space .* \(1\.0 MB free of 1\.0 MB\); free"):
            call("x", bytes(2 << 20))
    assert storage.read("x") == b"old"
    assert [path.name for path in small_disk.iterdir()] in (["x", ".x.lock"], [".x.lock", "x"])


def test_memory_is_there_and_writable() -> None:
    memory = np.frombuffer(scratch_memory(3 << 20), np.uint8)
    memory[:] = 7
    assert memory.sum() == 7 * (3 << 20)


def test_room_is_taken_also_where_the_file_system_cannot_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(scratch.os, "posix_fallocate", cannot)
    size = (1 << 20) + 5
    with open(tmp_path / "file", "w+b") as file:
        reserve(file.fileno(), size)
    stat = (tmp_path / "file").stat()
    assert stat.st_size == size
    assert stat.st_blocks * 512 >= size


def test_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    for attempt in (lambda: scratch_memory(10), lambda: scratch_folder().__enter__()):
        with pytest.raises(StorageError, match="set TMPDIR to a folder that exists"):
            attempt()


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), scratch_room():
        (tmp_path / "none").read_bytes()
