"""What the chart gives to Prometheus and Grafana, as plain expressions."""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.helm.conftest import CHART, Helm, only

VALUES = ("-f", str(CHART / "ci/production-values.yaml"))
LABELS = {"namespace": "ns", "release": "rel"}


def rules(helm: Helm) -> dict[str, Any]:
    """The rendered rule groups, for the release `rel` in the namespace `ns`."""
    return dict(only(helm.render(*VALUES), "PrometheusRule")["spec"])


def write_rules(helm: Helm, folder: Path) -> Path:
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump(rules(helm)))
    return path


def dashboard_queries() -> dict[str, str]:
    """Every panel's query by `dashboard / panel / letter`, its variables filled in."""
    found = {}
    for path in sorted((CHART / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", "5m")
                for name, value in LABELS.items():
                    expression = expression.replace(f"${name}", value)
                found[f"{path.stem} / {panel['title']} / {target['refId']}"] = expression
    return found
