"""The wheel, installed without this clone and without what only other extras need."""

import importlib.metadata
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.http import make_api
from dq_cluster.serve.local import LocalService
from tests.support import make_model, make_version

REPO = Path(__file__).parents[2]
HEAVY = {"ray", "torch", "faiss", "pyarrow", "matplotlib", "fastapi", "grpc", "PIL", "scipy"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPO)]
    subprocess.run([sys.executable, *build], check=True, capture_output=True, timeout=240)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that holds the wheel and what it requires without any extra."""
    folder = tmp_path_factory.mktemp("site")
    target = ["--no-deps", "--no-compile", "--target", str(folder)]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *target, str(wheel)],
        check=True,
        capture_output=True,
        timeout=240,
    )
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("METADATA")]
        about = importlib.metadata.PathDistribution(folder / Path(name).parent)
    for distribution in _required(about):
        for file in distribution.files or ():
            top = file.parts[0]
            if top != ".." and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder


def _required(about: importlib.metadata.Distribution) -> list[importlib.metadata.Distribution]:
    """The distributions, here installed, that `about` needs when no extra is asked for."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = [(text, "") for text in about.requires or ()]
    while todo:
        text, extra = todo.pop()
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            extras = requirement.extras or {""}
            todo += [(line, e) for line in found[name].requires or () for e in extras]
    return list(found.values())


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The query API over a small index, in this process."""
    uri = str(tmp_path_factory.mktemp("served") / "index")
    make_version(uri, make_model(uri), rows=300, files=2)
    service = LocalService(ServeSettings(index=uri, shards=2, timeout_ms=10_000))
    api = make_api(service, max_body_bytes=1 << 20, hide=uri)
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=0, log_level="warning"))
    ready = threading.Event()
    started = server.startup

    async def startup(sockets: list | None = None) -> None:
        await started(sockets)
        ready.set()

    server.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(240)
    (port,) = {s.getsockname()[1] for each in server.servers for s in each.sockets}
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


def run(site: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `code` with the packages in `site` and no others, away from the clone."""
    return subprocess.run(
        [sys.executable, "-S", "-c", code, *arguments],
        env={"PYTHONPATH": str(site), "PATH": os.environ["PATH"]},
        cwd=site,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_nothing_heavy_is_required(site: Path) -> None:
    assert not HEAVY & {path.name for path in site.iterdir()}


def test_a_client_asks(site: Path, url: str) -> None:
    code = """
import json, sys
from dq_cluster import Client
with Client(sys.argv[1]) as client:
    answer = client.search(id=3, k=2)
    print(json.dumps([hit.id for hit in answer.hits[0]]), client.info().rows)
"""
    done = run(site, code, url)
    assert done.returncode == 0, done.stderr
    ids, rows = done.stdout.rsplit(maxsplit=1)
    assert len(json.loads(ids)) == 2
    assert rows == "300"


def test_the_command_line_asks(site: Path, url: str) -> None:
    code = "import sys; from dq_cluster.cli import main; main(sys.argv[1:])"
    done = run(site, code, "search", url, "--id", "3", "-k", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["hits"]) == 2


@pytest.mark.parametrize(
    "command", [["index", "list", "some/index"], ["search", "some/index", "--id", "3"]]
)
def test_what_is_not_installed_is_named_with_what_to_install(
    site: Path, command: list[str]
) -> None:
    code = "import sys; from dq_cluster.cli import main; main(sys.argv[1:])"
    done = run(site, code, *command)
    assert done.returncode == 2
    assert "pip install 'dq-cluster[" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["encode", "laptop/serve", "cluster/train"])
def test_shipped_settings_are_shown(site: Path, name: str) -> None:
    code = "import sys; from dq_cluster.cli import main; main(sys.argv[1:])"
    done = run(site, code, "config", "show", name)
    size, _, workload = name.rpartition("/")
    assert done.stdout == (REPO / "configs" / (size or "laptop") / f"{workload}.yaml").read_text()


def test_every_file_is_in_the_wheel(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "dq_cluster", "configs"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    wanted = {
        f"dq_cluster/{name}" if name.startswith("configs/") else name
        for name in listed.stdout.split()
    }
    with zipfile.ZipFile(wheel) as archive:
        assert wanted <= set(archive.namelist())


def test_the_package_exports_what_it_says() -> None:
    import dq_cluster

    for name in dq_cluster.__all__:
        assert getattr(dq_cluster, name).__name__ == name
    assert set(dq_cluster.__all__) <= set(dir(dq_cluster))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = dq_cluster.nonsense
