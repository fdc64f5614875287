"""Every call of the client, on a service and on the bare index, sync and async, agrees."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq_cluster.client import AsyncClient, Client
from dq_cluster.errors import InputError, NotFoundError, UnavailableError
from dq_cluster.serve.api import SearchResponse
from dq_cluster.serve.run import free_port
from tests.serve.conftest import Service

pytestmark = pytest.mark.ray
EMBEDDINGS = np.random.default_rng(3).normal(size=(3, 16)).astype(np.float32)

CALLS: dict[str, Callable[[Service], dict[str, Any]]] = {
    "vector": lambda s: {"vector": s.features[0], "k": 7},
    "vectors": lambda s: {"vectors": s.features[:4], "k": 3, "include": ["uri", "label"]},
    "embedding": lambda s: {"embedding": EMBEDDINGS[0], "k": 1000},
    "embeddings": lambda s: {"embeddings": EMBEDDINGS, "filter": {"label": {"in": [1, 2]}}},
    "near ones": lambda s: {"id": 42, "k": 50, "within": -1.5},
    "none near": lambda s: {"embeddings": EMBEDDINGS, "within": 10.0},
    "no re-ranking": lambda s: {"embeddings": EMBEDDINGS, "k": 20, "k_factor": 1},
    "much re-ranking": lambda s: {"embeddings": EMBEDDINGS, "k": 20, "k_factor": 30},
    "too much re-ranking": lambda s: {"id": 42, "k_factor": 101},
    "no decoder": lambda s: {"id": 42, "decode_factor": 2},
    "id": lambda s: {"id": 42, "k": 5, "include": ["id"]},
    "nothing found": lambda s: {"id": 42, "filter": {"label": 77}},
    "wrong dimension": lambda s: {"vector": [1.0, 2.0]},
    "two subjects": lambda s: {"vector": s.features[0], "id": 3},
    "no subject": lambda s: {},
    "unknown id": lambda s: {"id": 10**9},
    "impossible id": lambda s: {"id": "cat"},
    "unknown column": lambda s: {"id": 1, "include": ["colour"]},
    "unknown filter": lambda s: {"id": 1, "filter": {"colour": 1}},
    "filter of another type": lambda s: {"id": 1, "filter": {"label": "x"}},
    "too many": lambda s: {"id": 1, "k": 100_000},
    "no image model": lambda s: {"image": b"not an image"},
}


@contextmanager
def client_of(kind: str, target: str) -> Iterator[Callable[..., Any]]:
    """call(method, **arguments) on a sync or async client."""
    if kind == "sync":
        with Client(target) as client:
            yield lambda method, **asked: getattr(client, method)(**asked)
        return
    with asyncio.Runner() as runner:

        async def make() -> AsyncClient:
            return AsyncClient(target)

        other = runner.run(make())
        yield lambda method, **asked: runner.run(getattr(other, method)(**asked))
        runner.run(other.close())


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, without what differs between two runs of it."""
    try:
        result = call()
    except Exception as error:
        return type(error), str(error)
    if isinstance(result, SearchResponse):
        return result.model_copy(update={"ms": {}, "shards": 0})
    if hasattr(result, "shards"):
        return result.model_copy(update={"shards": 0})
    return result


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_every_call_agrees(service: Service, kind: str) -> None:
    with client_of(kind, service.url) as remote, client_of(kind, service.uri) as local:
        for name, arguments in CALLS.items():
            asked = arguments(service)
            found = outcome(partial(remote, "search", **asked))
            assert found == outcome(partial(local, "search", **asked)), name
            assert isinstance(found, SearchResponse) or found[0] in (InputError, NotFoundError)
        for method in ("info", "versions", "refresh"):
            assert outcome(partial(remote, method)) == outcome(partial(local, method))
        missing = outcome(lambda: remote("refresh", version=99))
        assert missing[0] is NotFoundError
        assert outcome(lambda: local("refresh", version=99))[0] is NotFoundError
        assert service.uri not in missing[1]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no published index"):
        Client(tmp_path / "nothing")
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url) as client, pytest.raises(UnavailableError, match="does not answer"):
        client.info()
