"""What workers do at the moment, and why they cannot, brought to the driver.

Their own logs stay in files of their nodes. `Reports` is an actor that collects, and `spoken` a
thread of the driver that asks it, and the cluster, from time to time.
"""

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import ray
from ray.exceptions import RayError

from dq_cluster.cluster.room import Need, Patience, cluster_nodes, decide
from dq_cluster.fragments.progress import Work

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0  # at the work
_EVERY_S = 10.0  # at failures and at the cluster


class Reports:
    """Gathers what workers report, until the driver takes it."""

    def __init__(self) -> None:
        self._failures: Counter[int] = Counter()
        self._last = ""
        self._work: dict[int, Work] = {}

    def failed(self, fragment: int, reason: str) -> None:
        """A fragment failed and is tried again."""
        self._failures[fragment] += 1
        self._last = reason
        self._work[fragment] = Work(0, 0, {})

    def working(self, fragment: int, work: Work) -> None:
        """So much of a fragment is done; the whole of it, not what was added."""
        self._work[fragment] = work

    def take_work(self) -> dict[int, Work]:
        """The fragments whose work changed since the last call."""
        work, self._work = self._work, {}
        return work

    def take(self) -> str:
        """The failures since the last call, as one line; empty if there were none."""
        line = summary(self._failures, self._last)
        self._failures.clear()
        return line


def summary(failures: Counter[int], last: str) -> str:
    """`5 failures of 2 fragments (0, 3), tried again; the last: …`"""
    if not failures:
        return ""
    numbers = sorted(failures)
    named = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
    count = failures.total()
    return (
        f"{count} {'failure' if count == 1 else 'failures'} of "
        f"{len(numbers)} {'fragment' if len(numbers) == 1 else 'fragments'} ({named}), "
        f"tried again; the last: {last}"
    )


@contextlib.contextmanager
def spoken(
    needs: Sequence[Need], on_work: Callable[[Mapping[int, Work]], None]
) -> Iterator[ray.actor.ActorHandle]:
    """Inside the block, pass on what workers report to the actor that this yields: their work to
    `on_work`, and to the log their failures and which of `needs` the cluster lost the nodes for."""
    actor = ray.remote(Reports).options(num_cpus=0).remote()
    stop = threading.Event()

    def speak() -> None:
        stopped, spoke = False, time.monotonic()
        while not stopped:
            stopped = stop.wait(_LOOK_EVERY_S)
            with contextlib.suppress(RayError):  # a report lost is no reason to stop
                on_work(ray.get(actor.take_work.remote(), timeout=_EVERY_S))
                if not stopped and time.monotonic() - spoke < _EVERY_S:
                    continue
                spoke = time.monotonic()
                line = ray.get(actor.take.remote(), timeout=_EVERY_S)
                if line:
                    log.warning(line)
                wait = decide(needs, cluster_nodes(), Patience(0, 0), 0, now=False)
                if wait:
                    log.warning("waiting: %s", wait.missing)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        stop.set()
        thread.join(timeout=_EVERY_S)
        ray.kill(actor)
