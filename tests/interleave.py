"""Two processes on one storage, step by step: what one does between any two steps of the other."""

import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dq_cluster.storage import Storage

Before = Callable[[str, str], None]
_inside = threading.local()


class Watched(Storage):
    """A Storage that calls `before(operation, name)` ahead of everything that it is asked to do."""

    before: Before

    def __init__(self, uri: str, before: Before) -> None:
        super().__init__(uri)
        object.__setattr__(self, "before", before)

    def child(self, name: str) -> "Watched":
        inner = super().child(name)
        return Watched(inner.uri, lambda operation, path: self.before(operation, f"{name}/{path}"))


def _watched(operation: str) -> Any:
    plain = getattr(Storage, operation)

    def step(self: Watched, name: str = "", *arguments: Any, **options: Any) -> Any:
        if getattr(_inside, "a_step", False):  # what a step is made of is not a step
            return plain(self, name, *arguments, **options)
        self.before(operation, name)
        _inside.a_step = True
        try:
            found = plain(self, name, *arguments, **options)
            return iter(list(found)) if operation == "list" else found
        finally:
            _inside.a_step = False

    return step


for _operation in ("exists", "size", "read", "open", "write", "create", "replace", "list"):
    setattr(Watched, _operation, _watched(_operation))
Watched.delete = _watched("delete")  # type: ignore[method-assign]


class Turns:
    """Two tasks in threads of their own, of which one works at a time.

    `schedule` says how many steps a task makes before the other has its turn, the first task
    first; behind its end a task works until it is done or waits.
    """

    def __init__(self, schedule: Iterable[int]) -> None:
        self.steps = [0, 0]
        self._schedule = iter(schedule)
        self._change = threading.Condition()
        self._turn = 0
        self._left = next(self._schedule, sys.maxsize)
        self._done = [False, False]
        self._tasks = threading.local()

    def run(self, *tasks: Callable[[Before], Any]) -> list[Any]:
        """What the two tasks return, or raise. Each gets what it must call before a step."""
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(self._one, number, task) for number, task in enumerate(tasks)]
        return [future.exception() or future.result() for future in futures]

    def wait(self, seconds: float) -> None:
        """Instead of `time.sleep` in a task: the other's turn."""
        number = self._tasks.number
        with self._change:
            assert not self._done[1 - number], "it waits for something that never comes"
            self._hand_over(number)
            self._await(number)

    def _one(self, number: int, task: Callable[[Before], Any]) -> Any:
        self._tasks.number = number
        with self._change:
            self._await(number)
        try:
            return task(lambda operation, name: self._step(number))
        finally:
            with self._change:
                self._done[number] = True
                self._hand_over(number)

    def _step(self, number: int) -> None:
        with self._change:
            self.steps[number] += 1
            if self._left == 0 and not self._done[1 - number]:
                self._hand_over(number)
                self._await(number)
            self._left -= 1

    def _hand_over(self, number: int) -> None:
        self._turn = 1 - number
        self._left = next(self._schedule, sys.maxsize)
        self._change.notify_all()

    def _await(self, number: int) -> None:
        assert self._change.wait_for(lambda: self._turn == number, timeout=240)
