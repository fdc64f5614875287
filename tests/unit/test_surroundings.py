"""What Ray needs of the machine, asked before Ray starts."""

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from dq_cluster.cluster import start_local
from dq_cluster.cluster.surroundings import bypass_proxies, bypasses, check_joined, check_local
from dq_cluster.errors import ConfigError


def test_without_a_proxy_nothing_changes() -> None:
    assert bypasses({"no_proxy": "a"}, ["10.0.0.1"]) == {}
    assert bypasses({"http_proxy": ""}, ["10.0.0.1"]) == {}


@pytest.mark.parametrize("proxy", ["http_proxy", "HTTPS_PROXY", "grpc_proxy", "all_proxy"])
def test_the_cluster_is_spared_every_proxy(proxy: str) -> None:
    found = bypasses(
        {proxy: "http://127.0.0.1:9", "no_proxy": "a, localhost", "NO_PROXY": "b"},
        ["10.0.0.1", "fe80::1%eth0"],
    )
    merged = "a,localhost,b,127.0.0.1,::1,10.0.0.1,fe80::1"
    assert found == {"no_proxy": merged, "NO_PROXY": merged}


def test_grpc_reads_its_own_list_where_there_is_one() -> None:
    found = bypasses({"http_proxy": "http://p", "no_grpc_proxy": "c"}, [])
    assert found["no_grpc_proxy"] == "c,localhost,127.0.0.1,::1"


def test_this_machine_is_known_by_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    bypass_proxies(["10.9.8.7"])
    names = os.environ["no_proxy"].split(",")
    assert {"127.0.0.1", "10.9.8.7", socket.gethostname()} <= set(names)
    assert len(names) == len(set(names))


@pytest.fixture
def other() -> Iterator[int]:
    """A port that something listens on that is not Ray."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("http://127.0.0.1:8265", "an http address is for `ray job submit`"),
        ("127.0.0.1", "expected HOST:PORT"),
        ("127.0.0.1:", "expected HOST:PORT"),
        ("127.0.0.1:99999", "no Ray answers there"),
        ("127.0.0.1:1", "no Ray answers there .*refused"),
        ("ray://127.0.0.1:1", "no Ray answers there"),
    ],
)
def test_an_address_that_is_none(address: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check_joined(address)


def test_an_address_of_something_else(other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dq_cluster.cluster.surroundings._CONNECT_S", 0.2)
    with pytest.raises(ConfigError, match="what answers there is not Ray"):
        check_joined(f"127.0.0.1:{other}")


def test_a_folder_too_long_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("a" * 60)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long))
    with pytest.raises(ConfigError, match=r"sockets allow 39; set RAY_TMPDIR to a shorter one"):
        check_local()
    assert not long.exists()


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/proc")
    with pytest.raises(ConfigError, match=r"/proc/ray .* cannot be written: No such file"):
        check_local()


def test_too_few_open_files() -> None:
    # The limit only ever goes down, so in a process of its own.
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100));"
        "from dq_cluster.cluster.surroundings import check_local; check_local()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "the limit of open files is 100, and Ray needs 512" in done.stderr


def test_a_soft_limit_is_raised() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= 512
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, {hard}));"
        "from dq_cluster.cluster.surroundings import check_local; check_local();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "512\n", done.stderr


def test_without_a_home_this_ray_has_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/x")
    check_local()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.delenv("RAY_AUTH_TOKEN")


def test_ray_that_starts_too_slowly_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own limit cannot be passed on purpose, so its answer is given in its place."""
    late = Exception("The current node timed out during startup. This could happen because …")
    answers: list[Exception | None] = [late, late, None]

    def init(**options: Any) -> None:
        assert options["num_cpus"] == 3
        if (answer := answers.pop(0)) is not None:
            raise answer

    monkeypatch.setattr(ray, "init", init)
    start_local(3)
    assert not answers
    answers += [late, late, late, None]
    with pytest.raises(Exception, match="timed out during startup"):
        start_local(3)
    assert answers == [None]
    answers[:] = [ValueError("a wrong option"), None]
    with pytest.raises(ValueError, match="a wrong option"):
        start_local(3)
    assert answers == [None]
