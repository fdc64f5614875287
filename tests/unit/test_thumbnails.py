"""Files of thumbnails: what is written is found, and follows the ids that live."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_cluster.errors import NotFoundError
from dq_cluster.images.thumbnail import small_jpeg
from dq_cluster.index.catalog import Index
from dq_cluster.index.compact import compact
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.thumbnails import (
    COLUMN,
    ThumbnailWriter,
    stored_thumbnail,
    thumbnail_side,
)
from dq_cluster.index.tombstones import delete_ids
from dq_cluster.index.verify import verify
from dq_cluster.search.shard import Item
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.served import Served
from dq_cluster.storage import Storage
from tests.support import make_model, make_version

IDS = st.lists(st.integers(-5, 5) | st.integers(2**62, 2**62 + 3), min_size=1, max_size=12)


@given(parts=st.lists(IDS, min_size=1, max_size=3), text=st.booleans())
@settings(deadline=None, max_examples=30)
def test_the_last_picture_of_an_id_is_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]], text: bool
) -> None:
    storage = Storage(str(tmp_path_factory.mktemp("t")))
    writer = ThumbnailWriter()
    expected: dict[int | str, bytes] = {}
    for part in parts:
        ids = pa.array(map(str, part)) if text else pa.array(part, pa.int64())
        pictures = [None if id % 3 == 0 else f"{id} {n}".encode() for n, id in enumerate(part)]
        writer.add(ids, pa.array(pictures, pa.binary()))
        expected |= {i: p for i, p in zip(ids.to_pylist(), pictures, strict=True) if p is not None}
    entry = writer.write(storage, "t.parquet", 64)
    if not expected:
        assert entry is None
        return
    assert entry is not None
    table = pq.read_table(storage.open("t.parquet"))
    assert table.column("id").to_pylist() == sorted(expected)
    assert dict(zip(*(c.to_pylist() for c in table.columns), strict=True)) == expected
    assert (entry.rows, entry.size) == (len(expected), storage.size("t.parquet"))


def with_thumbnails(uri: str, rows: int = 600) -> tuple[Index, Manifest]:
    """A version of three files whose pictures say their ids; the last file has none."""
    index = Index.at(uri)
    old, _ = make_version(uri, make_model(uri), rows=rows, files=3)
    thumbnails = {}
    for number, file in enumerate(old.files[:2]):
        ids = pq.read_table(index.storage.open(file.path), columns=["id"]).column("id")
        writer = ThumbnailWriter()
        pictures = pa.array([b"%d" % id for id in ids.to_pylist()], pa.binary())
        writer.add(ids.combine_chunks(), pictures)
        entry = writer.write(index.storage, f"data/t/thumbnails-{number:06d}.parquet", 64)
        assert entry is not None
        thumbnails[file.path] = entry
    manifest = index.publish(
        lambda version, parent: old.model_copy(
            update={"version": version, "parent": parent, "thumbnails": thumbnails}
        )
    )
    return index, manifest


def row_of(index: Index, manifest: Manifest, id: int) -> int:
    tables = [pq.read_table(index.storage.open(f.path), columns=["id"]) for f in manifest.files]
    return int(np.flatnonzero(pa.concat_tables(tables).column("id").to_numpy() == id)[0])


def test_pictures_follow_delete_and_compact(tmp_path: Path) -> None:
    index, manifest = with_thumbnails(str(tmp_path / "index"))
    storage = index.storage
    assert thumbnail_side(storage, manifest) == 64
    for id in (0, 199, 200, 399):
        assert stored_thumbnail(storage, manifest, row_of(index, manifest, id), id) == b"%d" % id
    assert stored_thumbnail(storage, manifest, row_of(index, manifest, 500), 500) is None
    assert verify(index).problems == ()

    delete_ids(index, pa.array([7]))
    compacted = compact(index)
    assert len(compacted.files) == 1
    (entry,) = compacted.thumbnails.values()
    assert entry.rows == 399
    assert 7 not in pq.read_table(storage.open(entry.path)).column("id").to_pylist()
    for id in (0, 399):
        assert stored_thumbnail(storage, compacted, row_of(index, compacted, id), id) == b"%d" % id
    assert verify(index).problems == ()
    assert compact(index) == compacted


def test_verify_finds_what_is_wrong_with_thumbnails(tmp_path: Path) -> None:
    index, manifest = with_thumbnails(str(tmp_path / "index"))
    first, second = manifest.thumbnails.values()
    index.storage.delete(first.path)
    data = bytearray(index.storage.read(second.path))
    data[100] ^= 1
    index.storage.write(second.path, bytes(data))
    problems = verify(index).problems
    assert any(f"{first.path}: named by the manifest but missing" in p for p in problems)
    assert any(f"{second.path}: hashes to" in p for p in problems)


def test_a_stored_picture_is_shown_and_a_damaged_file_is_no_failure(tmp_path: Path) -> None:
    index, manifest = with_thumbnails(str(tmp_path / "index"))
    served = Served.load(index, manifest.version, ServeSettings(index=index.storage.uri))
    item = Item(np.zeros(1, np.float32), None, row_of(index, manifest, 3))
    assert served.picture("3", item) == b"3"
    source = tmp_path / "3.jpg"
    source.write_bytes(small_jpeg(np.zeros((32, 32, 3), np.uint8), 16))
    for entry in manifest.thumbnails.values():
        index.storage.write(entry.path, b"no Parquet")
    item = Item(item.embedding, str(source), item.ordinal)
    assert served.picture(3, item)[:2] == b"\xff\xd8"
    with pytest.raises(NotFoundError, match="no readable picture"):
        served.picture(3, Item(item.embedding, None, item.ordinal))


def test_a_manifest_without_thumbnails_says_nothing_of_them(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    manifest, _ = make_version(uri, make_model(uri))
    assert COLUMN not in manifest.to_json().decode()
