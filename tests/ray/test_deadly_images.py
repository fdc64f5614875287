"""Images that end the process which decodes them become rejects, and nothing else does."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from dq_cluster.client import Client
from dq_cluster.errors import InputError
from dq_cluster.images.config import ImageLimits, SourceSettings
from dq_cluster.storage import Storage
from tests.deadly import GLUTTON, HANGER, KILLER, install
from tests.encoding import (
    current,
    encode_command,
    read_rejects,
    read_version,
    settings_for,
    tiny_backbone,
    tiny_model,
)
from tests.pictures import crops, write_parquet

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
DEADLY = {5: KILLER, 25: HANGER, 45: GLUTTON}  # one in each fragment


@dataclass(frozen=True)
class Encoded:
    """An index of a pile with deadly images, and the environment in which they are deadly."""

    index: str
    environment: dict[str, str]
    good: bytes


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    folder = tmp_path_factory.mktemp("deadly")
    pictures = crops(60)
    images = [DEADLY.get(n, data) for n, data in enumerate(pictures)]
    columns = {"id": pa.array(range(60)), "image": images}
    pile = write_parquet(folder / "pile.parquet", columns, row_group_size=20)
    index = str(folder / "index")
    settings = settings_for(
        index,
        tiny_model(Storage(index), tiny_backbone(folder)),
        SourceSettings(kind="parquet", uri=str(pile), limits=ImageLimits(max_seconds=3)),
        max_reject_fraction=0.1,
    )
    environment = {**os.environ, "PYTHONPATH": install(folder / "path")}
    environment.pop("RAY_ADDRESS", None)  # a Ray of its own, whose workers have the bugs
    done = subprocess.run(
        encode_command(settings, folder / "encode.yaml"),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return Encoded(index, environment, pictures[0])


def test_only_the_deadly_images_of_a_fragment_are_rejected(encoded: Encoded) -> None:
    catalog, manifest = current(encoded.index)
    assert read_rejects(catalog.storage, manifest).select(["id", "reason"]).to_pylist() == [
        {"id": id, "reason": "crashed_decoder"} for id in DEADLY
    ]
    ids = read_version(catalog.storage, manifest).column("id").to_pylist()
    assert ids == [n for n in range(60) if n not in DEADLY]


def test_a_deadly_query_gets_an_answer_and_the_router_lives(encoded: Encoded) -> None:
    serving = subprocess.Popen(
        [sys.executable, "-c", "from dq_cluster.cli import main; main()", "serve", "--json"]
        + [f"index={encoded.index}", "shards=1", "cpus=0.2", "port=0"],
        stdout=subprocess.PIPE,
        env=encoded.environment,
        cwd=ROOT,
    )
    try:
        assert serving.stdout is not None
        with Client(json.loads(serving.stdout.readline())["url"]) as client:
            with pytest.raises(InputError, match="crashed_decoder"):
                client.search(image=KILLER)
            before = client.search(image=encoded.good, k=1)
            with pytest.raises(InputError, match="crashed_decoder"):
                client.search(image=KILLER)
            assert client.search(image=encoded.good, k=1).hits == before.hits
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(timeout=240) == 0
    finally:
        serving.kill()
        serving.wait()
