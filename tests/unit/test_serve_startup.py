"""What `serve` checks before it starts, and what it says while it does."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from ray.exceptions import RayTaskError
from ray.serve.schema import DeploymentStatusOverview

from dq_cluster.errors import ConfigError, DqError, NotFoundError
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.startup import check_ports, not_up, wait_until_up


@pytest.fixture
def other() -> Iterator[int]:
    """A port that something listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_port_that_is_taken(other: int) -> None:
    settings = ServeSettings(index="/x", port=other)
    with pytest.raises(ConfigError, match=rf"port {other} of 127\.0\.0\.1 is taken .* port=PORT"):
        check_ports(settings)
    with pytest.raises(ConfigError, match=rf"port {other} .* with grpc_port=PORT"):
        check_ports(ServeSettings(index="/x", port=0, grpc_port=other))
    with pytest.raises(ConfigError, match="are both 8000"):
        check_ports(ServeSettings(index="/x", grpc_port=8000))
    with pytest.raises(ConfigError, match="an address that this machine does not have"):
        check_ports(ServeSettings(index="/x", host="203.0.113.77"))
    check_ports(ServeSettings(index="/x", port=0))


def _deployment(status: str, message: str = "") -> DeploymentStatusOverview:
    return DeploymentStatusOverview(status, "CONFIG_UPDATE_STARTED", {}, message)


def test_what_is_not_up_is_named() -> None:
    assert not_up({}) == "Serve itself is not up"
    up = _deployment("HEALTHY")
    assert not_up({"Router": up}) == "all deployments are up, Serve's proxies are not"
    stack = 'Traceback\n File "x"\ndq_cluster.errors.IntegrityError: shard 0 refused version 1\n'
    found = {"Shard0": _deployment("UPDATING", stack), "Router": _deployment("UPDATING"), "V": up}
    assert not_up(found) == (
        "2 of 3 deployments are not up (Shard0, Router); Shard0: shard 0 refused version 1"
    )
    many = {f"Shard{n}": _deployment("UPDATING", "no\nCPU") for n in range(9)}
    assert not_up(many).endswith("Shard3, Shard4, …); Shard0: no CPU")


def test_a_start_that_takes_too_long_says_what_was_missing() -> None:
    status = {"Shard0": _deployment("UPDATING", "no room"), "Router": _deployment("HEALTHY")}
    with pytest.raises(
        DqError, match=r"did not start in 0 s \(load_timeout_s\): 1 of 2 .* no room"
    ):
        wait_until_up(Future(), lambda: status, 0)


def test_a_serve_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dq_cluster.serve.startup._ANSWER_S", 0.1)
    for_ever = threading.Event()
    with pytest.raises(DqError, match="Serve itself does not answer"):
        wait_until_up(Future(), lambda: {"x": for_ever.wait()}, 0)
    for_ever.set()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError("Deploying failed: stack\ndq_cluster.errors.IntegrityError: codes\n"),
            "serving could not start: codes",
        ),
        (RuntimeError("Deploying failed"), "serving could not start: Deploying failed"),
        (TimeoutError("HTTP proxies not available after 60s."), "not available after 60s"),
        (NotFoundError("no version 9"), "^no version 9$"),
        (
            RayTaskError("f", "Traceback\nOSError: port 80", OSError("port 80")),
            "serving could not start: a worker failed with OSError: port 80; its stack is in /",
        ),
    ],
)
def test_what_ends_a_start_is_one_line(error: Exception, line: str) -> None:
    deployed: Future[None] = Future()
    deployed.set_exception(error)
    with pytest.raises(DqError, match=line):
        wait_until_up(deployed, dict, 60)
