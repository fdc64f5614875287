"""Images that end the process which decodes them become rejects, and nothing else does."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from dq_cluster.images.config import ImageLimits, SourceSettings
from dq_cluster.storage import Storage
from tests.deadly import GLUTTON, HANGER, KILLER, install
from tests.encoding import (
    current,
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


def test_only_the_deadly_images_of_a_fragment_are_rejected(tmp_path: Path) -> None:
    images = [DEADLY.get(n, data) for n, data in enumerate(crops(60))]
    columns = {"id": pa.array(range(60)), "image": images}
    pile = write_parquet(tmp_path / "pile.parquet", columns, row_group_size=20)
    index = str(tmp_path / "index")
    settings = settings_for(
        index,
        tiny_model(Storage(index), tiny_backbone(tmp_path)),
        SourceSettings(kind="parquet", uri=str(pile), limits=ImageLimits(max_seconds=3)),
        max_reject_fraction=0.1,
    )
    config = tmp_path / "encode.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    environment = {**os.environ, "PYTHONPATH": install(tmp_path / "path")}
    environment.pop("RAY_ADDRESS", None)  # a Ray of its own, whose workers have the bugs
    done = subprocess.run(
        [sys.executable, "jobs/encode.py", "--config", str(config)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr

    catalog, manifest = current(index)
    assert read_rejects(catalog.storage, manifest).select(["id", "reason"]).to_pylist() == [
        {"id": id, "reason": "crashed_decoder"} for id in DEADLY
    ]
    ids = read_version(catalog.storage, manifest).column("id").to_pylist()
    assert ids == [n for n in range(60) if n not in DEADLY]
