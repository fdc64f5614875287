"""A real Prometheus scrapes a real Ray, and every rule and dashboard of the chart finds data."""

import json
import math
import os
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import yaml

from dq_cluster.encoding import pool as encode
from dq_cluster.fragments.ledger import Receipt
from dq_cluster.fragments.progress import RunProgress
from dq_cluster.knn import run as neighbours
from dq_cluster.observe import metrics, tracing
from dq_cluster.observe.exporter import expose
from tests.helm.conftest import Helm, tool
from tests.helm.watching import LABELS, dashboard_queries, rules, write_rules
from tests.seaweed import free_ports

pytestmark = pytest.mark.ray

PATIENCE_S = 120
# Names that no other test of the session reports, so that their values are known.
SHARDS = {"north": 1000, "south": 1001}
SECONDS = 0.03125  # its sums are exact in binary


class Recorder:
    """An actor that records every metric as a busy service and a busy run would."""

    def __init__(self) -> None:
        expose("router")
        self.progress = [
            RunProgress(name, fragments=100_000, done=0, measured=measured)
            for name, measured in (("encode", encode.MEASURED), ("neighbours", neighbours.MEASURED))
        ]
        self.fragments = 0
        # As a service does: once. A busy one may change nothing for days.
        for shard in SHARDS:
            metrics.SHARD_CODES.labels(shard=shard).set(SHARDS[shard])
        metrics.INDEX_VERSION.set(7)

    def pid(self) -> int:
        return os.getpid()

    def work(self) -> str:
        """Record, inside a trace whose id is returned."""
        with tracing.span("query"):
            for outcome in ("ok", "ok", "partial", "timed_out", "rejected", "failed"):
                metrics.QUERIES.labels(outcome=outcome).inc()
                metrics.QUERY_SECONDS.observe(SECONDS, tracing.exemplar())
                metrics.COVERAGE.observe(0.97)
            trace = (tracing.exemplar() or {})["trace_id"]
        for step in ("decode", "embed", "search", "merge"):
            with metrics.timed(metrics.STEP_SECONDS.labels(step=step)):
                pass
        for shard in SHARDS:
            metrics.HEDGES.labels(shard=shard).inc()
            metrics.RETRIES.labels(shard=shard).inc()
            metrics.SHARD_SEARCH_SECONDS.labels(shard=shard).observe(0.002)
            metrics.SHARD_LOAD_SECONDS.labels(shard=shard).observe(2)
            metrics.SHARD_LOAD_FAILURES.labels(shard=shard).inc()
        self.fragments += 1
        receipt = Receipt(
            fragment=self.fragments,
            rows=99,
            rejected=1,
            reasons={"empty": 1},
            files=(),
            rejects=(),
            columns={},
            seconds={},
        )
        for progress in self.progress:
            progress.add(receipt)
        for term in ("triplet", "reconstruction"):
            metrics.TRAIN_LOSS.labels(term=term).set(0.5)
        metrics.TRAIN_SAMPLES.inc(256)
        metrics.CODEBOOK_PERPLEXITY.set(12.5)
        return trace


class Prometheus:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=240) as answer:
            return json.load(answer)["data"]

    def values(self, expression: str) -> list[float]:
        """The values of an instant query that are numbers."""
        found = self.get("query", query=expression)["result"]
        return [v for v in (float(row["value"][1]) for row in found) if math.isfinite(v)]

    def exemplars(self, expression: str) -> set[str]:
        """The ids of the traces that a query's exemplars lead to."""
        now = time.time()
        span = {"start": str(now - 3600), "end": str(now + 3600)}
        found = self.get("query_exemplars", query=expression, **span)
        return {each["labels"]["trace_id"] for row in found for each in row["exemplars"]}

    def has_exemplar(self, expression: str, trace: str) -> bool:
        return trace in self.exemplars(expression)


def eventually(wanted: Callable[[], bool]) -> None:
    """Wait until Prometheus, which may not listen yet, has read what is wanted."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            if wanted():
                return
        except OSError:
            pass
        assert time.monotonic() < end, "Prometheus does not show what was recorded"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def recorders(ray_cluster: None) -> Iterator[tuple[int, list[Any]]]:
    """The node's metrics port, and two processes that record; the first one serves the port."""
    import ray

    (port,) = free_ports(1)
    environment = {"DQ_METRICS_PORT": str(port), "OTEL_TRACES_EXPORTER": "console"}
    actor = ray.remote(num_cpus=0, runtime_env={"env_vars": environment})(Recorder)
    actors = []
    for _ in range(2):
        actors.append(actor.remote())
        ray.get(actors[-1].work.remote())
        eventually(lambda: bool(urllib.request.urlopen(f"http://127.0.0.1:{port}").read()))
    yield port, actors
    for each in actors:
        ray.kill(each)


