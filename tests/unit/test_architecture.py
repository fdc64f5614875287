"""The table of packages in docs/architecture.md, checked against the imports."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dq_cluster"
GROUND = {
    *(
        "errors",
        "location",
        "yamltext",
        "jsontext",
        "config",
        "document",
        "geometry",
        "storage",
        "run",
        "progress",
    ),
}
# What each package of dq_cluster may import of the others; a package not named may import anything.
ARROWS = {
    "errors": set(),
    "location": {"errors"},
    "yamltext": {"errors"},
    "jsontext": set(),
    "config": {"errors", "location", "yamltext"},
    "document": {"errors", "config"},
    "geometry": {"config"},
    "storage": {"errors", "location"},
    "run": {"errors", "config", "document", "storage"},
    "progress": set(),
    "index": GROUND,
    "search": GROUND | {"index"},
    "model": GROUND | {"index"},
    "images": GROUND | {"index"},
    "observe": GROUND,
    "cluster": GROUND | {"observe"},
    "fragments": GROUND | {"index", "observe", "cluster"},
    "training": GROUND | {"index", "model", "images", "observe", "evaluate", "cluster"},
    "encoding": GROUND | {"index", "model", "images", "observe", "cluster", "fragments"},
    "knn": GROUND
    | {"index", "search", "model", "images", "observe", "evaluate", "cluster", "fragments"},
    "serve": GROUND | {"index", "search", "model", "images", "observe", "cluster", "v1"},
    "building": GROUND | {"index", "images", "model", "cluster", "encoding", "training"},
    "evaluate": GROUND | {"index", "search", "model", "images"},
}
WITHOUT = {
    "index": {"ray", "torch", "faiss"},
    "search": {"ray"},
    "model": {"ray"},
    "images": {"ray"},
    "evaluate": {"ray"},
}


def modules(package: str) -> list[Path]:
    folder = PACKAGE / package
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported(path: Path) -> set[str]:
    """Full names of everything a module imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", ARROWS)
def test_arrows_go_down(package: str) -> None:
    for path in modules(package):
        packages = {n.split(".")[1] for n in imported(path) if n.startswith("dq_cluster.")}
        strangers = packages - ARROWS[package] - {package, "__version__"}
        assert not strangers, f"{path.relative_to(PACKAGE)} imports {sorted(strangers)}"


@pytest.mark.parametrize("package", WITHOUT)
def test_packages_stay_without_what_they_promise(package: str) -> None:
    for path in modules(package):
        packages = {name.partition(".")[0] for name in imported(path)}
        assert not packages & WITHOUT[package], path.relative_to(PACKAGE)


def test_every_package_has_modules() -> None:
    assert all(modules(package) and modules(package)[0].exists() for package in ARROWS)
