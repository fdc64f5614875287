"""The chart's Serve configuration, deployed by Ray Serve itself and asked as the chart asks."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.helm.conftest import Helm, only
from tests.seaweed import free_ports
from tests.support import make_model, make_version

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]


@pytest.fixture
def service(ray_cluster: None, helm4: Helm, s3: str, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """(URL, script of the Helm test) of what `helm template` prints; only the address differs."""
    import ray
    from ray import serve

    make_version(f"{s3}/index", make_model(f"{s3}/index"), rows=500)
    values = f"index={s3}/index,serve.settings.shards=2,serve.settings.cpus=0.5"
    documents = helm4.render("--set", values)
    (script,) = only(documents, "Pod")["spec"]["containers"][0]["args"]
    config = yaml.safe_load(only(documents, "RayService")["spec"]["serveConfigV2"])
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    traces = {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    config["applications"][0]["runtime_env"] = {"env_vars": traces}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("serve")), "run", "--non-blocking", str(path)]
    address = ray.get_runtime_context().gcs_address
    try:
        done = subprocess.run(
            [*command, "--address", address],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        yield url, script.replace("http://rel-dq-cluster-serve-svc:8000", url)
    finally:
        serve.shutdown()


def test_the_rendered_configuration_serves(service: tuple[str, str]) -> None:
    url, script = service
    with httpx.Client(base_url=url, timeout=240) as client:
        deadline = time.monotonic() + 240
        while not ready(client) and time.monotonic() < deadline:
            time.sleep(0.5)
        exec(compile(script, "query.py", "exec"), {})
        found = client.post("/v1/search", json={"id": 7, "k": 5}).json()
        assert len(found["hits"][0]) == 5
        assert found["coverage"] == 1

    deadline = time.monotonic() + 240
    while not (trace := whole_trace(shards=2)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert trace, "no query's trace reached both shards"


def ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def whole_trace(shards: int) -> str | None:
    """The id of a trace with a query and a span of each shard below it."""
    traces: dict[str, list[dict[str, Any]]] = {}
    for span in spans():
        traces.setdefault(span["context"]["trace_id"], []).append(span)
    for trace, members in traces.items():
        queries = [span["context"]["span_id"] for span in members if span["name"] == "query"]
        below = {s["attributes"]["shard"] for s in members if s["parent_id"] in queries}
        if below == set(range(shards)):
            return trace
    return None


def spans() -> Iterator[dict[str, Any]]:
    """What OpenTelemetry's console exporter wrote to the standard output of Ray's workers."""
    from ray._private.worker import global_worker

    for path in Path(global_worker.node.get_logs_dir_path()).glob("worker-*.out"):
        for text in re.findall(r"^\{$.*?^\}$", path.read_text(), re.MULTILINE | re.DOTALL):
            yield json.loads(text)
