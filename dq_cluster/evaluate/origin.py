"""What code a figure comes from: modules of dq_cluster by their content, packages by version."""

import ast
import functools
import hashlib
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path

import dq_cluster

_PACKAGE = Path(dq_cluster.__file__).parent


@functools.cache
def code_digest(*roots: str) -> str:
    """Changes when a module changes that one of `roots` imports, directly or not, or a package."""
    digest = hashlib.sha256()
    modules = modules_behind(*roots)
    packages = {name.partition(".")[0] for path in modules.values() for name in _imports(path)}
    for name in sorted(modules):
        digest.update(f"{name}\n".encode())
        digest.update(modules[name].read_bytes())
    distributions = packages_distributions()
    for name in sorted(packages - sys.stdlib_module_names - {"dq_cluster"}):
        for distribution in sorted(set(distributions.get(name, ()))):
            digest.update(f"{distribution} {version(distribution)}\n".encode())
    return digest.hexdigest()


def modules_behind(*roots: str) -> dict[str, Path]:
    """The files of `roots` and of every module of dq_cluster that importing them imports."""
    modules: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        parts = waiting.pop().split(".")
        # A package runs before what lies in it; the last part may be something in a module.
        for name in (".".join(parts[: n + 1]) for n in range(len(parts))):
            path = _file_of(name)
            if path is not None and name not in modules:
                modules[name] = path
                waiting += _imports(path)
    return modules


def _file_of(name: str) -> Path | None:
    if name.partition(".")[0] != "dq_cluster":
        return None
    path = _PACKAGE.joinpath(*name.split(".")[1:])
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in candidates if file.is_file()), None)


def _imports(path: Path) -> Iterator[str]:
    """Full names of everything that a module imports, wherever in the file, but for types only."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
