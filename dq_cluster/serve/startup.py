"""Waiting for Ray Serve to have everything up, and saying what it waits for."""

import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from ray.exceptions import RayError

from dq_cluster.cluster import in_thread
from dq_cluster.cluster.failures import error_in, plain, reason_in
from dq_cluster.cluster.room import Need
from dq_cluster.errors import ConfigError, DqError
from dq_cluster.serve.config import ServeSettings

log = logging.getLogger(__name__)

_LINE_EVERY_S = 10.0
_ANSWER_S = 5.0
_NAMED = 5  # deployments in a line
_PORT_ERRORS = {
    errno.EADDRINUSE: "is taken by another program",
    errno.EACCES: "needs rights that this user lacks",
    errno.EADDRNOTAVAIL: "is at an address that this machine does not have",
}


def needs(settings: ServeSettings) -> list[Need]:
    """What the application asks of the cluster; Serve's own actors take no CPUs."""
    shard = {"CPU": settings.cpus, "GPU": settings.gpus}
    return [
        Need("replicas of shards", settings.shards * settings.replicas, shard),
        Need("routers", settings.routers, {"CPU": settings.cpus}),
    ]


def check_ports(settings: ServeSettings) -> None:
    """Raise ConfigError where this machine cannot listen at the ports that are named."""
    if settings.port and settings.port == settings.grpc_port:
        raise ConfigError(f"port and grpc_port are both {settings.port}: choose two")
    for option, host, port in (
        ("port", settings.host, settings.port),
        ("grpc_port", "0.0.0.0", settings.grpc_port),
    ):
        if port:
            _check_port(option, host, port)


def _check_port(option: str, host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise ConfigError(f"host {host}: {error.strerror}") from None
    except OSError as error:
        why = _PORT_ERRORS.get(error.errno or 0, os.strerror(error.errno or 0))
        raise ConfigError(
            f"port {port} of {host} {why}; choose another with {option}=PORT"
            + (", or any free one with port=0" if option == "port" else "")
        ) from None


def wait_until_up(
    deployed: Future[None], status: Callable[[], Mapping[str, Any]], limit_s: float
) -> None:
    """Return when `deployed` is done; meanwhile say every ten seconds what is not up.

    `status` gives Serve's view of each deployment by name. Raises what it was that failed, and
    DqError when `limit_s` seconds are not enough.
    """
    started = spoke = time.monotonic()
    while True:
        with contextlib.suppress(TimeoutError):
            return _check(deployed.exception(timeout=1))
        now = time.monotonic()
        if now - started >= limit_s:
            raise DqError(
                f"serving did not start in {limit_s:g} s (load_timeout_s): {_state(status)}"
            )
        if now - spoke >= _LINE_EVERY_S:
            spoke = now
            left = limit_s - (now - started)
            log.info("waiting: %s; %.0f s left", _state(status), left)


def _state(status: Callable[[], Mapping[str, Any]]) -> str:
    """What is not up; the process that knows may hang too."""
    try:
        return not_up(in_thread(status).result(_ANSWER_S))
    except (TimeoutError, RayError):
        return "Serve itself does not answer"


def _check(error: BaseException | None) -> None:
    """Raise what ended the deployment, as one line."""
    if error is None:
        return
    if isinstance(error, DqError):
        raise error
    why = error_in(str(error)) or (
        plain(error) if isinstance(error, RayError) else reason_in(str(error))
    )
    raise DqError(f"serving could not start: {why}") from error


def not_up(deployments: Mapping[str, Any]) -> str:
    """`2 of 6 deployments are not up (Shard0, Router); Shard0: …`, from Serve's view of them."""
    missing = [name for name, deployment in deployments.items() if deployment.status != "HEALTHY"]
    if not deployments:
        return "Serve itself is not up"
    if not missing:
        return "all deployments are up, Serve's proxies are not"
    named = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
    line = f"{len(missing)} of {len(deployments)} deployments are not up ({named})"
    reasons = [(name, deployments[name].message) for name in missing]
    why = next((f"; {name}: {_short(text)}" for name, text in reasons if text), "")
    return line + why


def _short(text: str) -> str:
    """One line of Serve's message: what a replica raised, or all of it where that is an account."""
    error = error_in(text)
    return str(error) if error else " ".join(text.split())
