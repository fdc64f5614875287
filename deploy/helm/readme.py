#!/usr/bin/env python3
"""Write a chart's README.md from the `## @section` and `## @param` comments of its values.yaml.

usage: readme.py [--check] CHART      exit 1: a value without a comment, a comment without a value,
                                      or, with --check, a README that is not up to date
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml


def documented(text: str) -> list[tuple[str, str, str]]:
    """(section, key, description) of every `@param`, in the order of the file."""
    section, found = "", []
    for line in text.splitlines():
        if match := re.match(r"\s*## @section (.+)", line):
            section = match[1]
        elif match := re.match(r"\s*## @param (\S+) (.+)", line):
            found.append((section, match[1], match[2]))
    return found


def lookup(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def undocumented(values: dict[str, Any], keys: set[str], prefix: str = "") -> list[str]:
    """Paths of values that no `@param` names, and none above or below them does."""
    missing: list[str] = []
    for name, value in values.items():
        path = f"{prefix}{name}"
        if path in keys:
            continue
        if isinstance(value, dict) and any(key.startswith(f"{path}.") for key in keys):
            missing += undocumented(value, keys, f"{path}.")
        else:
            missing.append(path)
    return missing


def readme(chart: Path) -> str:
    text = (chart / "values.yaml").read_text()
    values, meta = yaml.safe_load(text), yaml.safe_load((chart / "Chart.yaml").read_text())
    rows = documented(text)
    if missing := undocumented(values, {key for _, key, _ in rows}):
        sys.exit(f"values without a @param comment: {', '.join(missing)}")
    lines = [
        f"# {meta['name']}",
        "",
        meta["description"],
        "",
        "Made from the comments in `values.yaml` by `python deploy/helm/readme.py`; installing is",
        "described in `docs/kubernetes.md`. KubeRay's operator (1.6 or later) must be there first.",
    ]
    current = None
    for section, key, description in rows:
        if section != current:
            lines += ["", f"## {section}", "", "| value | default | |", "|---|---|---|"]
            current = section
        try:
            default = json.dumps(lookup(values, key))
        except KeyError:
            sys.exit(f"@param {key} names no value")
        if len(default) > 60:
            default = "see values.yaml"
        lines.append(f"| `{key}` | `{default}` | {description.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("chart", type=Path, nargs="?", default=Path(__file__).parent / "dq-cluster")
    arguments = parser.parse_args()
    target, text = arguments.chart / "README.md", readme(arguments.chart)
    if not arguments.check:
        target.write_text(text)
    elif not target.exists() or target.read_text() != text:
        sys.exit(f"{target} is not up to date: run python deploy/helm/readme.py")


if __name__ == "__main__":
    main()
