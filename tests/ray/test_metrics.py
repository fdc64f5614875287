"""A real Prometheus scrapes a real Ray, and every rule and dashboard of the chart finds data."""

import json
import math
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from dq_cluster.encode.ledger import Receipt
from dq_cluster.encode.progress import RunProgress
from dq_cluster.observe import metrics
from tests.helm.conftest import Helm, tool
from tests.helm.watching import LABELS, dashboard_queries, rules, write_rules
from tests.seaweed import free_ports

pytestmark = pytest.mark.ray

PATIENCE_S = 120
FORGETTING_S = 32  # two of Ray's reports and a little: then it drops gauges not recorded again
# Names that no other test of the session reports, so that their values are known.
SHARDS = {"north": 1000, "south": 1001}


class Service:
    """An actor that reports every metric as a busy service and a busy run would."""

    def __init__(self) -> None:
        self.progress = RunProgress("encode", fragments=100_000, done=0)
        self.fragments = 0
        # As a service does: once. A busy one may change nothing for days.
        for shard in SHARDS:
            metrics.SHARD_CODES.set(SHARDS[shard], shard=shard)
        metrics.INDEX_VERSION.set(7)

    def work(self) -> None:
        for outcome in ("ok", "ok", "partial", "timed_out", "rejected", "failed"):
            metrics.QUERIES.inc(outcome=outcome)
            metrics.QUERY_SECONDS.observe(0.03)
            metrics.COVERAGE.observe(0.97)
        for step in ("decode", "embed", "search", "merge"):
            with metrics.STEP_SECONDS.time(step=step):
                pass
        for shard in SHARDS:
            metrics.HEDGES.inc(shard=shard)
            metrics.RETRIES.inc(shard=shard)
            metrics.SHARD_SEARCH_SECONDS.observe(0.002, shard=shard)
            metrics.SHARD_LOAD_SECONDS.observe(2, shard=shard)
            metrics.SHARD_LOAD_FAILURES.inc(shard=shard)
        self.fragments += 1
        self.progress.add(
            Receipt(
                fragment=self.fragments,
                rows=99,
                rejected=1,
                reasons={"empty": 1},
                files=(),
                rejects=(),
                columns={},
                seconds={},
            )
        )
        for term in ("triplet", "reconstruction"):
            metrics.TRAIN_LOSS.set(0.5, term=term)
        metrics.TRAIN_SAMPLES.inc(256)
        metrics.CODEBOOK_PERPLEXITY.set(12.5)


class Prometheus:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, expression: str) -> list[float]:
        """The values of an instant query that are numbers."""
        found = self.get("query", query=expression)["result"]
        return [v for v in (float(row["value"][1]) for row in found) if math.isfinite(v)]


@pytest.fixture(scope="module")
def prometheus(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus with the chart's rules; the labels that the PodMonitor gives are put on here."""
    import ray

    binary, helm = tool("prometheus"), Helm(tool("helm"))
    folder = tmp_path_factory.mktemp("prometheus")
    (node,) = (node for node in ray.nodes() if node["Alive"])
    target = f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
    write_rules(helm, folder)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": "ray",
                "static_configs": [{"targets": [target], "labels": {**LABELS, "pod": "head"}}],
            }
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
        process.wait(timeout=30)


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


def test_every_rule_and_dashboard_finds_data(prometheus: Prometheus) -> None:
    import ray

    wanted = expressions()
    assert len(wanted) > 50
    service = ray.remote(num_cpus=0)(Service).remote()
    begin = time.monotonic()
    missing = wanted
    while time.monotonic() < begin + (PATIENCE_S if missing else FORGETTING_S):
        ray.get(service.work.remote())
        time.sleep(0.5)
        try:
            missing = {n: e for n, e in missing.items() if not prometheus.values(e)}
        except OSError:  # not listening yet
            continue
    ray.kill(service)
    assert not missing

    # The labels, kinds and values that the definitions promise.
    kinds = {name: rows[0]["type"] for name, rows in prometheus.get("metadata").items()}
    for metric in metrics.ALL:
        family = metric.exported.removesuffix("_total")
        kind = kinds.get(metric.exported, kinds.get(family))
        assert kind == type(metric).__name__.lower(), metric.name
        suffix = "_count" if isinstance(metric, metrics.Histogram) else ""
        (row, *_) = prometheus.get("query", query=metric.exported + suffix)["result"]
        assert set(metric.labels) <= row["metric"].keys()
    for shard, codes in SHARDS.items():
        assert prometheus.values(f'max(ray_dq_shard_codes{{shard="{shard}"}})') == [codes]
    assert prometheus.values("max(ray_dq_encode_fragments)") == [100_000]
    (failed,) = prometheus.values("dq:queries_failed:ratio_rate5m")
    assert 0.01 < failed < 1
    assert "DqShardLoadFailed" in firing(prometheus)


def firing(prometheus: Prometheus) -> set[str]:
    groups = prometheus.get("rules", type="alert")["groups"]
    return {rule["name"] for g in groups for rule in g["rules"] if rule["state"] == "firing"}
