"""Ids and carried columns of the winners, by ordinal."""

from pathlib import Path

import numpy as np
import pytest

from dq_cluster.errors import InputError
from dq_cluster.index.ids import to_id
from dq_cluster.search.filters import parse_filter
from dq_cluster.search.shard import load_whole
from tests.support import make_index, shards_of


@pytest.mark.parametrize("string_ids", [False, True])
def test_rows_by_ordinal_over_files(tmp_path: Path, string_ids: bool) -> None:
    index, manifest, _ = make_index(str(tmp_path), rows=300, files=5, string_ids=string_ids)
    shards = shards_of(index, manifest, 2)
    shard = shards[1].shard
    rows = shards[1].rows
    own = shard.places.ordinals(np.arange(shard.rows))
    wanted = own[[shard.rows - 1, 0, shard.rows // 2, shard.rows - 1, 1]]
    found = rows.take(wanted, ["id", "uri", "label"])
    assert [int(i) for i in found.column("id").to_pylist()] == wanted.tolist()
    assert found.column("uri").to_pylist() == [f"images/{n}.png" for n in wanted]
    assert found.column("label").to_pylist() == [n % 10 for n in wanted]
    assert rows.take(np.array([], np.int64), ["id"]).num_rows == 0
    for row in range(300):
        id = to_id(row, manifest.id_type)
        assert [each.rows.find(id) for each in shards].count(row) == 1
    keep = rows.matching(parse_filter({"label": 4}, rows.schema))
    np.testing.assert_array_equal(shard.places.ordinals(keep.every()), own[own % 10 == 4])
    assert keep.count == (own % 10 == 4).sum()


def test_a_shard_without_files_has_no_rows(tmp_path: Path) -> None:
    index, manifest, _ = make_index(str(tmp_path), rows=300, files=1)
    empty = next(each for each in shards_of(index, manifest, 2) if not each.shard.rows)
    rows = empty.rows
    assert rows.find(0) is None
    assert rows.take(np.array([], np.int64), ["id", "uri"]).num_rows == 0
    assert rows.matching(parse_filter({"label": 1}, rows.schema)).rows == 0


def test_unknown_columns_and_impossible_ids(tmp_path: Path) -> None:
    index, manifest, _ = make_index(str(tmp_path), rows=300)
    with pytest.raises(InputError, match="carries no column colour"):
        load_whole(index, manifest).rows.take(np.array([1]), ["colour"])
    for bad in ("cat", "1_0", None, 1.5, 2**63):
        with pytest.raises(InputError):
            to_id(bad, "int64")
    assert to_id("12", "int64") == 12
    assert to_id(f"{2**64 - 1}", "uint64") == 2**64 - 1
