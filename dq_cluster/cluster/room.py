"""Whether the cluster has resources for a workload: now, later, or never.

An actor that Ray cannot place waits forever without a message. `decide` is pure; `wait_for_room`
asks Ray, and logs every ten seconds what it waits for.
"""

import logging
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dq_cluster.cluster.surroundings import joined_address
from dq_cluster.errors import ConfigError, InputError

log = logging.getLogger(__name__)

WAIT = "DQ_WAIT_FOR_ROOM_S"
_DEFAULT_WAIT_S = 600.0
_LINE_EVERY_S = 10.0
_QUIET_S = 2.0  # what the last workload held is free again within a moment
_UNIT = 10_000  # Ray counts resources in ten-thousandths

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Need:
    """`count` actors that each want `each` of one node, for example {"CPU": 2, "GPU": 0.5}."""

    what: str  # in the plural
    count: int
    each: Resources

    def __post_init__(self) -> None:
        gpus = self.each.get("GPU", 0)
        if gpus > 1 and gpus != int(gpus):
            raise InputError(
                f"{gpus:g} GPUs for each of the {self.what}: Ray gives whole GPUs, or a part of one"
            )


@dataclass(frozen=True)
class Node:
    """The resources of one node, and how much of them is free."""

    total: Resources
    free: Resources


@dataclass(frozen=True)
class Patience:
    """Seconds to wait for nodes that the cluster lacks, and for what others hold."""

    missing: float
    taken: float


@dataclass(frozen=True)
class Wait:
    """What there is no room for, and how many seconds are left to wait for it."""

    missing: str
    left: float


def decide(
    needs: Sequence[Need],
    nodes: Sequence[Node],
    patience: Patience,
    waited: float,
    *,
    now: bool = True,
) -> Wait | None:
    """None when all of `needs` fit; else what does not, `waited` seconds after the start.

    now: beside all that runs, not only on what the nodes have.
    """
    missing = shortage(needs, [node.total for node in nodes])
    if missing:
        has = _describe(needs, [node.total for node in nodes])
        return Wait(f"{missing}; the cluster has {has}", patience.missing - waited)
    missing = shortage(needs, [node.free for node in nodes]) if now else ""
    if missing:
        has = _describe(needs, [node.free for node in nodes])
        return Wait(f"{missing}; of the cluster is free: {has}", patience.taken - waited)
    return None


def shortage(needs: Sequence[Need], nodes: Sequence[Resources]) -> str:
    """Which of `needs` find no place on `nodes`, in words; empty when all do.

    Those that ask for most kinds of resources go first. That is exact where actors differ in one
    kind only, as those of every workload do.
    """
    left = [dict(node) for node in nodes]
    lacking = []
    for need in sorted(needs, key=_greed, reverse=True):
        unplaced = need.count
        for node in left:
            here = min(unplaced, _fits(need.each, node))
            for kind, amount in need.each.items():
                node[kind] = node.get(kind, 0) - here * amount
            unplaced -= here
        if unplaced:
            lacking.append(
                f"no room for {unplaced} of {need.count} {need.what}, each {_amounts(_asked(need))}"
            )
    return ", ".join(lacking)


def _greed(need: Need) -> tuple[int, float]:
    resources = _asked(need).values()
    return len(resources), sum(resources)


def _asked(need: Need) -> Resources:
    return {kind: amount for kind, amount in need.each.items() if amount}


def _fits(each: Resources, node: Resources) -> int:
    """How many times `each` fits on a node."""
    counts = [
        _parts(node.get(kind, 0), amount) if kind == "GPU" else _count(node.get(kind, 0), amount)
        for kind, amount in each.items()
        if amount
    ]
    return min(counts, default=1 << 30)


