"""Commands as a user starts them: signals at several moments, and what the machine lacks.

Each has a Ray of its own, so that all that it started can be seen to be gone.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray  # noqa: F401  its import makes psutil's possible

from dq_cluster.index.catalog import Index
from dq_cluster.index.models import list_models
from dq_cluster.storage import Storage
from dq_cluster.training.checkpoint import checkpoint_epochs
from tests.support import FEATURE_DIM, make_model, make_vectors, make_version

psutil = importlib.import_module("psutil")

pytestmark = pytest.mark.ray

ROWS = 600
BOUND_S = 60  # from the signal to the end, on a loaded machine


class Command:
    """A running `dq-cluster`; what it prints is in `log`."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self._log = folder / "log"
        inherited = {n: v for n, v in os.environ.items() if n != "RAY_ADDRESS"}
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from dq_cluster.cli import main; main()", *arguments],
                stdout=log,
                stderr=log,
                env=inherited | environment,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def started(self) -> list[Any]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def has(self, name: str) -> bool:
        """Whether a process whose command line contains `name` runs below this one."""
        for process in self.started():
            try:
                if name in " ".join(process.cmdline()):
                    return True
            except psutil.Error:
                continue
        return False

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not condition():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def end(self, number: signal.Signals) -> int:
        """Send a signal; the exit status, all that was started being gone too."""
        started = self.started()
        self.process.send_signal(number)
        status = self.process.wait(BOUND_S)
        _, alive = psutil.wait_procs(started, timeout=BOUND_S)
        assert not alive
        assert "Traceback" not in self.log
        assert self.log.count(f"{number.name}: stopping") == 1, self.log
        return status


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    commands: list[Command] = []

    def start(*arguments: str, **environment: str) -> Command:
        commands.append(Command(tmp_path, *arguments, **environment))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:
            for process in command.started():
                process.kill()
            command.process.kill()
            command.process.wait()


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    flat = pa.array(make_vectors(ROWS, FEATURE_DIM).ravel().astype(np.float32))
    columns = {
        "id": pa.array(range(ROWS), pa.int64()),
        "feature": pa.FixedSizeListArray.from_arrays(flat, FEATURE_DIM),
    }
    pq.write_table(pa.table(columns), folder / "part-0.parquet", row_group_size=2)
    return folder


def encode(index: str, features: Path) -> list[str]:
    digest = make_model(index).digest
    source = ["source.kind=features", f"source.uri={features}"]
    return ["encode", f"index={index}", f"model={digest}", "run=r", *source, "fragment_rows=2"]


def test_while_ray_starts(run: Callable[..., Command], features: Path, tmp_path: Path) -> None:
    command = run(*encode(str(tmp_path / "index"), features))
    command.until(lambda: command.has("gcs_server"))
    assert command.end(signal.SIGINT) == 130


@pytest.mark.slow
def test_while_encoding_and_the_same_command_continues(
    run: Callable[..., Command], features: Path, tmp_path: Path
) -> None:
    index = str(tmp_path / "index")
    arguments = encode(index, features)
    ledger = tmp_path / "index" / "runs" / "r" / "ledger"
    # A proxy that does not answer stands between nothing and nothing.
    command = run(*arguments, http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")
    command.until(lambda: ledger.exists() and any(ledger.iterdir()))
    assert command.end(signal.SIGTERM) == 143
    assert not Index.at(index).versions()
    done = len(list(ledger.iterdir()))
    again = run(*arguments)
    assert again.process.wait(240) == 0, again.log
    assert f"continuing: {done} of " in again.log
    assert Index.at(index).manifest().rows == ROWS


@pytest.mark.slow
def test_while_training(run: Callable[..., Command], features: Path, tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    model = "bits=16 dim=16 hidden=[16] components=16 neighbours=10 epochs=1000"
    command = run(
        "train", f"index={index}", f"features={features}", "name=t",
        *(f"model.{setting}" for setting in model.split()),
    )  # fmt: skip
    checkpoints = Storage(f"{index}/runs/t/train/checkpoints")
    command.until(lambda: max(checkpoint_epochs(checkpoints), default=0) > 1)
    assert command.end(signal.SIGINT) == 130
    assert not list_models(Storage(index))


@pytest.mark.slow
def test_while_serve_starts(run: Callable[..., Command], tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    make_version(index, make_model(index), rows=300, files=2)
    command = run("serve", f"index={index}", "shards=2", "cpus=0.5", "port=0")
    command.until(lambda: command.has("ServeController"))
    assert command.end(signal.SIGINT) == 130
    assert "url:" not in command.log
