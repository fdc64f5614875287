"""Serving from this process: start Ray Serve, deploy the application, stop it again."""

import contextlib
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dq_cluster.cluster import in_thread
from dq_cluster.cluster.noise import quiet_loggers
from dq_cluster.cluster.room import wait_for_room
from dq_cluster.cluster.surroundings import joined_address
from dq_cluster.errors import DqError
from dq_cluster.index.catalog import Index
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.startup import check_ports, needs, wait_until_up

APPLICATION = "dq-cluster"
_PORTS = range(20_000, 32_000)
_SHUTDOWN_S = 120.0


def fast_serve() -> None:
    """Turn on Serve's throughput switches; only works before Ray is started or joined.

    HAProxy instead of the Python proxy, one event loop per replica, fewer rounds when idle.
    HAProxy's own ports are moved to free ones: their defaults collide when two Rays share a
    machine. What the environment already says is kept, and a cluster that is joined (RAY_ADDRESS)
    has its switches from its own nodes.
    """
    if joined_address(os.environ):
        return
    os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    # Searches may be asked twice: one whose router is killed goes to another.
    os.environ.setdefault("RAY_SERVE_HAPROXY_RETRY_ON", "conn-failure empty-response")
    # Serve looks after its replicas ten times a second, and they report their metrics as often:
    # idle, that is half of what a small service uses.
    os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_SERVE_METRICS_EXPORT_INTERVAL_MS", "5000")
    # No load balancer stands before this Serve that would need time to notice its end.
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "1")
    os.environ.setdefault("RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S", "1")
    os.environ.setdefault("RAY_SERVE_HAPROXY_METRICS_PORT", str(free_port("")))
    os.environ.setdefault("RAY_SERVE_HAPROXY_STATS_PORT", str(free_port("")))


@contextlib.contextmanager
def serving(settings: ServeSettings) -> Iterator[str]:
    """Serve inside the block; yields the URL. Ray must be running.

    Raises NotFoundError for an index without that version, and DqError where a replica cannot
    start.
    """
    Index.at(settings.index).manifest(settings.version)

    if not joined_address(os.environ):
        check_ports(settings)
    # What others hold now, Serve's own account of the start names; it may be what this replaces.
    wait_for_room(needs(settings), "lower shards, replicas, routers, cpus or gpus", now=False)
    port = settings.port or free_port(settings.host)
    try:
        deployed = in_thread(lambda: _deploy(settings, port))
        wait_until_up(deployed, _status, settings.load_timeout_s)
        yield f"http://{settings.host}:{port}"
    finally:
        # A Serve that hangs ends with the Ray that this process started.
        with contextlib.suppress(TimeoutError):
            in_thread(_shut_down).result(_SHUTDOWN_S)


def _deploy(settings: ServeSettings, port: int) -> None:
    """Start Serve and return when the application runs."""
    from ray import serve

    quiet_loggers()

    from dq_cluster.serve.app import build

    grpc_options = None
    if settings.grpc_port:
        from dq_cluster.serve.grpc import SERVICER

        grpc_options = {"port": settings.grpc_port, "grpc_servicer_functions": [SERVICER]}
    serve.start(http_options={"host": settings.host, "port": port}, grpc_options=grpc_options)
    # Relative paths mean the folder of this process; replicas run in others.
    absolute = {"index": Index.at(settings.index).storage.uri}
    application = build(settings.model_copy(update=absolute).model_dump())
    serve.run(application, name=APPLICATION, route_prefix="/")


def _shut_down() -> None:
    """End Serve and return when it is gone: it would take the next one's processes with it."""
    import ray
    from ray import serve
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    serve.shutdown()  # waits for 30 seconds at most, and goes on by itself after that
    with contextlib.suppress(ValueError):  # there is none
        while ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE):
            time.sleep(0.1)


def _status() -> Mapping[str, Any]:
    """Serve's view of each deployment; empty while it has none."""
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    return application.deployments if application else {}


def serve_forever(settings: ServeSettings, on_ready: Callable[[dict[str, Any]], None]) -> None:
    """Serve until a signal comes; `on_ready` gets where and what.

    SIGINT and SIGTERM end a start that is under way as they end any other command; from then on
    they are what this waits for.
    """
    with serving(settings) as url:
        version = Index.at(settings.index).manifest(settings.version).version
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        on_ready({"url": url, "index": settings.index, "version": version})
        stop.wait()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on, of those that neither Ray nor the kernel hands out.

    What binds it starts seconds later; a port from the kernel's own range could be taken by then,
    by any outgoing connection.
    """
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise DqError(f"no free port among 100 tried in {_PORTS.start}-{_PORTS.stop}; name one")
