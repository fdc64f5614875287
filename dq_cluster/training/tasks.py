"""Waiting for Ray tasks, with dq_cluster's own errors coming through as they were raised."""

import logging
from collections import deque
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError

from dq_cluster.cluster.failures import plain

log = logging.getLogger(__name__)

_LINE_EVERY_S = 10.0


def results(refs: list[ray.ObjectRef]) -> Iterator[Any]:
    """The tasks' results in order. On the first failure the others are cancelled."""
    waiting = deque(refs)
    count = len(waiting)
    del refs  # a result can be freed once it was used
    while waiting:
        while not ray.wait([waiting[0]], timeout=_LINE_EVERY_S, fetch_local=False)[0]:
            log.info("%d of %d tasks are done", _done(waiting) + count - len(waiting), count)
        try:
            yield ray.get(waiting.popleft())
        except RayTaskError as error:
            for ref in waiting:
                ray.cancel(ref)
            raise plain(error) from None


def _done(refs: deque[ray.ObjectRef]) -> int:
    everything = list(refs)
    done, _ = ray.wait(everything, num_returns=len(everything), timeout=0, fetch_local=False)
    return len(done)


def finish(refs: list[ray.ObjectRef]) -> None:
    """Wait for tasks that return nothing."""
    deque(results(refs), maxlen=0)