@pytest.fixture(scope="module")
def prometheus(
    recorders: tuple[int, list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Prometheus with the chart's rules; the labels that the PodMonitor gives are put on here."""
    import ray

    binary, helm = tool("prometheus"), Helm(tool("helm"))
    folder = tmp_path_factory.mktemp("prometheus")
    (node,) = (node for node in ray.nodes() if node["Alive"])
    targets = {
        "ray": f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}",
        "dq": f"127.0.0.1:{recorders[0]}",
    }
    write_rules(helm, folder)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [{"targets": [target], "labels": {**LABELS, "pod": "head"}}],
            }
            for job, target in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                binary,
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                "--enable-feature=exemplar-storage",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(timeout=240)


def comparisons(alert: str) -> list[str]:
    """The left sides of an alert: recorded series, each compared with a threshold."""
    parts = [re.fullmatch(r"(.+) (?:[<>]|==) [0-9.]+", part) for part in alert.split(" and ")]
    assert all(parts), alert
    return [part[1] for part in parts if part]


def expressions() -> dict[str, str]:
    """Everything that must find data, by a name to report it under."""
    found = dashboard_queries()
    for group in rules(Helm(tool("helm")))["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                labels = ",".join(f'{name}="{value}"' for name, value in LABELS.items())
                found[rule["record"]] = f"{rule['record']}{{{labels}}}"
            else:
                for number, left in enumerate(comparisons(rule["expr"])):
                    found[f"{rule['alert']} {number}"] = left
    return found


def test_every_rule_and_dashboard_finds_data(
    prometheus: Prometheus, recorders: tuple[int, list[Any]]
) -> None:
    import ray

    _, (recorder, _) = recorders
    missing = expressions()
    assert len(missing) > 50

    def found() -> bool:
        ray.get(recorder.work.remote())
        for name in [n for n, e in missing.items() if prometheus.values(e)]:
            del missing[name]
        return not missing

    try:
        eventually(found)
    finally:
        assert not missing
    (failed,) = prometheus.values("dq:queries_failed:ratio_rate5m")
    assert 0.01 < failed < 1
    eventually(lambda: "DqShardLoadFailed" in firing(prometheus))

    kinds = {name: rows[0]["type"] for name, rows in prometheus.get("metadata").items()}
    for family in metrics.REGISTRY.collect():
        assert kinds[family.name] == family.type


def test_sums_buckets_and_exemplars_of_each_process(
    prometheus: Prometheus, recorders: tuple[int, list[Any]]
) -> None:
    import ray

    _, actors = recorders
    name = "dq_query_duration_seconds"
    for actor in actors:
        trace = ray.get(actor.work.remote())
        of = f'{{pid="{ray.get(actor.pid.remote())}",process="router"}}'
        eventually(partial(prometheus.has_exemplar, f"{name}_bucket", trace))
        (count,) = prometheus.values(f"{name}_count{of}")
        assert count >= 6
        assert prometheus.values(f"{name}_sum{of}") == [count * SECONDS]
        edges = {edge: f'{name}_bucket{of[:-1]},le="{edge}"}}' for edge in ("0.02", "0.05", "+Inf")}
        assert [prometheus.values(e) for e in edges.values()] == [[0], [count], [count]]
        for shard, codes in SHARDS.items():
            assert prometheus.values(f'dq_shard_codes{of[:-1]},shard="{shard}"}}') == [codes]


def test_a_killed_process_goes_and_another_takes_the_port(
    prometheus: Prometheus, recorders: tuple[int, list[Any]]
) -> None:
    import ray

    _, (serving, other) = recorders
    dead, living = ray.get([serving.pid.remote(), other.pid.remote()])

    def reporting() -> set[str]:
        found = prometheus.get("query", query="dq_index_version")["result"]
        return {row["metric"]["pid"] for row in found}

    eventually(lambda: reporting() == {str(dead), str(living)})
    ray.kill(serving)
    eventually(lambda: reporting() == {str(living)})


def firing(prometheus: Prometheus) -> set[str]:
    groups = prometheus.get("rules", type="alert")["groups"]
    return {rule["name"] for g in groups for rule in g["rules"] if rule["state"] == "firing"}
