"""Waiting for Ray tasks, with dq_cluster's own errors coming through as they were raised."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError

from dq_cluster.errors import DqError


def results(refs: list[ray.ObjectRef]) -> Iterator[Any]:
    """The tasks' results in order. On the first failure the others are cancelled."""
    waiting = deque(refs)
    del refs  # a result can be freed once it was used
    while waiting:
        try:
            yield ray.get(waiting.popleft())
        except RayTaskError as error:
            for ref in waiting:
                ray.cancel(ref)
            if isinstance(error.cause, DqError):
                raise error.cause from None
            raise


def finish(refs: list[ray.ObjectRef]) -> None:
    """Wait for tasks that return nothing."""
    deque(results(refs), maxlen=0)
