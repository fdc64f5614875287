"""What a neighbours run cannot answer is refused before anything is started."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.errors import ConfigError, DqError, InputError, NotFoundError
from dq_cluster.index.tombstones import delete_ids
from dq_cluster.knn.config import DuplicatesSettings, NeighboursSettings
from dq_cluster.knn.duplicates import duplicates
from dq_cluster.knn.groups import Leaders
from dq_cluster.knn.run import neighbours
from tests.support import FEATURE_DIM, make_index, make_model, make_vectors, make_version


def features_at(folder: Path, rows: int, dim: int) -> str:
    folder.mkdir()
    values = pa.array(make_vectors(rows, dim).ravel() if rows else np.empty(0, np.float32))
    column = pa.FixedSizeListArray.from_arrays(values, dim)
    table = pa.table({"id": pa.array(np.arange(rows)), "feature": column})
    pq.write_table(table, folder / "part-0.parquet")
    return str(folder)


@pytest.mark.parametrize(
    ("rows", "dim", "kind", "message"),
    [
        (0, 16, InputError, "hold no rows"),
        (5, 7, InputError, "have 7 numbers, those of model .* 16"),
        (None, 0, NotFoundError, "no Parquet or .npy files"),
    ],
    ids=["an empty set", "another model's", "an empty folder"],
)
def test_features_that_cannot_be_queries(
    tmp_path: Path, rows: int | None, dim: int, kind: type[DqError], message: str
) -> None:
    index, _, _ = make_index(str(tmp_path / "index"), rows=300, files=1)
    folder = tmp_path / "features"
    if rows is None:
        folder.mkdir()
    else:
        features_at(folder, rows, dim)
    output = tmp_path / "out"
    asked = NeighboursSettings(index=index.storage.uri, output=str(output), features=str(folder))
    with pytest.raises(kind, match=message):
        neighbours(asked)
    assert not list(output.rglob("*")), "a refused run leaves nothing behind"


def test_features_of_another_backbone(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    make_version(uri, make_model(uri, preprocessing={"kind": "onnx", "path": "a", "sha256": "1"}))
    folder = Path(features_at(tmp_path / "features", 5, FEATURE_DIM)) / "part-0.parquet"
    table = pq.read_table(folder)
    made = {"kind": "onnx", "path": "b", "sha256": "2"}
    pq.write_table(table.replace_schema_metadata({"dq.preprocessing": json.dumps(made)}), folder)
    asked = {"index": uri, "output": str(tmp_path / "out"), "features": str(folder.parent)}
    with pytest.raises(InputError, match=r"another backbone .* \(they differ in sha256\)"):
        neighbours(NeighboursSettings(**asked))


def test_a_pile_that_is_empty_or_asks_for_other_features(tmp_path: Path) -> None:
    index, _, _ = make_index(str(tmp_path / "index"), rows=300, files=1)
    output = str(tmp_path / "out")
    asked = {"index": index.storage.uri, "output": output, "within": -1.0}
    with pytest.raises(ConfigError, match="duplicates are of the version itself"):
        duplicates(DuplicatesSettings(**asked, features=output))
    delete_ids(index, range(300))
    with pytest.raises(NotFoundError, match="no images to be neighbours"):
        neighbours(NeighboursSettings(index=index.storage.uri, output=output))


def test_a_threshold_that_keeps_everything_gives_bounded_groups() -> None:
    rows, k = 1000, 20  # every image is near all others, but a query names k
    leaders = Leaders(rows)
    for start in range(0, rows, 100):
        here = np.arange(start, start + 100)
        to = (here[:, None] + np.arange(1, k + 1)) % rows
        near = np.zeros(to.size, np.float32)
        leaders.add(here, np.arange(0, to.size + 1, k), near, to.ravel())
    sizes = np.unique(leaders.of, return_counts=True)[1]
    assert sizes.sum() == rows
    assert sizes.max() <= 2 * k + 1
