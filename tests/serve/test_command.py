"""`dq-cluster serve` as a user starts it: its own Ray, throughput switches, one line of output."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dq_cluster.client import Client
from dq_cluster.serve.security import AuthenticationError
from tests.support import make_model, make_version


@pytest.mark.slow
def test_serve_until_terminated(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    make_version(uri, make_model(uri), rows=600, files=4)
    command = ["serve", "--json", f"index={uri}", "shards=2", "cpus=0.5", "port=0"]
    # A proxy that does not answer: neither Serve's processes nor gRPC may go through it.
    proxies = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    process = subprocess.Popen(
        [sys.executable, "-c", "from dq_cluster.cli import main; main()", *command],
        stdout=subprocess.PIPE,
        env=os.environ | proxies | {"DQ_API_KEYS": hashlib.sha256(b"sesame").hexdigest()},
        cwd=tmp_path,
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["version"] == 1
        with Client(ready["url"], api_key="sesame") as client, Client(uri) as local:
            found = client.search(id=5, k=3)
            assert found.hits == local.search(id=5, k=3).hits
            assert found.shards == 2
        with Client(ready["url"]) as stranger, pytest.raises(AuthenticationError):
            stranger.search(id=5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=240) == 0
    finally:
        process.kill()
        process.wait()
