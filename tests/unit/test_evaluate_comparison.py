"""`dq-cluster evaluate --compare`: a table on standard output, a report where asked for."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.cli.main import run


def write_features(path: Path, rows: int, *, labelled: bool = True, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=rows)
    centres = np.random.default_rng(9).normal(size=(4, 16))
    features = (centres[labels] + rng.normal(size=(rows, 16))).astype(np.float32)
    columns = {
        "id": pa.array(range(rows), pa.int64()),
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), 16),
    }
    pq.write_table(pa.table(columns | ({"label": labels} if labelled else {})), path)
    return str(path)


def test_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = write_features(tmp_path / "d.parquet", 800)
    queries = write_features(tmp_path / "q.parquet", 40, seed=1)
    report = tmp_path / "report"
    arguments = [
        "evaluate", "--compare", "--json", f"database={database}", f"queries={queries}",
        "bits=[16]", "seeds=[0,1]", "methods=[exact search,PQ,ITQ]", "k=50", f"report={report}",
    ]  # fmt: skip
    assert run(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["methods"]
    assert [row["method"] for row in rows] == ["exact search", "PQ", "ITQ"]
    assert rows[0]["recall@10"] == 1.0
    assert all(0.3 < row["mAP@50"] <= 1 for row in rows)
    assert "| PQ |" in (report / "report.md").read_text()
    assert "<svg" in (report / "report.html").read_text()


def test_a_repeated_comparison_measures_only_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = write_features(tmp_path / "d.parquet", 300)

    def measured(*overrides: str) -> list[str]:
        arguments = [
            "evaluate", "--compare", f"database={database}", f"queries={database}", "k=50",
            "seeds=[0]", f"report={tmp_path / 'report'}", *overrides,
        ]  # fmt: skip
        assert run(arguments) == 0
        lines = capsys.readouterr().err.splitlines()
        return [line.split("'")[3] for line in lines if "'method'" in line]

    assert measured("methods=[PQ]", "bits=[16]") == ["PQ"]
    assert measured("methods=[PQ,LSH]", "bits=[16]") == ["LSH"]
    assert measured("methods=[PQ,LSH]", "bits=[16,32]") == ["PQ", "LSH"]
    assert measured("methods=[PQ]", "bits=[16]", "seeds=[1]") == ["PQ"]
    write_features(tmp_path / "d.parquet", 300, seed=5)
    assert measured("methods=[PQ]", "bits=[16]") == ["PQ"]


@pytest.mark.parametrize(
    ("labelled", "override", "message"),
    [
        (False, "k=50", "column 'label'"),
        (True, "methods=[HNSW]", "unknown methods HNSW"),
        (True, "k=5000", "needs 5000 features"),
        (True, "bogus=1", "unknown key 'bogus'"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    labelled: bool,
    override: str,
    message: str,
) -> None:
    database = write_features(tmp_path / "d.parquet", 300, labelled=labelled)
    arguments = ["evaluate", "--compare", f"database={database}", f"queries={database}", override]
    assert run(arguments) == 2
    assert message in capsys.readouterr().err
