"""A worker of a neighbours run that is killed at any moment: the result is the same to the byte."""

import multiprocessing
import random
import time
from pathlib import Path

import numpy as np
import pytest

from dq_cluster.fragments.ledger import Ledger
from dq_cluster.knn.config import NeighboursSettings
from dq_cluster.knn.finder import FindJob, NeighbourFinder
from dq_cluster.storage import Storage
from tests.support import make_index

ROWS, FRAGMENT = 6000, 250
DEADLINE_S = 120


def work(settings: NeighboursSettings) -> None:
    """What Ray has a worker do: all fragments, those that the ledger has too."""
    job = FindJob(settings, 1, ROWS, 1, Storage(settings.output))
    numbers = np.arange(ROWS // FRAGMENT)
    for _ in NeighbourFinder(job)({"fragment": numbers}):
        pass


def result(output: str) -> list[str]:
    """The digests of the files that count, in order of the fragments."""
    receipts = list(Ledger(Storage(output), "").receipts())
    assert [receipt.fragment for receipt in receipts] == list(range(ROWS // FRAGMENT))
    for receipt in receipts:
        for file in receipt.files:
            assert (Path(output) / file.path).stat().st_size == file.size
    return [file.sha256 for receipt in receipts for file in receipt.files]


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_points(tmp_path: Path, kills: int) -> None:
    index, version, _ = make_index(str(tmp_path / "index"), rows=ROWS, files=4, nlist=16)
    asked = {"index": index.storage.uri, "k": 10, "nprobe": 4, "fragment_rows": FRAGMENT}
    whole = NeighboursSettings(output=str(tmp_path / "whole"), **asked)
    work(whole)
    broken = NeighboursSettings(output=str(tmp_path / "broken"), **asked)
    rng, spawn = random.Random(kills), multiprocessing.get_context("spawn")
    fragments, died = ROWS // FRAGMENT, 0
    ledger = Ledger(Storage(broken.output), "")
    for kill in range(kills):
        worker = spawn.Process(target=work, args=(broken,))
        worker.start()
        # Some time after its share of the fragments: in a search, a write, or a commit.
        share, end = fragments * (kill + 1) // (kills + 1), time.monotonic() + DEADLINE_S
        while len(ledger.done()) < share and worker.is_alive() and time.monotonic() < end:
            worker.join(0.002)
        worker.join(rng.random() * 0.05)
        worker.kill()
        worker.join()
        died += worker.exitcode == -9
    assert died == kills, "a worker ended before it was killed"
    assert len(ledger.done()) < fragments, "nothing was left to continue"
    work(broken)
    assert result(broken.output) == result(whole.output)
    assert index.manifest() == version  # the index is only read
