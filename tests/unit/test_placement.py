"""Shards are consecutive, cover every file once, and are about equal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.errors import InputError
from dq_cluster.index.manifest import FileEntry
from dq_cluster.search.placement import plan_shards


def entries(rows: list[int]) -> list[FileEntry]:
    return [FileEntry(path=f"{n}", rows=r, size=1, sha256="") for n, r in enumerate(rows)]


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 12))
def test_every_file_is_in_one_shard_in_order(rows: list[int], count: int) -> None:
    files = entries(rows)
    shards = plan_shards(files, count)
    assert len(shards) == count
    assert [file for shard in shards for file in shard.files] == files
    base = 0
    for shard in shards:
        assert shard.base == base
        base += shard.rows
    if len(files) >= count:
        assert all(shard.files for shard in shards)


@given(st.integers(1, 8), st.integers(1, 20), st.integers(1, 50))
def test_equal_files_make_shards_that_differ_by_one_file(
    count: int, per_shard: int, rows: int
) -> None:
    sizes = [len(s.files) for s in plan_shards(entries([rows] * count * per_shard), count)]
    assert max(sizes) - min(sizes) <= 1


def test_no_shard_is_an_error() -> None:
    with pytest.raises(InputError, match="at least 1"):
        plan_shards([], 0)
