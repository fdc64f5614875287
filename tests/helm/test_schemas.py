"""Strict validation as the API server does it: unknown fields, types, defaults, CEL rules.

The CRDs of KubeRay and of the Prometheus operator are not part of this repository. No schema of
the Gateway API is at hand, so its two kinds are left out here (test_render.py looks at them).
"""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.helm.conftest import CI_VALUES, REPO, Helm

K8S = REPO.parent / "shared/k8s"
KUBERAY = ("1.7.0", "1.6.2")


@pytest.fixture(scope="session")
def crdcheck() -> ModuleType:
    script = K8S / "crdcheck.py"
    if not script.exists():
        reason = f"{script} is absent: no CRD schemas to validate against"
        if os.environ.get("DQ_REQUIRE_CRDS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    import cel  # noqa: F401  (without it crdcheck leaves the CEL rules out)

    spec = importlib.util.spec_from_file_location("crdcheck", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.load = functools.cache(module.load)  # type: ignore[attr-defined]
    return module


@pytest.fixture(scope="session")
def crds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder for each KubeRay version, beside the Prometheus operator's kinds."""
    folders = {}
    for version in KUBERAY:
        folder = tmp_path_factory.mktemp("crds")
        for name in (f"kuberay-v{version}", "prometheus-operator"):
            assert (K8S / "crds" / name).is_dir()
            (folder / name).symlink_to(K8S / "crds" / name)
        folders[version] = str(folder)
    return folders


@pytest.fixture(scope="session")
def rendered(helm4: Helm, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every combination as a file, and beside it the pods inside its Ray clusters."""
    folder, files = tmp_path_factory.mktemp("rendered"), []
    for values in CI_VALUES:
        documents = [
            document
            for document in helm4.render("-f", str(values))
            if not document["apiVersion"].startswith("gateway.")
        ]
        path = folder / values.name
        path.write_text(yaml.safe_dump_all(documents))
        inside = folder / f"pods-{values.name}"
        with inside.open("w") as output:
            command = [sys.executable, str(K8S / "podtemplates.py"), str(path)]
            subprocess.run(command, stdout=output, check=True)
        assert inside.stat().st_size > 0
        files += [str(path), str(inside)]
    return files


@pytest.mark.parametrize(
    ("kubernetes", "kuberay"),
    [("1.29", "1.7.0"), ("1.33", "1.7.0"), ("1.37", "1.7.0"), ("1.33", "1.6.2")],
)
def test_strictly_valid(
    crdcheck: ModuleType,
    crds: dict[str, str],
    rendered: list[str],
    kubernetes: str,
    kuberay: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = crdcheck.main(kubernetes, crds[kuberay], *rendered)
    output = capsys.readouterr().out
    assert not failed, output
    assert "ok   " in output


def test_the_check_itself_refuses(
    crdcheck: ModuleType, crds: dict[str, str], tmp_path: Path
) -> None:
    """A misspelt field in a custom and in a built-in resource: the rung above is not blind."""
    wrong: dict[str, dict[str, object]] = {
        "RayService": {"apiVersion": "ray.io/v1", "spec": {"serveConfigV3": ""}},
        "ServiceAccount": {"apiVersion": "v1", "automountToken": False},
    }
    for kind, body in wrong.items():
        path = tmp_path / f"{kind}.yaml"
        path.write_text(yaml.safe_dump({"kind": kind, "metadata": {"name": "x"}, **body}))
        assert crdcheck.main("1.33", crds["1.7.0"], str(path)) == 1
