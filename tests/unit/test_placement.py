"""Shards have every block once and are about equal; growth moves little."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster import __version__
from dq_cluster.errors import InputError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.manifest import FileEntry, Manifest, Producer
from dq_cluster.search.placement import owners, place, plan_shards
from dq_cluster.search.segments import cut, pack


def manifest_of(runs: list[list[int]], nlist: int = 0) -> Manifest:
    """A version of runs, each with files of so many rows."""
    files = [
        FileEntry(path=f"data/{run}/{number}", rows=rows, size=1, sha256="")
        for run, sizes in enumerate(runs)
        for number, rows in enumerate(sizes)
    ]
    return Manifest(
        version=1,
        model="m",
        geometry=CodeGeometry(dim=8, m=2, nlist=nlist),
        id_type="int64",
        files=tuple(files),
        rows=sum(file.rows for file in files),
        producer=Producer(dq_cluster=__version__, run="r"),
    )


RUNS = st.lists(st.lists(st.integers(0, 1000), min_size=1, max_size=90), max_size=4)
MANY = st.integers(0, 2**32).map(
    lambda seed: np.random.default_rng(seed).integers(500, 1500, 400).tolist()
)


@given(RUNS, st.integers(1, 12))
def test_every_row_is_in_one_shard(runs: list[list[int]], count: int) -> None:
    manifest = manifest_of(runs)
    shards = plan_shards(manifest, count)
    assert len(shards) == count
    ordinals = [shard.places.ordinals(np.arange(shard.rows)) for shard in shards]
    homes = np.repeat(np.arange(count), [shard.rows for shard in shards])
    order = np.argsort(np.concatenate(ordinals))
    np.testing.assert_array_equal(np.concatenate(ordinals)[order], np.arange(manifest.rows))
    if manifest.rows:
        np.testing.assert_array_equal(owners(shards, np.arange(manifest.rows)), homes[order])
    for shard, own in zip(shards, ordinals, strict=True):
        assert (np.diff(own) > 0).all()
        np.testing.assert_array_equal(shard.places.rows_of(own), np.arange(shard.rows))
        np.testing.assert_array_equal(
            shard.places.own(np.arange(manifest.rows)), np.arange(shard.rows)
        )


@given(RUNS, st.lists(st.integers(0, 1000), min_size=1, max_size=90))
def test_an_append_changes_no_block_and_no_segment(runs: list[list[int]], more: list[int]) -> None:
    before, after = cut(manifest_of(runs)), cut(manifest_of([*runs, more]))
    assert after[: len(before)] == before
    packed = pack(before, 0)
    assert pack(after, 0)[: len(packed)] == packed
    files = [file for segment in packed for file in segment.files]
    assert files == [file for block in before for file in block.files]


@given(MANY, st.integers(1, 60), st.integers(1, 9))
def test_an_append_moves_nothing(sizes: list[int], more: int, count: int) -> None:
    blocks = cut(manifest_of([[rows] for rows in sizes]))
    assert place(blocks, count)[:-more] == place(blocks[:-more], count)


@given(MANY, st.integers(1, 8))
def test_shards_are_equal_within_5_percent(sizes: list[int], count: int) -> None:
    blocks = cut(manifest_of([[rows] for rows in sizes]))
    loads = np.bincount(place(blocks, count), weights=sizes, minlength=count)
    assert np.abs(loads * count / sum(sizes) - 1).max() <= 0.05


@given(MANY, st.integers(1, 8))
def test_one_more_shard_takes_its_share_and_moves_nothing_else(
    sizes: list[int], count: int
) -> None:
    blocks = cut(manifest_of([[rows] for rows in sizes]))
    before, after = (np.array(place(blocks, n)) for n in (count, count + 1))
    moved = before != after
    assert (after[moved] == count).all()
    assert np.array(sizes)[moved].sum() <= 1.2 / (count + 1) * sum(sizes)


@given(st.integers(1, 8), st.integers(1, 50))
def test_as_many_equal_blocks_as_shards_are_one_each(count: int, rows: int) -> None:
    blocks = cut(manifest_of([[rows]] * count))
    assert sorted(place(blocks, count)) == list(range(count))


def test_small_files_of_a_run_make_one_block_and_blocks_one_segment() -> None:
    blocks = cut(manifest_of([[10] * 6400, [10] * 7]))
    assert [len(block.files) for block in blocks] == [100] * 64 + [1] * 7
    assert [segment.rows for segment in pack(blocks, 0)] == [64_000, 70]
    large = cut(manifest_of([[1 << 16] * 6400]))
    assert {block.rows for block in large} == {1 << 20}
    assert {segment.rows for segment in pack(large, 0)} == {1 << 20}
    assert [segment.rows for segment in pack(large, 1 << 20)] == [256 << 20, 144 << 20]


def test_no_shard_is_an_error() -> None:
    with pytest.raises(InputError, match="at least 1"):
        plan_shards(manifest_of([]), 0)
