"""A bucket that refuses every fourth request: encoding takes longer, and nothing is missing."""

import os
import subprocess
import uuid
from pathlib import Path

import pytest

from dq_cluster.images.config import SourceSettings
from dq_cluster.index.catalog import Index
from dq_cluster.index.tombstones import live_ids
from dq_cluster.index.verify import verify
from dq_cluster.storage import Storage
from tests.encoding import encode_command, settings_for, tiny_backbone, tiny_model
from tests.pictures import crops, write_parquet
from tests.seaweed import S3Server, free_ports
from tests.throttle import Throttle

ROOT = Path(__file__).parents[2]
IMAGES = 100


@pytest.mark.ray
def test_a_bucket_that_refuses_requests(tmp_path: Path, s3_server: S3Server) -> None:
    bucket = f"busy-{uuid.uuid4().hex[:12]}"
    s3_server.client().create_bucket(Bucket=bucket)
    storage = Storage(f"s3://{bucket}")
    index = Index(storage.child("index"))
    card = tiny_model(index.storage, tiny_backbone(tmp_path))
    pictures = crops(IMAGES)
    pile = write_parquet(tmp_path / "pile.parquet", {"id": range(IMAGES), "image": pictures}, 20)
    storage.upload(pile, "pile/pile.parquet")
    source = SourceSettings(kind="parquet", uri=f"{storage.uri}/pile")
    settings = settings_for(index.storage.uri, card, source)

    (port,) = free_ports(1)
    with Throttle(s3_server.endpoint, port, share=0.25) as throttle:
        # A Ray of its own: workers read the endpoint from their environment.
        environment = {**os.environ, "AWS_ENDPOINT_URL": throttle.endpoint}
        environment.pop("RAY_ADDRESS", None)
        finished = subprocess.run(
            encode_command(settings, tmp_path / "encode.yaml"),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert throttle.refused > 10
    manifest = index.manifest()
    ids = [id for _, ids in live_ids(index.storage, manifest) for id in ids.to_pylist()]
    assert sorted(ids) == list(range(IMAGES))
    assert verify(index, manifest.version).problems == ()
