"""What all processes of this node record, in one answer for Prometheus.

Each process that calls `expose` serves its own metrics on a loopback port and notes the port in a
folder of its Ray node. `gather` asks every process in that folder. Where DQ_METRICS_PORT is set,
one process of the node serves the whole there; when it ends, another one takes the port over.
Why it is done this way: docs/decisions/0015-metrics-per-node.md.
"""

import atexit
import contextlib
import errno
import functools
import itertools
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from dq_cluster.errors import ConfigError
from dq_cluster.observe.metrics import REGISTRY

logger = logging.getLogger(__name__)

_PATIENCE_S = 5  # for one process; Prometheus itself waits 10 seconds for the answer
_TAKE_OVER_S = 1  # how often a process tries whether the node's port is free
_AT_ONCE = 32  # processes asked


@dataclass(frozen=True)
class Process:
    """A process that records: who it is, what it does, and the loopback port it answers at.

    A pid alone is used again; with the time it was started (in the kernel's ticks) it is not.
    """

    pid: int
    started: int
    port: int
    name: str

    @property
    def file(self) -> str:
        """The file that registers it: everything is in the name, so none is ever half written."""
        return f"{self.pid}-{self.started}-{self.port}-{self.name}"

    @classmethod
    def of_file(cls, file: str) -> "Process | None":
        match = re.fullmatch(r"(\d+)-(\d+)-(\d+)-(\w+)", file)
        return cls(int(match[1]), int(match[2]), int(match[3]), match[4]) if match else None

    @property
    def alive(self) -> bool:
        return _started(self.pid) == self.started


@dataclass
class _Here:
    """This process: what it is called, and the file that registers it on its node."""

    name: str = "local"
    file: Path | None = None

    def leave(self) -> None:
        if self.file is not None:
            self.file.unlink(missing_ok=True)
            self.file = None


_here = _Here()
atexit.register(_here.leave)


def expose(name: str) -> None:
    """From now on the node's answer has what this process records, as `process="<name>"`.

    Call it where Ray runs; again after Ray was started anew. Where it cannot be done the work goes
    on without, and a warning says so. Raises ConfigError for a DQ_METRICS_PORT that is no port.
    """
    port = _node_port()
    try:
        register(name, _node_folder())
    except OSError as error:
        logger.warning("metrics of this process cannot be read", extra={"why": str(error)})
        return
    if port is not None:
        serve_node(port)


def exposition(accept: str | None) -> tuple[bytes, str]:
    """The metrics of this node as a caller accepts them, and their media type.

    Without `expose`, as outside of Ray, they are those of this process.
    """
    encode, media_type = choose_encoder(accept or "")
    return encode(_registry(gather)), media_type


def gather() -> list[Metric]:
    """Every metric of this node, each sample with the process that recorded it.

    A process that does not answer within a few seconds is left out, and a warning says so.
    """
    answers = [own()]
    folder = _here.file.parent if _here.file else None
    others = [each for each in registered(folder) if each.pid != os.getpid()] if folder else []
    if others:
        with ThreadPoolExecutor(min(len(others), _AT_ONCE)) as pool:
            answers += pool.map(_ask, others)
    families: dict[str, Metric] = {}
    for family in itertools.chain(*answers):
        whole = Metric(family.name, family.documentation, family.type)
        families.setdefault(family.name, whole).samples += family.samples
    return list(families.values())


def own() -> list[Metric]:
    """What this process has recorded, each sample with `pid` and `process`."""
    who = {"pid": str(os.getpid()), "process": _here.name}
    families = []
    for family in REGISTRY.collect():
        family.samples = [s._replace(labels={**s.labels, **who}) for s in _recorded(family)]
        if family.samples:
            families.append(family)
    return families


def registered(folder: Path) -> list[Process]:
    """The living processes in a folder; what the dead have left there is removed."""
    processes = []
    for file in sorted(os.listdir(folder)) if folder.is_dir() else []:
        process = Process.of_file(file)
        if process is not None and process.alive:
            processes.append(process)
        elif process is not None:
            (folder / file).unlink(missing_ok=True)
    return processes


class _Source(Collector):
    """Metrics that a function returns, as prometheus-client's server and encoders take them."""

    def __init__(self, collect: Callable[[], list[Metric]]) -> None:
        self._collect = collect

    def describe(self) -> Iterable[Metric]:
        return REGISTRY.collect()

    def collect(self) -> Iterable[Metric]:
        return self._collect()


def _registry(collect: Callable[[], list[Metric]]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Source(collect))
    return registry


def _recorded(family: Metric) -> list[Sample]:
    """The samples of a family; none where the process has never recorded it.

    prometheus-client shows a metric without labels from the start. A router is not a run that has
    encoded no image. When a series was created is left out: it would double their number.
    """
    samples = [s for s in family.samples if not s.name.endswith("_created")]
    if family.type == "gauge":
        return [s for s in samples if s.labels or not math.isnan(s.value)]
    return samples if any(s.value for s in samples) else []


def _ask(process: Process) -> list[Metric]:
    connection = HTTPConnection("127.0.0.1", process.port, timeout=_PATIENCE_S)
    try:
        with contextlib.closing(connection):
            connection.request("GET", "/metrics", headers={"Accept": CONTENT_TYPE_LATEST})
            text = connection.getresponse().read().decode()
        return list(text_string_to_metric_families(text))
    except (OSError, HTTPException, ValueError) as error:
        if process.alive:  # it may have ended while it was asked
            about = {"kind": process.name, "pid": process.pid, "why": repr(error)}
            logger.warning("a process does not tell its metrics", extra=about)
        return []


def register(name: str, folder: Path | None) -> None:
    """Put this process, which may have had another name, into `folder`. Raises OSError."""
    _here.leave()
    _here.name = name
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        me = Process(os.getpid(), _started(os.getpid()) or 0, _own_port(), name)
        (folder / me.file).touch()
        _here.file = folder / me.file


def _node_folder() -> Path | None:
    """The folder of the Ray node that this process is on; None where Ray does not run here.

    It is in the folder of Ray's session, which all processes of the node know, whatever their
    TMPDIR; the node's id keeps apart two nodes on one machine.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    node = ray._private.worker._global_node
    if node is None:  # Ray's client: the nodes are on other machines
        return None
    id = ray.get_runtime_context().get_node_id()
    return Path(node.get_session_dir_path(), "dq_metrics", id)


@functools.cache
def _own_port() -> int:
    """The loopback port at which this process serves its own metrics."""
    server, _ = start_http_server(0, addr="127.0.0.1", registry=_registry(own))
    return int(server.server_port)


def _node_port() -> int | None:
    text = os.environ.get("DQ_METRICS_PORT", "")
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise ConfigError(f"DQ_METRICS_PORT={text}: expected a port, 1 to 65535")
    return int(text)


@functools.cache
def serve_node(port: int) -> None:
    """Serve the node's metrics at `port`, now or when the process that does so ends."""
    threading.Thread(target=_take_port, args=(port,), name="metrics", daemon=True).start()


def _take_port(port: int) -> None:
    while True:
        try:
            start_http_server(port, registry=_registry(gather))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                about = {"port": port, "why": str(error)}
                logger.warning("metrics of this node cannot be served", extra=about)
                return
        time.sleep(_TAKE_OVER_S)


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was; None if it does not live."""
    try:
        # The name of the program, in parentheses, may itself hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    ended = fields[0] in ("Z", "X")  # but nobody has asked how
    return None if ended else int(fields[19])
