"""Real Helm, 4 and 3, and Prometheus' promtool, found in the tools folder or on PATH."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).parents[2]
CHART = REPO / "deploy/helm/dq-cluster"
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
CI = {path.name.removesuffix("-values.yaml"): str(path) for path in CI_VALUES}
INDEX = ("--set", "index=s3://images/index")
APIS = ("ray.io/v1", "monitoring.coreos.com/v1", "gateway.networking.k8s.io/v1")


def tool(name: str) -> str:
    """The path of a binary; without it the test is skipped, or fails where it is required."""
    folder = os.environ.get("DQ_HELM_DIR", str(REPO / ".tools"))
    found = shutil.which(name, path=f"{folder}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        reason = f"{name} is neither in {folder} (DQ_HELM_DIR) nor on PATH"
        if os.environ.get("DQ_REQUIRE_HELM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@dataclass(frozen=True)
class Helm:
    binary: str

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.binary, *arguments], capture_output=True, text=True, timeout=240, check=False
        )

    def template(
        self, *arguments: str, release: str = "rel", apis: tuple[str, ...] = APIS
    ) -> subprocess.CompletedProcess[str]:
        known = [part for api in apis for part in ("--api-versions", api)]
        return self.run("template", release, str(CHART), "-n", "ns", *known, *arguments)

    def render(self, *arguments: str, release: str = "rel") -> list[dict[str, Any]]:
        """The rendered documents; an error of Helm fails the test."""
        done = self.template(*arguments, release=release)
        assert done.returncode == 0, done.stderr
        return [document for document in yaml.safe_load_all(done.stdout) if document]

    def refuse(self, *arguments: str, **options: Any) -> str:
        """What Helm says when it refuses to render."""
        done = self.template(*arguments, **options)
        assert done.returncode != 0, "rendered, but should have been refused"
        return done.stderr


@pytest.fixture(scope="session", params=["helm", "helm3"])
def helm(request: pytest.FixtureRequest) -> Helm:
    return Helm(tool(request.param))


@pytest.fixture(scope="session")
def helm4() -> Helm:
    """One Helm is enough where the rendered text is what is tested."""
    return Helm(tool("helm"))


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


def only(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = of_kind(documents, kind)
    return found


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every pod template of a release by a readable name: Ray nodes, submitters, the test."""
    found: dict[str, dict[str, Any]] = {}
    for document in documents:
        name, spec = f"{document['kind']}/{document['metadata']['name']}", document.get("spec", {})
        if document["kind"] == "Pod":
            found[name] = document
        cluster = spec.get("rayClusterConfig") or spec.get("rayClusterSpec")
        if cluster:
            found[f"{name}/head"] = cluster["headGroupSpec"]["template"]
            for group in cluster.get("workerGroupSpecs", []):
                found[f"{name}/{group['groupName']}"] = group["template"]
        if "submitterPodTemplate" in spec:
            found[f"{name}/submitter"] = spec["submitterPodTemplate"]
    return found


def environment(template: dict[str, Any]) -> dict[str, Any]:
    """Variables of a pod template's first container: the value, or where it comes from."""
    container = template["spec"]["containers"][0]
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}
