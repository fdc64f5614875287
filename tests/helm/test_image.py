"""What can be said about the image without building it; nothing here builds images."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helm.conftest import REPO

DOCKERFILE = (REPO / "deploy/docker/Dockerfile").read_text()
BASE, *TARGETS = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
SOURCES = {"README.md", "LICENSE", "dq_cluster", "configs", "jobs"}
# A package that is installed beside what constraints.txt pins, and the pin its version equals.
TWINS = {"faiss-gpu": "faiss-cpu", "opentelemetry-exporter-otlp": "opentelemetry-sdk"}


def copied(stage: str) -> list[str]:
    lines = re.findall(r"^COPY (.+) \S+$", stage, re.MULTILINE)
    return [name for line in lines for name in line.split()]


def test_what_an_image_needs_is_copied_and_nothing_copied_is_missing_or_ignored() -> None:
    assert set(copied(BASE)) == {"pyproject.toml", "constraints.txt"}
    assert all(set(copied(stage)) == SOURCES for stage in TARGETS)
    ignore = (REPO / "deploy/docker/Dockerfile.dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    for name in copied(DOCKERFILE):
        assert (REPO / name).exists(), name
        assert f"!{name}" in ignore, name


def test_each_target_ends_as_the_user_that_the_chart_runs() -> None:
    assert [re.match(r"base AS (\w+)", stage)[1] for stage in TARGETS] == ["cuda", "cpu"]  # type: ignore[index]
    for stage in TARGETS:
        assert stage.rstrip().endswith("USER 1000:1000")


@pytest.mark.parametrize("stage", TARGETS, ids=["cuda", "cpu"])
def test_dependencies_are_installed_before_the_sources_are_copied(stage: str) -> None:
    steps = re.findall(r"^(RUN|COPY) ((?:.*\\\n)*.*)", stage, re.MULTILINE)
    order = [
        next(i for i, (kind, text) in enumerate(steps) if kind == wanted and part in text)
        for wanted, part in (
            ("RUN", "--constraint constraints.txt"),
            ("COPY", "dq_cluster"),
            ("RUN", "--no-deps ."),
        )
    ]
    assert order == sorted(order)


@pytest.mark.parametrize("stage", TARGETS, ids=["cuda", "cpu"])
def test_packages_are_pinned_as_in_the_constraints_and_faiss_is_installed_once(stage: str) -> None:
    assert len(re.findall(r"'\.\[(cpu|gpu)\]'", stage)) == 1
    pins = dict(
        line.split("==") for line in (REPO / "constraints.txt").read_text().split() if "==" in line
    )
    named = re.findall(r"\s((?:faiss|opentelemetry)[-\w]*)(?:==(\S+))?", stage)
    assert named
    for name, version in named:
        assert version == pins[TWINS[name]], name


def metadata(folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "metadata"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_package_without_code_builds_and_has_the_same_dependencies(tmp_path: Path) -> None:
    for name in copied(BASE):
        shutil.copy(REPO / name, tmp_path)
    (script,) = re.findall(r"^RUN (mkdir (?:.*\\\n)*.*)", BASE, re.MULTILINE)
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True)
    empty, whole = metadata(tmp_path), metadata(REPO)
    for name in ("dependencies", "optional-dependencies"):
        assert empty[name] == whole[name]
    assert empty["version"] != whole["version"]  # so that pip replaces it
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
