"""What an installation prints. `helm template` leaves NOTES.txt out: here it is a value."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.helm.conftest import APIS, CHART, Helm


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with one more template, which holds the notes."""
    copy = tmp_path_factory.mktemp("notes") / "dq-cluster"
    shutil.copytree(CHART, copy)
    shutil.copy(copy / "templates/NOTES.txt", copy / "notes")
    (copy / "templates/notes.yaml").write_text('notes: {{ tpl (.Files.Get "notes") . | quote }}\n')
    return copy


def notes(helm: Helm, chart: Path, values: str) -> str:
    known = [part for api in APIS for part in ("--api-versions", api)]
    done = helm.run(
        *("template", "rel", str(chart), "-n", "ns", "-s", "templates/notes.yaml"),
        *(*known, "-f", str(CHART / f"ci/{values}-values.yaml")),
    )
    assert done.returncode == 0, done.stderr
    return str(yaml.safe_load(done.stdout)["notes"])


def test_an_open_service_is_said_to_be_open(helm: Helm, chart: Path) -> None:
    text = notes(helm, chart, "default")
    assert "Query API of s3://images/index" in text
    assert "port-forward service/rel-dq-cluster-serve-svc 8000:8000" in text
    assert "anyone who reaches port 8000 may query" in text
    assert "ray.auth" not in text
    assert "whoever reaches port 8265" in notes(helm, chart, "switches")


def test_a_guarded_service_is_not_warned_about(helm: Helm, chart: Path) -> None:
    text = notes(helm, chart, "production")
    assert "https://images.example.com/" in text
    assert "WARNING" not in text


def test_jobs_are_said_where_to_be_found(helm: Helm, chart: Path) -> None:
    text = notes(helm, chart, "jobs")
    assert "Query API" not in text
    assert "app.kubernetes.io/component=encode" in text
    assert "component=" not in notes(helm, chart, "laptop")
