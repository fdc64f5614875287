"""Ids and carried columns of the winners, by ordinal."""

from pathlib import Path

import numpy as np
import pytest

from dq_cluster.errors import InputError
from dq_cluster.index.ids import to_id
from dq_cluster.search.filters import parse_filter
from dq_cluster.search.placement import plan_shards
from dq_cluster.search.rows import Rows
from tests.support import make_index


@pytest.mark.parametrize("string_ids", [False, True])
def test_rows_by_ordinal_over_files(tmp_path: Path, string_ids: bool) -> None:
    index, manifest, _ = make_index(str(tmp_path), rows=300, files=5, string_ids=string_ids)
    shard = plan_shards(manifest.files, 2)[1]
    rows = Rows.load(index, manifest, shard)
    wanted = np.array([299, shard.base, 250, 299, shard.base + 1])
    found = rows.take(wanted, ["id", "uri", "label"])
    assert [int(i) for i in found.column("id").to_pylist()] == wanted.tolist()
    assert found.column("uri").to_pylist() == [f"images/{n}.png" for n in wanted]
    assert found.column("label").to_pylist() == [n % 10 for n in wanted]
    assert rows.take(np.array([], np.int64), ["id"]).num_rows == 0
    assert rows.find(to_id(250, manifest.id_type)) == 250
    assert rows.find(to_id(0, manifest.id_type)) is None
    keep = rows.matching(parse_filter({"label": 4}, rows.schema))
    np.testing.assert_array_equal(
        np.flatnonzero(keep) + shard.base, np.arange(shard.base + 4, 300, 10)
    )


def test_a_shard_without_files_has_no_rows(tmp_path: Path) -> None:
    index, manifest, _ = make_index(str(tmp_path), rows=300, files=1)
    rows = Rows.load(index, manifest, plan_shards(manifest.files, 2)[1])
    assert rows.find(0) is None
    assert rows.take(np.array([], np.int64), ["id", "uri"]).num_rows == 0
    assert rows.matching(parse_filter({"label": 1}, rows.schema)).shape == (0,)


def test_unknown_columns_and_impossible_ids(tmp_path: Path) -> None:
    index, manifest, _ = make_index(str(tmp_path), rows=300)
    with pytest.raises(InputError, match="carries no column colour"):
        Rows.load(index, manifest).take(np.array([1]), ["colour"])
    for bad in ("cat", "1_0", None, 1.5, 2**63):
        with pytest.raises(InputError):
            to_id(bad, "int64")
    assert to_id("12", "int64") == 12
    assert to_id(f"{2**64 - 1}", "uint64") == 2**64 - 1
