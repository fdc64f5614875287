"""Why encoders cannot work at the moment, reported on the driver's standard error.

Their own logs stay in files of their nodes. `Reports` is an actor that collects the reasons, and
`spoken` a thread of the driver that asks it, and the cluster, from time to time.
"""

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence

import ray
from ray.exceptions import RayError

from dq_cluster.cluster.room import Need, Patience, cluster_nodes, decide

log = logging.getLogger(__name__)

_EVERY_S = 10.0


class Reports:
    """Gathers the failures that encoders work through, until the driver takes them."""

    def __init__(self) -> None:
        self._failures: Counter[int] = Counter()
        self._last = ""

    def failed(self, fragment: int, reason: str) -> None:
        """A fragment failed and is tried again."""
        self._failures[fragment] += 1
        self._last = reason

    def take(self) -> str:
        """What happened since the last call, as one line; empty if nothing did."""
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
def spoken(needs: Sequence[Need]) -> Iterator[ray.actor.ActorHandle]:
    """Inside the block, log what is reported to the actor that this yields, and which of `needs`
    the cluster has lost the nodes for."""
    actor = ray.remote(Reports).options(num_cpus=0).remote()
    stop = threading.Event()

    def speak() -> None:
        stopped = False
        while not stopped:
            stopped = stop.wait(_EVERY_S)
            with contextlib.suppress(RayError):  # a report lost is no reason to stop
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
