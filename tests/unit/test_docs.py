"""The documentation: links lead somewhere, every page is in the navigation, the site builds."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).parents[2]
DOCS = REPO / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
WITH_LINKS = [
    *PAGES,
    *(REPO / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    REPO / "benchmarks/README.md",
    REPO / "deploy/helm/dq-cluster/README.md",
]
# Pages that docs/generate.py takes from elsewhere in the repository.
GENERATED = {
    "changelog.md", "contributing.md", "security.md", "benchmarks.md", "reference/chart.md",
}  # fmt: skip
LINK = re.compile(r"\]\(([^()\s]+)\)")


def prose(path: Path) -> str:
    """The text of a page without its code."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda code: re.sub(r"[\[\]()]", "", code[0]), text)


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        found.add(slug)
    return found


def relative_links(path: Path) -> Iterator[tuple[str, str]]:
    for target in LINK.findall(prose(path)):
        if "://" not in target and not target.startswith("mailto:"):
            name, _, anchor = target.partition("#")
            yield name, anchor


@pytest.mark.parametrize("page", WITH_LINKS, ids=lambda path: str(path.relative_to(REPO)))
def test_relative_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for name, anchor in relative_links(page):
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{name} does not exist"
        assert target.is_relative_to(REPO), f"{name} is outside the repository"
        if anchor:
            assert anchor in anchors(target), f"{name or page.name} has no heading #{anchor}"


def test_links_are_found() -> None:
    assert ("docs/encoding.md", "") in set(relative_links(REPO / "README.md"))
    assert ("operations.md", "how-large") in set(relative_links(DOCS / "kubernetes.md"))
    assert "cells-ivf" in anchors(DOCS / "encoding.md")


class _Config(yaml.SafeLoader):
    """mkdocs.yml without the Python objects that it names."""


_Config.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def in_navigation(entry: object) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for each in entry.values():
            yield from in_navigation(each)
    elif isinstance(entry, list):
        for each in entry:
            yield from in_navigation(each)


def test_every_page_is_in_the_navigation_once() -> None:
    config = yaml.load((REPO / "mkdocs.yml").read_text(), _Config)
    shown = sorted(in_navigation(config["nav"]))
    assert shown == sorted({str(path.relative_to(DOCS)) for path in PAGES} | GENERATED)


def test_decisions_are_numbered_once_and_without_gaps() -> None:
    numbers = [int(path.name[:4]) for path in PAGES if path.parent.name == "decisions"]
    assert numbers == list(range(1, len(numbers) + 1))


class _Fetched(HTMLParser):
    """What a browser fetches of a page by itself, as against links that a reader may follow."""

    def __init__(self) -> None:
        super().__init__()
        self.remote: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        address = values.get("href") if tag == "link" else values.get("src")
        if tag != "a" and address and re.match(r"(https?:)?//", address):
            self.remote.append(address)


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=REPO,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPO), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {"index.html", "operations.html", "benchmarks.html"} <= {page.name for page in pages}
    for page in pages:
        parser = _Fetched()
        parser.feed(page.read_text())
        assert not parser.remote, page.relative_to(tmp_path)
    settings = (tmp_path / "reference/settings.html").read_text()
    assert "max_reject_fraction" in settings
    assert "<!-- settings" not in settings
    commands = (tmp_path / "reference/cli.html").read_text()
    assert "dq-cluster index rollback" in commands
    assert "dq_queries_total" in (tmp_path / "reference/metrics.html").read_text()
