"""One served index for the tests of this room; each test that changes it serves its own."""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import pytest

from dq_cluster.index.manifest import Manifest
from dq_cluster.index.models import ModelCard
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.run import free_port, serving
from tests.support import make_model, make_version
from tests.texts import make_words

SHARDS = 4


@dataclass(frozen=True)
class Service:
    """A running API over a folder."""

    url: str
    grpc: str
    uri: str
    card: ModelCard
    manifest: Manifest
    features: np.ndarray

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=240)


@pytest.fixture(scope="package")
def service(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("served")
    uri = str(folder / "index")
    card = make_model(uri, refine_bits=64, words=make_words(folder / "sentences", 16))
    manifest, features = make_version(uri, card, rows=1500, files=9)
    port = free_port()
    settings = ServeSettings(
        index=uri, shards=SHARDS, cpus=0.2, port=0, grpc_port=port, timeout_ms=10_000
    )
    with serving(settings) as url:
        yield Service(url, f"127.0.0.1:{port}", uri, card, manifest, features)
