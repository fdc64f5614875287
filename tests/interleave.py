"""Two processes on one storage, step by step: what one does between any two steps of the other."""

from collections.abc import Callable
from typing import Any

from dq_cluster.storage import Storage

Before = Callable[[str, str], None]


class Watched(Storage):
    """A Storage that calls `before(operation, name)` ahead of everything that it is asked to do."""

    def __init__(self, uri: str, before: Before) -> None:
        super().__init__(uri)
        object.__setattr__(self, "before", before)

    def child(self, name: str) -> "Watched":
        inner = super().child(name)
        return Watched(inner.uri, lambda operation, path: self.before(operation, f"{name}/{path}"))


def _watched(operation: str) -> Any:
    plain = getattr(Storage, operation)

    def step(self: Watched, name: str = "", *arguments: Any, **options: Any) -> Any:
        self.before(operation, name)
        found = plain(self, name, *arguments, **options)
        return iter(list(found)) if operation == "list" else found

    return step


for _operation in ("exists", "size", "read", "open", "write", "create", "replace", "list"):
    setattr(Watched, _operation, _watched(_operation))
Watched.delete = _watched("delete")  # type: ignore[method-assign]
