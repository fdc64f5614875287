"""The arrows of docs/architecture.md, held against the code's imports."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dq_cluster"
GROUND = {"errors", "config", "geometry", "storage", "run"}
# Room to the rooms of dq_cluster it may import; rooms not named here may import anything.
ARROWS = {
    "errors": set(),
    "config": {"errors"},
    "geometry": {"config"},
    "storage": {"errors"},
    "run": {"errors", "config", "storage"},
    "index": GROUND,
    "search": GROUND | {"index"},
    "model": GROUND | {"index"},
    "images": GROUND | {"index"},
    "observe": GROUND,
    "cluster": GROUND | {"observe"},
    "train": GROUND | {"index", "model", "images", "observe", "evaluate", "cluster"},
    "encode": GROUND | {"index", "model", "images", "observe", "cluster"},
    "serve": GROUND | {"index", "search", "model", "images", "observe", "cluster", "v1"},
    "evaluate": GROUND | {"index", "search", "model", "images"},
}
WITHOUT = {
    "index": {"ray", "torch", "faiss"},
    "search": {"ray"},
    "model": {"ray"},
    "images": {"ray"},
    "evaluate": {"ray"},
}


def modules(room: str) -> list[Path]:
    folder = PACKAGE / room
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


@pytest.mark.parametrize("room", ARROWS)
def test_arrows_go_down(room: str) -> None:
    for path in modules(room):
        rooms = {n.split(".")[1] for n in imported(path) if n.startswith("dq_cluster.")}
        strangers = rooms - ARROWS[room] - {room, "__version__"}
        assert not strangers, f"{path.relative_to(PACKAGE)} imports {sorted(strangers)}"


@pytest.mark.parametrize("room", WITHOUT)
def test_rooms_stay_without_what_they_promise(room: str) -> None:
    for path in modules(room):
        packages = {name.partition(".")[0] for name in imported(path)}
        assert not packages & WITHOUT[room], path.relative_to(PACKAGE)


def test_every_room_has_modules() -> None:
    assert all(modules(room) and modules(room)[0].exists() for room in ARROWS)
