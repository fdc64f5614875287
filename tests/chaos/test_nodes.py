"""The head of a served cluster is lost and comes back, and then a worker. It takes root."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.chaos.nodes import Nodes
from tests.chaos.serve_chaos import TIMEOUT_MS, Load, assert_unmixed, until
from tests.helm.conftest import Helm, environment, only, pods, tool
from tests.support import make_model, make_version

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture
def chart(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The Serve configuration and the environment of the pods, as the chart renders them."""
    index = str(folder / "index")
    card = make_model(index)
    for seed in (0, 1):
        make_version(index, card, rows=600, files=4, seed=seed)
    settings = (
        f"version=1,shards=1,replicas=2,routers=2,cpus=0.5,timeout_ms={TIMEOUT_MS},"
        f"limits.max_timeout_ms={TIMEOUT_MS}"
    )
    values = ",".join(f"serve.settings.{each}" for each in settings.split(","))
    documents = Helm(tool("helm")).render("--set", f"index={index},{values}")
    config = yaml.safe_load(only(documents, "RayService")["spec"]["serveConfigV2"])
    return config, environment(pods(documents)["RayService/rel-dq-cluster/cpu"])


@pytest.fixture
def nodes(
    chart: tuple[dict[str, Any], dict[str, str]], folder: Path, request: pytest.FixtureRequest
) -> Iterator[Nodes]:
    """A head and two workers, which a router and a replica of the only shard fill."""
    config, variables = chart
    with Nodes(folder, variables, redis=getattr(request, "param", False)) as nodes:
        nodes.start("head")
        for name in ("one", "two"):
            nodes.start(name, cpus=1)
        nodes.deploy(config)
        until(nodes.is_up, 240)
        both = {nodes.address("one"), nodes.address("two")}
        assert set(nodes.replicas("Shard0")) == set(nodes.replicas("Router")) == both
        yield nodes


@pytest.mark.parametrize("nodes", [True], indirect=True, ids=["redis"])
def test_with_redis_queries_go_on_while_the_head_is_away(nodes: Nodes) -> None:
    with Load(nodes.url("one")) as load, httpx.Client(base_url=nodes.url("one"), timeout=240) as to:
        load.wait_for(50)
        nodes.kill("head")
        load.wait_for(200)
        # What needs the head waits for it or says so; nothing switches half.
        nodes.start("head")
        until(nodes.is_up, 240)
        refresh = "/v1/index/refresh"
        until(lambda: to.post(refresh, json={"version": 2}).status_code == 200, 240)
        load.wait_for(50)
        assert load.answers[-1]["version"] == 2
        # The controller is back: it replaces what dies.
        nodes.kill("two")
        nodes.start("three", cpus=1)
        until(lambda: nodes.address("three") in nodes.replicas("Shard0"), 240)
        load.wait_for(50)
    # What was under way at the node that died: a client has one question at a time.
    assert len(load.errors) <= 2 * load.clients
    assert_unmixed(load.answers)
