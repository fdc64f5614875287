"""Rules and dashboards: valid PromQL, over metrics that exist, each alert tried by promtool.

That Prometheus finds data for every one of them is tests/ray/test_metrics.py's business.
"""

import re
import shutil
import subprocess
from pathlib import Path

import yaml

from dq_cluster.observe import metrics
from tests.helm.conftest import CHART, REPO, Helm, of_kind, tool
from tests.helm.watching import VALUES, dashboard_queries, rules, write_rules


def promtool(*arguments: str | Path, cwd: Path) -> None:
    command = [tool("promtool"), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_valid_and_each_alert_fires_on_its_fault(helm4: Helm, tmp_path: Path) -> None:
    write_rules(helm4, tmp_path)
    shutil.copy(Path(__file__).with_name("alerts.yaml"), tmp_path)
    promtool("check", "rules", "rules.yaml", cwd=tmp_path)
    promtool("test", "rules", "alerts.yaml", cwd=tmp_path)


def test_every_alert_is_tried_firing_and_silent() -> None:
    tried = yaml.safe_load(Path(__file__).with_name("alerts.yaml").read_text())["tests"]
    cases = [case for test in tried for case in test["alert_rule_test"]]
    source = yaml.safe_load((CHART / "rules.yaml").read_text())
    for name in (rule["alert"] for group in source.values() for rule in group if "alert" in rule):
        assert any(c["alertname"] == name and c.get("exp_alerts") for c in cases), name
        assert any(c["alertname"] == name and not c.get("exp_alerts") for c in cases), name


def test_dashboard_queries_parse(tmp_path: Path) -> None:
    records = [
        {"record": f"query:{number}", "expr": expression}
        for number, expression in enumerate(dashboard_queries().values())
    ]
    assert len(records) > 20
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": records}]}))
    promtool("check", "rules", path, cwd=tmp_path)


def test_only_metrics_that_exist_are_asked_for_and_each_is_shown(helm4: Helm) -> None:
    suffixes = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",)}
    known = {
        family.name: {family.name + suffix for suffix in suffixes.get(family.type, ("",))}
        for family in metrics.REGISTRY.collect()
    }
    expressions = [rule["expr"] for group in rules(helm4)["groups"] for rule in group["rules"]]
    shown = " ".join(dashboard_queries().values())
    asked = set(re.findall(r"\bdq_\w+", " ".join([*expressions, shown])))
    assert asked <= set().union(*known.values())
    for name, series in known.items():
        assert any(one in shown for one in series), f"{name} is on no dashboard"


def test_dashboards_reach_grafana_unchanged(helm4: Helm) -> None:
    maps = [
        document
        for document in of_kind(helm4.render(*VALUES), "ConfigMap")
        if document["metadata"]["labels"].get("grafana_dashboard") == "1"
    ]
    found = {name: text for document in maps for name, text in document["data"].items()}
    assert found == {
        f"dq-cluster-{path.name}": path.read_text()
        for path in (CHART / "dashboards").glob("*.json")
    }


def test_operations_explains_every_metric_and_alert() -> None:
    text = (REPO / "docs/operations.md").read_text()
    for family in metrics.REGISTRY.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in text, name
    source = yaml.safe_load((CHART / "rules.yaml").read_text())
    for rule in (rule for group in source.values() for rule in group if "alert" in rule):
        assert f"\n### {rule['alert']}\n" in text, rule["alert"]


def test_the_packaged_chart_carries_rules_and_dashboards(helm: Helm, tmp_path: Path) -> None:
    packed = helm.run("package", str(CHART), "-d", str(tmp_path))
    assert packed.returncode == 0, packed.stderr
    (archive,) = tmp_path.glob("*.tgz")
    names = subprocess.run(["tar", "tzf", archive], capture_output=True, text=True, check=True)
    files = {name.partition("/")[2] for name in names.stdout.split()}
    assert {"rules.yaml", "dashboards/serving.json", "values.schema.json", "README.md"} <= files
    assert not any(name.startswith("ci/") for name in files)
