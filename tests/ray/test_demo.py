"""`dq-cluster demo`, killed half-way and run again, as `make demo` runs it."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dq_cluster.index.tombstones import live_ids
from dq_cluster.serve.api import parse_request
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.local import LocalService

BINARY = Path(sys.executable).parent / "dq-cluster"
IMAGES = 600


def demo(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("RAY_ADDRESS", "DQ_DATA"):
        environment.pop(name, None)
    return subprocess.Popen(
        [str(BINARY), "demo", "--folder", str(folder), "--images", str(IMAGES), "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def first_id(service: LocalService) -> int | str:
    index = service._index
    _, ids = next(live_ids(index.storage, index.manifest()))
    found: int | str = ids[0].as_py()
    return found


def stages(folder: Path) -> list[str]:
    journal = folder / "demo.json"
    return list(json.loads(journal.read_text())["stages"]) if journal.exists() else []


def kill_once(folder: Path, done: str) -> None:
    """Start the demo and SIGKILL it as soon as the stage `done` is done."""
    process = demo(folder)
    deadline = time.monotonic() + 240
    while done not in stages(folder):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "kills",
    [
        ["split"],
        pytest.param(["featurize", "train", "encode", "serve"], marks=pytest.mark.slow),
    ],
    ids=lambda kills: "-".join(kills),
)
def test_a_killed_demo_run_again_finishes(tmp_path: Path, kills: list[str]) -> None:
    for done in kills:
        kill_once(tmp_path, done)
    process = demo(tmp_path)
    printed, log = process.communicate(timeout=400)
    assert process.returncode == 0, log
    assert f"{kills[-1]}: done before" in log

    # Nothing that went well looks like an error.
    assert not re.search(
        r"WARN|ERROR|Error|Traceback|\.cc:\d+|\[33m|failed|at least \d+ training", log
    )

    found = json.loads(printed)
    (quality,) = found["quality"]
    assert quality["codes"] + quality["queries"] == IMAGES
    assert 0 < quality["recall@10"] <= 1
    # Ten balanced classes: chance is 0.1.
    assert quality[next(name for name in quality if re.fullmatch(r"mAP@\d+", name))] > 0.3
    assert [row["stage"] for row in found["throughput"]] == [
        "featurize",
        "train",
        "encode",
        "serve",
    ]
    assert all(row["rate"] > 0 for row in found["throughput"])
    assert found["shards"] == 4

    report = Path(found["report"]).read_text()
    assert report.count('alt="query"') == 12
    assert report.count('alt="neighbour') == 120
    assert 'src="data:image/png;base64,' in report

    # The page of the demo's own index has the pictures.
    assert found["next"] == f"dq-cluster serve {tmp_path / 'index'}"
    service = LocalService(ServeSettings(index=str(tmp_path / "index"), shards=1))

    async def pictures() -> list[bytes]:
        hits = (await service.search(parse_request({"id": first_id(service)}))).hits[0]
        return [await service.picture(hit.id) for hit in hits]

    shown = asyncio.run(pictures())
    assert len(shown) == 10
    assert all(picture[:2] == b"\xff\xd8" for picture in shown)
