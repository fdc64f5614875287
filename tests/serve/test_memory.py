"""What the cluster remembers for one deployed application, and for no other."""

import pytest
import ray

from dq_cluster.serve.memory import ClusterMemory

pytestmark = pytest.mark.ray


def test_the_cluster_remembers(ray_cluster: None) -> None:
    """Each call may be another process: a keeper that died, and the one that replaces it."""

    @ray.remote(num_cpus=0)
    def read(name: str) -> int | None:
        return ClusterMemory(name).read()

    @ray.remote(num_cpus=0)
    def write(name: str, version: int) -> None:
        ClusterMemory(name).write(version)

    assert ray.get(read.remote("one")) is None
    for version in (1, 20, 3):
        ray.get(write.remote("one", version))
        assert ray.get(read.remote("one")) == version
    assert ray.get(read.remote("another")) is None
