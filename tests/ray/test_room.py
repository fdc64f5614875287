"""What Ray says of its nodes, and how what happens in its processes reaches the driver."""

import json
import logging
import time
from collections.abc import Mapping

import pytest
import ray
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.experimental.internal_kv import _internal_kv_get

from dq_cluster.cluster import ray_cluster
from dq_cluster.cluster.room import WAIT, Need, Node, Patience, cluster_nodes, decide, wait_for_room
from dq_cluster.errors import DqError, InputError
from dq_cluster.fragments.progress import Work
from dq_cluster.fragments.reports import spoken
from dq_cluster.training.tasks import finish
from tests.conftest import LOGICAL_CPUS

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@ray.remote(num_cpus=LOGICAL_CPUS)
class Holder:
    """Holds every CPU there is."""

    def hold(self) -> None: ...


@ray.remote(num_cpus=0)
def fail(error: Exception) -> None:
    raise error


@pytest.fixture
def ours(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that dq_cluster logs."""
    monkeypatch.setattr(logging.getLogger("dq_cluster"), "propagate", True)
    caplog.set_level(logging.INFO, "dq_cluster")
    return caplog.messages


def test_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WAIT, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match=r"1 node with 8 CPUs and 0 GPUs: ask for less$"):
        wait_for_room([Need("actors", 1, {"CPU": 1, "GPU": 1})], "ask for less")


def test_what_is_taken_is_waited_for(
    ours: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = [Need("actors", 1, {"CPU": 1})]
    holder = Holder.remote()  # type: ignore[attr-defined]
    ray.get(holder.hold.remote())
    while decide(need, cluster_nodes(), Patience(0, 60), 0) is None:
        time.sleep(0.05)  # Ray's own account of what is free comes a moment later
    wait_for_room(need, "", now=False)
    monkeypatch.setenv(WAIT, "0")
    with pytest.raises(InputError, match=r"free: 1 node with 0 CPUs: ask for less$"):
        wait_for_room(need, "ask for less")

    monkeypatch.setenv(WAIT, "60")
    monkeypatch.setattr("dq_cluster.cluster.room._QUIET_S", 0)
    views: list[list[Node]] = []

    def view() -> list[Node]:
        views.append(cluster_nodes())
        if len(views) == 1:
            ray.kill(holder)
        return views[-1]

    monkeypatch.setattr("dq_cluster.cluster.room.cluster_nodes", view)
    wait_for_room(need, "ask for less")
    assert len(views) > 1
    assert caplog.messages[0].startswith("waiting: no room for 1 of 1 actors, each 1 CPU; of the")
    assert caplog.messages[0].endswith(" s left")


def test_nodes_that_are_missing_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that grows by itself has no other sign that somebody waits."""
    monkeypatch.setenv(WAIT, "60")
    asked: list[bytes] = []

    def view() -> list[Node]:
        asked.append(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or b"[]")
        return cluster_nodes() if len(asked) > 1 else []

    monkeypatch.setattr("dq_cluster.cluster.room.cluster_nodes", view)
    wait_for_room([Need("actors", 2, {"CPU": 2, "GPU": 0})], "")
    assert [json.loads(each) for each in asked] == [[], [{"CPU": 2}, {"CPU": 2}]]
    assert _internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) == b"[]"


def test_a_report_reaches_the_log(
    ours: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dq_cluster.fragments.reports._EVERY_S", 600)  # only at the end
    work: list[Mapping[int, Work]] = []
    with spoken([Need("encoders", 2, {"CPU": LOGICAL_CPUS})], work.append) as reports:
        ray.get([reports.failed.remote(n, "StorageError: gone") for n in (3, 3, 1)])
        ray.get(reports.working.remote(1, Work(5, 1, {"load": 0.5})))
    assert {n: w for part in work for n, w in part.items()} == {
        1: Work(5, 1, {"load": 0.5}),
        3: Work(0, 0, {}),
    }
    assert caplog.messages == [
        "3 failures of 2 fragments (1, 3), tried again; the last: StorageError: gone",
        "waiting: no room for 1 of 2 encoders, each 8 CPUs; the cluster has 1 node with 8 CPUs",
    ]


def test_errors_of_tasks_are_lines() -> None:
    with pytest.raises(InputError, match=r"^row 5$"):
        finish([fail.remote(InputError("row 5"))])
    with pytest.raises(DqError, match=r"^a worker failed with KeyError: 'cell'; its stack is in "):
        finish([fail.remote(KeyError("cell"))])
    with pytest.raises(DqError, match=r"^a worker failed with KeyError"), ray_cluster():
        ray.get(fail.remote(KeyError("cell")))
