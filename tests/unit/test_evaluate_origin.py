"""Rows that were measured by other code are not taken for those of this code."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dq_cluster.evaluate import comparison, origin
from dq_cluster.evaluate.origin import code_digest, modules_behind


def test_what_decides_the_figures_is_what_was_imported() -> None:
    found = modules_behind(*comparison._MEASURING)
    assert {
        "dq_cluster",
        "dq_cluster.evaluate.compare",
        "dq_cluster.evaluate.inputs",
        "dq_cluster.evaluate.baselines.hashing",
        "dq_cluster.images.features",
        "dq_cluster.model.fit",
        "dq_cluster.search.faiss_index",
    } <= found.keys()
    # Python itself came to import nothing that was not found.
    import subprocess

    code = "; ".join(f"import {name}" for name in comparison._MEASURING)
    listed = subprocess.check_output(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"], text=True
    ).split()
    assert {name for name in listed if name.split(".")[0] == "dq_cluster"} <= found.keys()
    assert not any(name.startswith(("dq_cluster.serve", "dq_cluster.cli")) for name in found)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small package in the place of dq_cluster."""
    (tmp_path / "deep").mkdir()
    for name, text in {
        "__init__": "",
        "root": "from dq_cluster.deep import inner\nimport numpy\n",
        "deep/__init__": "import dq_cluster.aside\n",
        "deep/inner": "def f():\n    from dq_cluster.late import value\n",
        "late": "value = 1\n",
        "aside": "import dq_cluster.root\n",
        "unused": "",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(origin, "_PACKAGE", tmp_path)
    code_digest.cache_clear()
    yield tmp_path
    code_digest.cache_clear()


def test_every_way_of_importing_is_followed(package: Path) -> None:
    assert set(modules_behind("dq_cluster.root")) == {
        "dq_cluster",
        "dq_cluster.root",
        "dq_cluster.deep",
        "dq_cluster.deep.inner",
        "dq_cluster.late",
        "dq_cluster.aside",
    }


@pytest.mark.parametrize(
    ("changed", "differs"),
    [("root", True), ("late", True), ("deep/__init__", True), ("unused", False)],
)
def test_a_change_of_what_is_imported_changes_the_digest(
    package: Path, changed: str, differs: bool
) -> None:
    before = code_digest("dq_cluster.root")
    code_digest.cache_clear()
    with open(package / f"{changed}.py", "a") as file:
        file.write("# another comment\n")
    assert (code_digest("dq_cluster.root") != before) == differs


def test_another_version_of_a_package_changes_the_digest(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = code_digest("dq_cluster.root")
    code_digest.cache_clear()
    monkeypatch.setattr(origin, "version", lambda name: "0.0.1")
    assert code_digest("dq_cluster.root") != before
