"""The first look at a version: groups, their sizes, samples, and a report with pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dq_cluster.errors import InputError
from dq_cluster.index.tombstones import delete_ids
from dq_cluster.knn.cells import groups
from dq_cluster.knn.config import GroupsSettings
from dq_cluster.search.shard import load_whole
from tests.support import make_index, make_pictures


@pytest.mark.parametrize(
    ("made", "asked", "count"),
    [({"nlist": 12}, {}, 12), ({}, {"groups": 5}, 5), ({"nlist": 12}, {"groups": 7}, 7)],
)
def test_every_image_is_in_the_group_of_its_nearest_centroid(
    tmp_path: Path, made: dict[str, Any], asked: dict[str, Any], count: int
) -> None:
    pictures = [str(path) for path in make_pictures(tmp_path / "pictures", 20)]
    uris = [pictures[row % 20] for row in range(600)]
    index, _, _ = make_index(str(tmp_path / "index"), rows=600, files=3, uris=uris, **made)
    delete_ids(index, range(50))
    output = tmp_path / "out"
    settings = {"index": index.storage.uri, "output": str(output), "samples": 4, **asked}
    summary = groups(GroupsSettings(**settings))
    table = pq.read_table(output / "groups.parquet").to_pylist()
    assert summary["images"] == sum(row["size"] for row in table) == 550
    assert len(table) == summary["groups"] <= count
    assert [row["size"] for row in table] == sorted((row["size"] for row in table), reverse=True)
    samples = [id for row in table for id in row["samples"]]
    assert len(samples) == len(set(samples)) == sum(min(4, row["size"]) for row in table)
    assert min(samples) >= 50, "a deleted image is a sample"
    if made and not asked:
        shard = load_whole(index, index.manifest())
        cells = np.concatenate([segment.codes.cells() for segment in shard.segments])
        alive = cells[shard.living(np.arange(600))]
        assert {row["group"]: row["size"] for row in table} == dict(
            zip(*map(np.ndarray.tolist, np.unique(alive, return_counts=True)), strict=True)
        )
    page = (output / "report.html").read_text()
    assert page.count("<img") == len(samples)
    assert groups(GroupsSettings(**settings)) == summary
    assert pq.read_table(output / "groups.parquet").to_pylist() == table


def test_more_groups_than_images(tmp_path: Path) -> None:
    index, _, _ = make_index(str(tmp_path / "index"), rows=300, files=1)
    asked = GroupsSettings(index=index.storage.uri, output=str(tmp_path / "o"), groups=301)
    with pytest.raises(InputError, match="300 images, too few for 301 groups"):
        groups(asked)
