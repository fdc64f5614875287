"""What a training keeps on its nodes, and how it says how far it is."""

import fcntl
import json
import logging
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from dq_cluster.errors import StorageError
from dq_cluster.images.features import open_features
from dq_cluster.storage import Storage
from dq_cluster.training import node, trainer
from dq_cluster.training.rows import TrainingRows
from dq_cluster.training.split import Split
from tests.interleave import Watched
from tests.unit.test_demo import write_features


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's temporary folder."""
    monkeypatch.setattr(node.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


def fill(folder: Path) -> None:
    rows = np.arange(6, dtype="float32").reshape(3, 2)
    node.mapped(folder / "features.npy", (3, 2), "float32", lambda: [(slice(0, 3), rows)])


def test_a_failed_job_finds_its_copy_and_another_job_removes_it(disk: Path) -> None:
    with node.node_folder("first") as folder:
        fill(folder)
    with node.node_folder("first") as again:
        assert (again / "features.npy").exists()
    with node.node_folder("second"):
        assert not folder.exists()


def test_a_copy_in_use_stays(disk: Path) -> None:
    with node.node_folder("first") as first, node.node_folder("first") as shared:
        fill(first)
        with node.node_folder("second"):
            assert (shared / "features.npy").exists()


def test_the_copy_of_a_killed_process_is_removed(disk: Path) -> None:
    code = (
        "import os, signal, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from dq_cluster.training import node\n"
        "with node.node_folder('killed') as folder:\n"
        "    (folder / 'features.npy').write_bytes(b'x')\n"
        "    print(folder, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(disk)], stdout=subprocess.PIPE)
    folder = Path(killed.stdout.decode().strip())
    assert folder.exists()
    with node.node_folder("another"):
        assert not folder.exists()


def test_a_copy_that_is_being_removed_is_waited_for(disk: Path) -> None:
    with node.node_folder("first") as folder:
        fill(folder)
    entered = threading.Event()

    def work() -> None:
        with node.node_folder("first"):
            entered.set()

    with open(folder.with_suffix(".in-use"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=work)
        thread.start()
        node.forget(folder)
        assert not entered.is_set()
    thread.join(30)
    assert entered.is_set()
    assert folder.is_dir()


def test_rows_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_features(tmp_path / "features", 500)
    features = open_features(str(tmp_path / "features"))
    rows = TrainingRows(features, Split(features.rows, 0.1, seed=0))
    before = repr(rows)
    counted = []
    training = Split.training

    def counting(self: Split) -> np.ndarray:
        counted.append(1)
        return training(self)

    monkeypatch.setattr(Split, "training", counting)
    assert rows.count == rows.count == len(training(rows.split))
    assert len(counted) == 1
    assert repr(rows) == before  # a node knows its copy by it
    assert pickle.loads(pickle.dumps(rows)) == rows


def test_progress_goes_on_after_storage_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trainer, "_LOOK_EVERY", 0.001)
    caplog.set_level(logging.INFO)
    failed, failures = threading.Event(), [StorageError("busy"), StorageError("still busy")]

    def before(operation: str, name: str) -> None:
        if operation == "list" and failures:
            raise failures.pop(0)
        failed.set()

    storage = Storage(str(tmp_path))

    def finish(epoch: int) -> None:
        found = {"terms": {"loss": 1.0}, "perplexity": 9.0, "variance": 1.0, "samples_per_s": 5.0}
        card = {"epoch": epoch, "history": [found | {"seconds": 1.0}] * epoch}
        storage.write(f"epoch-{epoch:05d}.json", json.dumps(card).encode())

    with trainer._progress(Watched(str(tmp_path), before), 0, 2):
        assert failed.wait(240)
        finish(1)
        finish(2)
    assert [m.partition(",")[0] for m in caplog.messages if m.startswith("epoch")] == [
        "epoch 1/2",
        "epoch 2/2",
    ]
    assert caplog.messages[:2] == [
        "cannot see how far training is: busy",
        "cannot see how far training is: still busy",
    ]
