"""`dq-cluster evaluate --compare`: a table on standard output, a report where asked for."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.cli.main import run
from tests.support import make_pictures


def write_features(
    path: Path, rows: int, *, labelled: bool = True, seed: int = 0, uris: list[str] | None = None
) -> str:
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=rows)
    centres = np.random.default_rng(9).normal(size=(4, 16))
    features = (centres[labels] + rng.normal(size=(rows, 16))).astype(np.float32)
    columns = {
        "id": pa.array(range(rows), pa.int64()),
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), 16),
    }
    if labelled:
        columns["label"] = pa.array(labels)
    if uris is not None:
        columns["uri"] = pa.array(uris)
    pq.write_table(pa.table(columns), path)
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
    markdown, html = ((report / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert re.search(r"^\| PQ \| 0\.\d{3} ± 0\.\d{3} \|", markdown, re.MULTILINE)
    assert html.count("<svg") == 3
    figures = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert len(figures) == 3
    assert all("<svg" in (report / name).read_text() for name in figures)


def test_wins_and_failures_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [str(path) for path in make_pictures(tmp_path / "images", 20)]
    rows = [pictures[row % 20] for row in range(300)]
    database = write_features(tmp_path / "d.parquet", 300, uris=rows)
    queries = write_features(tmp_path / "q.parquet", 40, seed=1, uris=["gone.png", *rows[:39]])
    nowhere = write_features(tmp_path / "n.parquet", 40, seed=1)

    def compared(queries: str, name: str) -> Path:
        arguments = [
            "evaluate", "--compare", f"database={database}", f"queries={queries}", "bits=[16]",
            "seeds=[0]", "methods=[LSH,PQ,DeepQuan]", "k=50", f"report={tmp_path / name}",
            "model.dim=16", "model.hidden=[16]", "model.components=16", "model.epochs=1",
        ]  # fmt: skip
        assert run(arguments) == 0
        capsys.readouterr()
        return tmp_path / name

    report = compared(queries, "with")
    markdown, html = ((report / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert "Where DeepQuan gains most on PQ, 16 bits" in html
    assert "Where DeepQuan loses most to PQ, 16 bits" in html
    assert html.count('class="query"') == markdown.count("![query]")
    assert 'class="yes"' in html
    assert 'class="no"' in html
    assert "no pictures" not in html
    shown = set(re.findall(r"\((pictures/.*?\.png)\)", markdown))
    assert shown == {f"pictures/{path.name}" for path in (report / "pictures").iterdir()}

    html = (compared(nowhere, "without") / "report.html").read_text()
    assert "There are no pictures of wins and failures" in html
    assert "Where DeepQuan" not in html


def test_ablations_are_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = write_features(tmp_path / "d.parquet", 300)
    arguments = [
        "evaluate", "--ablations", "--json", f"database={database}", f"queries={database}",
        "seeds=[0]", "k=50", "model.dim=16", "model.hidden=[16]", "model.components=16",
        "model.epochs=1", f"report={tmp_path / 'report'}",
    ]  # fmt: skip
    assert run(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["methods"]
    assert [(row["method"], row["bits"]) for row in rows[:3]] == [
        ("DeepQuan", 16),
        ("DeepQuan", 64),
        ("no triplet", 16),
    ]
    assert len(rows) == 12
    assert all(row["variance"] > 0 and row["perplexity"] >= 1 for row in rows)
    assert "perplexity, 64 bits" in (tmp_path / "report" / "report.md").read_text()


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

    assert measured("methods=[LSH]", "bits=[16]") == ["LSH"]
    assert measured("methods=[exact search,LSH]", "bits=[16,32]") == ["exact search", "LSH"]
    assert measured("methods=[LSH]", "bits=[16]", "seeds=[1]") == ["LSH"]
    write_features(tmp_path / "d.parquet", 300, seed=5)
    assert measured("methods=[LSH]", "bits=[16]") == ["LSH"]


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
