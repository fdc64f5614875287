"""Versions share what they have in common: nothing is read twice, nothing is held too long."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dq_cluster.index.catalog import Index
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.tombstones import delete_ids
from dq_cluster.search.merge import merge
from dq_cluster.search.placement import Layout, plan_shards
from dq_cluster.search.segment_store import SegmentStore
from dq_cluster.search.segments import pack
from dq_cluster.search.shard import LoadedShard, load_shard, load_whole
from tests.support import make_index, shards_of


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of code files, each time that one is opened."""
    paths: list[str] = []

    def spy(module: str) -> None:
        import importlib

        loaded = importlib.import_module(module)
        original = loaded.open_code_file

        def counted(storage: Any, entry: Any, **given: Any) -> Any:
            paths.append(entry.path)
            return original(storage, entry, **given)

        monkeypatch.setattr(loaded, "open_code_file", counted)

    for name in ("codes", "stored_rows", "refine"):
        spy(f"dq_cluster.search.{name}")
    return paths


def extended(index: Index, old: Manifest, more: Manifest) -> Manifest:
    """A version with the files of both."""
    return index.publish(
        lambda version, parent: old.model_copy(
            update={
                "version": version,
                "parent": parent,
                "files": (*old.files, *more.files),
                "rows": old.rows + more.rows,
            }
        )
    )


def answers(shard: LoadedShard, queries: np.ndarray) -> list[np.ndarray]:
    return list(shard.searcher.search(queries, 50))


@pytest.mark.parametrize("nlist", [0, 4])
@pytest.mark.parametrize("nbits", [4, 8])
def test_an_append_and_deletes_read_only_what_is_new(
    tmp_path: Path, opened: list[str], nbits: Any, nlist: int
) -> None:
    uri = str(tmp_path)
    index, first, vectors = make_index(uri, rows=900, nbits=nbits, nlist=nlist, refine_m=8)
    card = first.model
    _, other, _ = make_index(
        uri, rows=70, files=2, nbits=nbits, nlist=nlist, refine_m=8, seed=1, card=_card(index, card)
    )
    store = SegmentStore(index)

    def load(manifest: Manifest) -> LoadedShard:
        opened.clear()
        return load_shard(store, index, Layout(manifest.version, 1), 0)

    held = [load(first)]
    assert {*opened} == {file.path for file in first.files}

    grown = extended(index, first, other)
    held.append(load(grown))
    assert {*opened} == {file.path for file in other.files}
    index.storage.write("CURRENT", str(grown.version).encode())
    after = delete_ids(index, [0, 17, 899, 1_000_003])
    lost = [held[1].rows.find(id) for id in (0, 17, 899, 1_000_003)]
    held.append(load(after))
    assert opened == []
    held.append(load(first))
    assert opened == []

    for shard, manifest in zip(held, (first, grown, after, first), strict=True):
        fresh = load_whole(index, manifest)
        for mine, theirs in zip(
            answers(shard, vectors[:5]), answers(fresh, vectors[:5]), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)
        everything = np.arange(manifest.rows)
        assert shard.rows.take(everything).equals(fresh.rows.take(everything))
        assert shard.refiner is not None
        assert fresh.refiner is not None
        np.testing.assert_array_equal(
            shard.refiner.scores(vectors[:1], everything[None]),
            fresh.refiner.scores(vectors[:1], everything[None]),
        )
    gone = held[2].searcher.search(vectors[:5], 2000)[1]
    assert not set(lost) & set(gone.ravel().tolist())
    assert held[2].rows.find(17) is None
    assert held[2].rows.find(1_000_004) == held[1].rows.find(1_000_004)


def _card(index: Index, digest: str) -> Any:
    from dq_cluster.index.models import read_card

    return read_card(index.storage, digest)


def test_what_no_version_has_is_forgotten(tmp_path: Path) -> None:
    index, first, _ = make_index(str(tmp_path), rows=300)
    _, second, _ = make_index(str(tmp_path), rows=300, seed=1)
    store = SegmentStore(index)
    one = load_shard(store, index, Layout(first.version, 1), 0)
    two = load_shard(store, index, Layout(second.version, 1), 0)
    segments = [weakref.ref(segment) for segment in one.segments]
    del one
    gc.collect()
    assert [segment() for segment in segments] == [None] * len(segments)
    assert two.rows.find(1_000_000) == 0


def test_one_more_shard_has_what_the_others_lost(tmp_path: Path) -> None:
    index, manifest, vectors = make_index(str(tmp_path), rows=900, files=60)
    narrow, wide = shards_of(index, manifest, 3), shards_of(index, manifest, 4)
    files = [{file.path for file in shard.shard.files} for shard in (*narrow, *wide)]
    assert all(after < before for before, after in zip(files[:3], files[3:6], strict=True))
    assert files[6] == set().union(*files[:3]) - set().union(*files[3:6])
    merged = [
        merge([shard.searcher.search(vectors[:4], 90) for shard in shards], 90)[:2]
        for shards in (narrow, wide)
    ]
    for one, other in zip(*merged, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_version_that_reads_columns_as_another_type_has_its_own(tmp_path: Path) -> None:
    index, manifest, _ = make_index(str(tmp_path), rows=300)
    store = SegmentStore(index)
    (shard,) = plan_shards(manifest, 1)
    held = LoadedShard(store, index, manifest, shard)
    text = held.rows.schema.set(1, pa.field("label", pa.string()))
    segments = pack(shard.blocks, 0)
    assert store.missing(manifest, held.rows.schema, segments) == []
    assert store.missing(manifest, text, segments) == list(segments)