def _count(have: float, amount: float) -> int:
    return max(0, round(have * _UNIT) // max(1, round(amount * _UNIT)))


def _parts(have: float, amount: float) -> int:
    """A part of a GPU is of one GPU: two of 0.6 need two GPUs, though 1.2 are fewer."""
    if amount >= 1:
        return _count(have, amount)
    whole = math.floor(have + 0.5 / _UNIT)
    return whole * _count(1, amount) + _count(have - whole, amount)


def _describe(needs: Sequence[Need], nodes: Sequence[Resources]) -> str:
    """`3 nodes, the largest with 8 CPUs and 1 GPU, 20 CPUs and 1 GPU in all`"""
    kinds = list(dict.fromkeys(kind for need in needs for kind in _asked(need)))
    if not nodes:
        return "no nodes"
    largest = {kind: max(node.get(kind, 0) for node in nodes) for kind in kinds}
    if len(nodes) == 1:
        return f"1 node with {_amounts(largest)}"
    total = {kind: sum(node.get(kind, 0) for node in nodes) for kind in kinds}
    return f"{len(nodes)} nodes, the largest with {_amounts(largest)}, {_amounts(total)} in all"


def _amounts(resources: Resources) -> str:
    return " and ".join(_amount(kind, n) for kind, n in resources.items())


def _amount(kind: str, amount: float) -> str:
    amount = round(amount, 4)
    if kind == "memory":
        return f"{amount / 1e9:.3g} GB of memory"
    return f"{amount:g} {kind}{'' if amount == 1 else 's'}"


def wait_for_room(needs: Iterable[Need], advice: str, *, now: bool = True) -> None:
    """Return when all of `needs` fit on the cluster's nodes together; `now`: beside all that runs.

    Says what it waits for, and asks a cluster that grows by itself for the nodes that are missing:
    actors, which would make it grow, are not there yet. Raises InputError, with the numbers and
    `advice`, when it has waited long enough: at once for what a Ray of this machine does not have.
    """
    needs = list(needs)
    patience = patience_of(os.environ)
    started = time.monotonic()
    spoke = started + _QUIET_S - _LINE_EVERY_S
    asked = False
    try:
        while True:
            clock = time.monotonic()
            nodes = cluster_nodes()
            wait = decide(needs, nodes, patience, clock - started, now=now)
            if wait is None:
                return
            if wait.left <= 0:
                waited = (
                    f" (waited {clock - started:.0f} s, {WAIT})" if clock - started >= 1 else ""
                )
                raise InputError(f"{wait.missing}: {advice}{waited}")
            if not asked and shortage(needs, [node.total for node in nodes]):
                asked = True
                _ask_for_nodes(needs)
            if clock - spoke >= _LINE_EVERY_S:
                spoke = clock
                log.info("waiting: %s; %.0f s left", wait.missing, wait.left)
            time.sleep(min(1.0, wait.left))
    finally:
        if asked:  # nodes that came stay for their actors from now on
            _ask_for_nodes([])


def _ask_for_nodes(needs: Sequence[Need]) -> None:
    """Tell Ray's autoscaler, where there is one, what has to have a place at once."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(_asked(need)) for need in needs for _ in range(need.count)])


def patience_of(environment: Mapping[str, str]) -> Patience:
    """How long to wait. A cluster that was joined may grow; a Ray of this machine does not.

    Raises ConfigError for a DQ_WAIT_FOR_ROOM_S that is not a number of seconds.
    """
    written = environment.get(WAIT, "")
    if not written:
        return Patience(_DEFAULT_WAIT_S if joined_address(environment) else 0.0, _DEFAULT_WAIT_S)
    try:
        seconds = float(written)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{WAIT}={written}: expected a number of seconds, 0 or more")
    return Patience(seconds, seconds)


def cluster_nodes() -> list[Node]:
    """The nodes of the running Ray that are alive."""
    import ray
    from ray._private.state import available_resources_per_node  # the public one adds nodes up

    free = available_resources_per_node()
    return [
        Node(node["Resources"], free.get(node["NodeID"], {}))
        for node in ray.nodes()
        if node["Alive"]
    ]
