"""What the cluster remembers for one deployed application, and for no other."""

import pytest

from dq_cluster.serve.memory import ClusterMemory

pytestmark = pytest.mark.ray


def test_the_cluster_remembers(ray_cluster: None) -> None:
    memory = ClusterMemory("one")
    assert memory.read() is None
    for version in (1, 20, 3):
        memory.write(version)
        assert ClusterMemory("one").read() == version
    assert ClusterMemory("another").read() is None
