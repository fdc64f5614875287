"""Measuring a version: which queries count, and against what."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.errors import InputError
from dq_cluster.evaluate.config import EvaluateSettings
from dq_cluster.evaluate.version import evaluate_version
from tests.support import FEATURE_DIM, make_model, make_version

ROWS = 600


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, np.ndarray]:
    uri = str(tmp_path_factory.mktemp("version") / "index")
    _, features = make_version(uri, make_model(uri), rows=ROWS, files=3)
    return uri, features


def write(path: Path, features: np.ndarray, labels: list[str | None]) -> str:
    values = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), FEATURE_DIM)
    table = pa.table(
        {"id": pa.array(range(len(features)), pa.int64()), "feature": values, "label": labels}
    )
    pq.write_table(table, path)
    return str(path)


def test_queries_without_a_label_are_left_out_of_map_and_counted(
    tmp_path: Path, index: tuple[str, np.ndarray]
) -> None:
    uri, features = index
    labels = [None if row % 5 == 0 else "even" if row % 2 == 0 else "odd" for row in range(ROWS)]
    database = write(tmp_path / "d.parquet", features, labels)

    def measured(start: int, stop: int, labels: list[str | None]) -> dict[str, float]:
        queries = write(tmp_path / "q.parquet", features[start:stop], labels)
        asked = {"index": uri, "database": database, "queries": queries, "k": 50}
        return evaluate_version(EvaluateSettings(**asked))

    partly = measured(0, 20, [None] * 10 + ["odd"] * 10)
    wholly = measured(10, 20, ["odd"] * 10)
    assert partly["queries without label"] == 10
    assert "queries without label" not in wholly
    assert partly["mAP@50"] == wholly["mAP@50"]
    nothing = measured(0, 20, [None] * 20)
    assert nothing["queries without label"] == 20
    assert "mAP@50" not in nothing
    assert nothing["recall@10"] == partly["recall@10"] > 0


def test_features_of_other_images_are_refused(
    tmp_path: Path, index: tuple[str, np.ndarray]
) -> None:
    uri, features = index
    few = write(tmp_path / "few.parquet", features[:100], ["a"] * 100)
    with pytest.raises(InputError, match="500 of the 600 ids of version 1 are not in"):
        evaluate_version(EvaluateSettings(index=uri, database=few, queries=few, k=50))
