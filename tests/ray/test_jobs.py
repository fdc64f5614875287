"""Jobs submitted with `ray job submit --working-dir .` to a cluster that runs already."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.evaluate.config import EvaluateSettings
from dq_cluster.evaluate.version import evaluate_version
from dq_cluster.index.catalog import Index
from dq_cluster.index.models import list_models, read_card
from tests.seaweed import free_ports
from tests.support import make_vectors

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ROWS, DIM = 1200, 32


@dataclass(frozen=True)
class Head:
    """A running head node and the way to submit jobs to it."""

    address: str
    environment: dict[str, str]

    def submit(self, *entrypoint: str) -> str:
        """Run a job to its end and return what it printed. Fails the test if the job fails."""
        return self._submit("--", *entrypoint)

    def start(self, name: str, *entrypoint: str) -> None:
        """Submit a job and leave it running."""
        self._submit("--no-wait", "--submission-id", name, "--", *entrypoint)

    def stop(self, name: str) -> None:
        self._ray("job", "stop", "--address", self.address, name)

    def logs(self, name: str) -> str:
        return self._ray("job", "logs", "--address", self.address, name).stdout

    def _submit(self, *arguments: str) -> str:
        where = ("--address", self.address, "--working-dir", ".")
        limit = time.monotonic() + 240
        while True:
            done = self._ray("job", "submit", *where, *arguments)
            # The head answers before the agent that starts jobs does.
            early = "No available agent to submit job" in done.stderr
            if early and time.monotonic() < limit:
                continue
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

    def _ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "ray"), *arguments],
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    gcs, dashboard, agent, agent_grpc, metrics, runtime_env, client = free_ports(7)
    folder = tempfile.mkdtemp(prefix="dq-head-", dir="/tmp")  # socket paths must stay short
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    environment.pop("RAY_ADDRESS", None)
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=8",
        f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--metrics-export-port={metrics}", f"--runtime-env-agent-port={runtime_env}",
        f"--ray-client-server-port={client}", "--object-store-memory=300000000",
    ]  # fmt: skip
    with open(Path(folder) / "head.log", "wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        # Any answer will do: Ray asks for its token, which `ray job` sends by itself.
        _until(lambda: httpx.get(f"{address}/api/version").status_code < 500, 300)
        yield Head(address, environment)
    finally:
        process.send_signal(signal.SIGTERM)  # `ray start --block` ends its own processes
        try:
            process.wait(240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(240)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    flat = pa.array(make_vectors(ROWS, DIM).ravel(), pa.float32())
    table = pa.table(
        {
            "id": pa.array(range(ROWS), pa.int64()),
            "feature": pa.FixedSizeListArray.from_arrays(flat, DIM),
        }
    )
    pq.write_table(table, folder / "part-0.parquet", row_group_size=300)
    return folder


# A flat version, and one with cells and second codes.
FLAT, CELLS = (0, 0), (4, 64)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "kinds", [[CELLS], pytest.param([FLAT, CELLS], marks=pytest.mark.slow)], ids=["once", "twice"]
)
def test_train_encode_serve(
    head: Head, features: Path, tmp_path: Path, kinds: list[tuple[int, int]]
) -> None:
    index = Index.at(str(tmp_path / "index"))
    for attempt, (nlist, refine_bits) in enumerate(kinds, 1):
        head.submit(
            "python", "jobs/train.py", "--config", "configs/laptop/train.yaml",
            f"index={index.storage.uri}", f"features={features}", f"name=run{attempt}",
            "model.bits=16", "model.dim=16", "model.hidden=[32]", "model.components=16",
            "model.epochs=1", f"seed={attempt}", f"nlist={nlist}",
            f"model.refine_bits={refine_bits}",
        )  # fmt: skip
        models = list_models(index.storage)
        assert len(models) == attempt
        newest = next(m for m in models if read_card(index.storage, m).training["seed"] == attempt)
        printed = head.submit(
            "python", "jobs/encode.py", "--json", f"index={index.storage.uri}", f"model={newest}",
            "source.kind=features", f"source.uri={features}", "fragment_rows=300",
        )  # fmt: skip
        summary = next(json.loads(line) for line in printed.splitlines() if line.startswith("{"))
        assert summary["version"] == attempt
        assert index.manifest().rows == ROWS
        assert index.manifest().geometry.nlist == nlist
        assert index.manifest().geometry.refine_m * 8 == refine_bits
        _serve_and_search(head, index, attempt)
    asked = {"index": index.storage.uri, "database": str(features), "queries": str(features)}
    measured = evaluate_version(EvaluateSettings(**asked, max_queries=300))
    assert measured["recall@10 re-ranked"] > measured["recall@10"]


def _serve_and_search(head: Head, index: Index, version: int) -> None:
    (port,) = free_ports(1)
    name = f"serve-{version}"
    head.start(
        name, "python", "jobs/serve.py", f"index={index.storage.uri}", "shards=2", f"port={port}"
    )
    url = f"http://127.0.0.1:{port}"
    try:
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(lambda: print(head.logs(name)))
            _until(lambda: httpx.get(f"{url}/readyz").status_code == 200, 480)
            query = np.asarray(make_vectors(ROWS, DIM)[7], np.float64).tolist()
            request = {"vector": query, "k": 5, "nprobe": 1, "timeout_ms": 10_000}
            answer = httpx.post(f"{url}/v1/search", json=request, timeout=240)
            assert answer.status_code == 200, answer.text
            assert answer.json()["version"] == version
            assert answer.json()["coverage"] == 1.0
            assert 7 in [hit["id"] for hit in answer.json()["hits"][0]]
            on_failure.pop_all()
    finally:
        head.stop(name)


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if condition():
                return
        assert time.monotonic() < deadline, "not ready in time"
        time.sleep(0.2)
