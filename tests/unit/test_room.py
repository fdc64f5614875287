"""Whether actors find a place on the nodes of a cluster, and how long to wait for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.cluster.room import Need, Node, Patience, Wait, decide, patience_of, shortage
from dq_cluster.encoding.config import PoolSettings
from dq_cluster.encoding.pool import needs as encode_needs
from dq_cluster.errors import ConfigError, InputError
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.startup import needs as serve_needs

CPU4, CPU5 = {"CPU": 4.0}, {"CPU": 5.0}


def node(total: dict[str, float], free: dict[str, float] | None = None) -> Node:
    return Node(total, total if free is None else free)


@pytest.mark.parametrize(
    ("needs", "nodes", "lacking"),
    [
        ([Need("actors", 2, CPU4)], [CPU4, CPU4], ""),
        ([Need("actors", 2, CPU4)], [{"CPU": 8}], ""),
        # Ten CPUs on two nodes are no place for an actor that wants eight.
        ([Need("actors", 1, {"CPU": 8})], [CPU5, CPU5], "1 of 1 actors, each 8 CPUs"),
        ([Need("actors", 4, {"CPU": 2})], [CPU5, CPU4], ""),
        ([Need("actors", 5, {"CPU": 2})], [CPU5, CPU5], "1 of 5 actors"),
        ([Need("actors", 1, {"CPU": 1, "GPU": 1})], [CPU5], "each 1 CPU and 1 GPU"),
        ([Need("actors", 1, {"CPU": 1, "GPU": 0})], [CPU5], ""),
        # A GPU on one node and the CPUs on another do not help.
        ([Need("actors", 1, {"CPU": 4, "GPU": 1})], [CPU5, {"CPU": 1, "GPU": 1}], "1 of 1"),
        # Parts of a GPU are of one GPU.
        ([Need("actors", 3, {"GPU": 0.6})], [{"GPU": 2}], "1 of 3 actors, each 0.6 GPUs"),
        ([Need("actors", 4, {"GPU": 0.5})], [{"GPU": 2}], ""),
        ([Need("actors", 1, {"GPU": 0.5})], [{"GPU": 0.5}], ""),
        # Those that want a GPU come first, whatever their order.
        (
            [Need("routers", 1, {"CPU": 2}), Need("shards", 1, {"CPU": 2, "GPU": 1})],
            [{"CPU": 2, "GPU": 1}, {"CPU": 2}],
            "",
        ),
        ([Need("actors", 1, {"CPU": 0.1})] * 10, [{"CPU": 1}], ""),
        ([Need("actors", 1, {"memory": 8e9})], [{"memory": 4e9}], "each 8 GB of memory"),
        ([Need("actors", 1, CPU4)], [], "1 of 1"),
        ([Need("actors", 7, {"CPU": 0})], [CPU4], ""),
    ],
)
def test_actors_are_placed_node_by_node(
    needs: list[Need], nodes: list[dict[str, float]], lacking: str
) -> None:
    found = shortage(needs, nodes)
    assert bool(found) == bool(lacking), found
    assert lacking in found


@given(
    st.lists(st.integers(0, 64), max_size=8),
    st.integers(1, 40),
    st.sampled_from([0.1, 0.2, 0.25, 0.5, 1, 2, 3]),
)
def test_of_equal_actors_as_many_fit_as_can_be_counted(
    cpus: list[int], count: int, each: float
) -> None:
    places = sum(round(have * 100) // round(each * 100) for have in cpus)
    found = shortage([Need("actors", count, {"CPU": each})], [{"CPU": have} for have in cpus])
    assert bool(found) == (count > places)
    if found:
        assert found.startswith(f"no room for {count - places} of {count} actors")


def test_what_is_missing_is_told_from_what_is_taken() -> None:
    patience = Patience(missing=0, taken=60)
    need = [Need("workers", 2, {"CPU": 4, "GPU": 1})]
    assert decide(need, [node({"CPU": 8, "GPU": 2})], patience, 0) is None
    assert decide(need, [node({"CPU": 8})], patience, 0) == Wait(
        "no room for 2 of 2 workers, each 4 CPUs and 1 GPU; "
        "the cluster has 1 node with 8 CPUs and 0 GPUs",
        0,
    )
    busy = [node({"CPU": 8, "GPU": 1}, {"CPU": 3, "GPU": 1}), node({"CPU": 8, "GPU": 1})]
    assert decide(need, busy, patience, 20) == Wait(
        "no room for 1 of 2 workers, each 4 CPUs and 1 GPU; of the cluster is free: 2 nodes, "
        "the largest with 8 CPUs and 1 GPU, 11 CPUs and 2 GPUs in all",
        40,
    )
    assert decide(need, busy, patience, 20, now=False) is None


def test_how_long_to_wait() -> None:
    assert patience_of({}) == Patience(0, 600)
    assert patience_of({"RAY_ADDRESS": "local"}) == Patience(0, 600)
    assert patience_of({"RAY_ADDRESS": "10.0.0.1:6379"}) == Patience(600, 600)
    assert patience_of({"DQ_WAIT_FOR_ROOM_S": "5", "RAY_ADDRESS": "auto"}) == Patience(5, 5)
    for wrong in ("soon", "-1", "nan", "inf"):
        with pytest.raises(ConfigError, match=f"DQ_WAIT_FOR_ROOM_S={wrong}"):
            patience_of({"DQ_WAIT_FOR_ROOM_S": wrong})


def test_ray_has_no_gpu_and_a_half() -> None:
    with pytest.raises(InputError, match=r"1\.5 GPUs for each of the encoders"):
        encode_needs(PoolSettings(gpus=1.5))


def test_what_workloads_need() -> None:
    assert encode_needs(PoolSettings(encoders=3, decoders=2)) == [
        Need("encoders", 3, {"CPU": 3, "GPU": 0})
    ]
    served = ServeSettings(index="/x", shards=4, replicas=2, routers=3, cpus=2, gpus=0.5)
    assert serve_needs(served) == [
        Need("replicas of shards", 8, {"CPU": 2, "GPU": 0.5}),
        Need("routers", 3, {"CPU": 2}),
    ]
