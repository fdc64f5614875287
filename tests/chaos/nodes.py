"""Nodes of a Ray cluster as pods are: each with an address, ports, and a /tmp of its own.

They are network namespaces of this machine on one bridge; it takes root to make them.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.chaos.serve_chaos import until

BIN = Path(sys.executable).parent
_BRIDGE, _NET = "dqtest0", "10.213.77"
_GCS, _DASHBOARD, _HTTP, _REDIS = 6379, 8265, 8000, 6390


class Nodes:
    """A head without CPUs, and workers, started by `ray start` as KubeRay does it.

    environment: of the pods. redis: whether the cluster's state outlives its head.
    """

    def __init__(self, folder: Path, environment: dict[str, str], *, redis: bool = False) -> None:
        self.folder = folder
        self.environment = environment | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "RAY_AUTH_MODE": "disabled",
            "OMP_NUM_THREADS": "1",
        }
        self._places: dict[str, int] = {}
        self._started: list[subprocess.Popen[bytes]] = []
        self._redis = redis

    def __enter__(self) -> "Nodes":
        if os.geteuid() or not shutil.which("ip") or not self._bridged():
            pytest.skip("this machine gives no network namespaces: it takes root and iproute2")
        if self._redis:
            if not shutil.which("redis-server"):
                self.__exit__()
                pytest.skip("redis-server is not installed")
            where = ("--bind", f"{_NET}.1", "--port", str(_REDIS), "--dir", str(self.folder))
            command = ["redis-server", *where, "--protected-mode", "no", "--save", ""]
            self._started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._places):
            self.kill(name)
        for process in self._started:
            process.terminate()
            process.wait(60)
        _ip("link", "del", _BRIDGE)

    def _bridged(self) -> bool:
        if not _ip("link", "add", _BRIDGE, "type", "bridge"):
            return False
        _ip("addr", "add", f"{_NET}.1/24", "dev", _BRIDGE)
        return _ip("link", "set", _BRIDGE, "up")

    def address(self, name: str) -> str:
        return f"{_NET}.{self._places[name]}"

    def url(self, name: str) -> str:
        """Where a node's proxy of Serve answers."""
        return f"http://{self.address(name)}:{_HTTP}"

    def start(self, name: str, cpus: int = 0) -> None:
        """Start a node and wait until Ray counts it; `head` comes first, and may come again."""
        if name not in self._places:
            self._places[name] = 2 if name == "head" else 2 + len(self._places)
        place, space = self._places[name], f"dqtest-{name}"
        assert _ip("netns", "add", space)
        link = f"dqt{place}"
        _ip("link", "del", link)  # the kernel takes its time with that of a node that was killed
        assert _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        assert _ip("link", "set", link, "master", _BRIDGE, "up")
        for action in (
            ("addr", "add", f"{_NET}.{place}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", f"{_NET}.1"),  # by it Ray finds its own address
        ):
            assert _ip("-n", space, *action)
        head = f"{_NET}.2:{_GCS}"
        role = (
            ["--head", f"--port={_GCS}", "--dashboard-host=0.0.0.0"]
            if name == "head"
            else [f"--address={head}"]
        )
        own = tempfile.mkdtemp(dir=self.folder, prefix=name)
        for each in ("ray", "haproxy-serve"):
            Path("/tmp", each).mkdir(exist_ok=True)
            Path(own, each).mkdir()
        mounts = "".join(f"mount --bind {own}/{each} /tmp/{each} && " for each in os.listdir(own))
        command = [
            *("ray", "start", "--block", *role, f"--node-ip-address={_NET}.{place}"),
            *(f"--num-cpus={cpus}", "--object-store-memory=100000000", "--disable-usage-stats"),
        ]
        environment = dict(self.environment)
        if self._redis and name == "head":
            environment["RAY_REDIS_ADDRESS"] = f"{_NET}.1:{_REDIS}"
            environment["RAY_external_storage_namespace"] = "test"
        elif self._redis:  # as KubeRay sets it
            environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "600"
        with open(self.folder / f"{name}.log", "ab") as log:
            subprocess.Popen(
                ["ip", "netns", "exec", space, "sh", "-c", f"{mounts}exec {' '.join(command)}"],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(lambda: self._counted(name), 120)

    def _counted(self, name: str) -> bool:
        return any(
            node["raylet"].get("state") == "ALIVE" and node["ip"] == self.address(name)
            for node in self._summary()
        )

    def node_id(self, name: str) -> str:
        """Ray's name of a living node."""
        (found,) = [
            node["raylet"]["nodeId"]
            for node in self._summary()
            if node["ip"] == self.address(name) and node["raylet"].get("state") == "ALIVE"
        ]
        return str(found)

    def _summary(self) -> list[dict[str, Any]]:
        try:
            answer = httpx.get(f"{self._dashboard}/nodes?view=summary", timeout=10)
            return list(answer.json()["data"]["summary"])
        except (httpx.HTTPError, json.JSONDecodeError, KeyError):
            return []

    @property
    def _dashboard(self) -> str:
        return f"http://{_NET}.2:{_DASHBOARD}"

    def kill(self, name: str) -> None:
        """The node is gone at once, with everything on it, as when a machine fails."""
        space = f"dqtest-{name}"
        listed = ["ip", "netns", "pids", space]
        while pids := subprocess.run(listed, capture_output=True, text=True).stdout.split():
            for pid in pids:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)
        _ip("netns", "del", space)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Ray on the head."""
        inside = ["ip", "netns", "exec", "dqtest-head", *command]
        environment = self.environment | {"RAY_ADDRESS": f"{_NET}.2:{_GCS}"}
        return subprocess.run(inside, env=environment, capture_output=True, text=True, timeout=240)

    def deploy(self, config: dict[str, Any]) -> None:
        """As KubeRay's operator does: the Serve configuration, given to the head's dashboard."""
        path = self.folder / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        done = self.run("serve", "deploy", "-a", self._dashboard, str(path))
        assert done.returncode == 0, done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        """Serve's view of the application; empty where the head does not answer."""
        try:
            answer = httpx.get(f"{self._dashboard}/api/serve/applications/", timeout=10)
            return dict(answer.json()["applications"]["dq-cluster"])
        except (httpx.HTTPError, json.JSONDecodeError, KeyError):
            return {}

    def replicas(self, deployment: str) -> list[str]:
        """The addresses of the nodes on which replicas of `deployment` run."""
        found = self.status().get("deployments", {}).get(deployment, {})
        return [each["node_ip"] for each in found.get("replicas", []) if each["state"] == "RUNNING"]

    def is_up(self) -> bool:
        status = self.status()
        deployments = status.get("deployments", {}).values()
        return status.get("status") == "RUNNING" and all(
            each["status"] == "HEALTHY" for each in deployments
        )


def _ip(*arguments: str) -> bool:
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0
