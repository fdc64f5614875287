"""gRPC answers what HTTP answers, and refuses what HTTP refuses."""

from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import json_format

from dq_cluster.v1 import search_pb2 as pb
from dq_cluster.v1.search_pb2_grpc import SearchServiceStub
from tests.serve.conftest import Service

pytestmark = pytest.mark.ray
VECTOR = [0.5, -0.25] * 8


@pytest.fixture(scope="module")
def stub(service: Service) -> Iterator[SearchServiceStub]:
    with grpc.insecure_channel(service.grpc) as channel:
        yield SearchServiceStub(channel)


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    with service.http as client:
        yield client


def embeddings(*vectors: list[float]) -> pb.Vectors:
    return pb.Vectors(vectors=[pb.Vector(values=vector) for vector in vectors])


ASKED: dict[str, tuple[dict[str, Any], pb.SearchRequest]] = {
    "embeddings": (
        {"embeddings": [VECTOR, VECTOR[::-1]], "k": 7, "include": ["label", "uri"]},
        pb.SearchRequest(
            embeddings=embeddings(VECTOR, VECTOR[::-1]), k=7, include=["label", "uri"]
        ),
    ),
    "re-ranked": (
        {"id": 33, "k_factor": 9, "decode_factor": 1, "within": -2.5},
        pb.SearchRequest(id=pb.Id(number=33), k_factor=9, decode_factor=1, within=-2.5),
    ),
    "words": (
        {"text": "red cat", "not_text": "dog", "weights": {"not_text": 0.75}, "k": 6},
        pb.SearchRequest(text="red cat", not_text="dog", weights={"not_text": 0.75}, k=6),
    ),
    "id": ({"id": 33}, pb.SearchRequest(id=pb.Id(number=33))),
    "filter": (
        {"id": 33, "k": 9, "filter": {"label": {"in": [1, 2]}}},
        json_format.ParseDict(
            {"id": {"number": 33}, "k": 9, "filter": {"label": {"in": [1, 2]}}},
            pb.SearchRequest(),
        ),
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_the_same_answer_as_over_http(
    stub: SearchServiceStub, http: httpx.Client, name: str
) -> None:
    body, message = ASKED[name]
    wanted = http.post("/v1/search", json=body).json()
    found = stub.Search(message, timeout=240)
    assert [[hit.id.number for hit in hits.hits] for hits in found.hits] == [
        [hit["id"] for hit in hits] for hits in wanted["hits"]
    ]
    assert [hit.score for hit in found.hits[0].hits] == pytest.approx(
        [hit["score"] for hit in wanted["hits"][0]], rel=1e-6
    )
    columns = [json_format.MessageToDict(hit.columns) for hit in found.hits[0].hits]
    assert columns == [hit["columns"] for hit in wanted["hits"][0]]
    assert (found.version, found.coverage, found.shards) == (1, 1.0, 4)


def test_the_other_calls(stub: SearchServiceStub, http: httpx.Client) -> None:
    info = http.get("/v1/index").json()
    for found in (stub.GetIndex(pb.GetIndexRequest()), stub.Refresh(pb.RefreshRequest())):
        assert (found.version, found.model, found.rows) == (1, info["model"], info["rows"])
        assert list(found.columns) == info["columns"]
        assert (found.bits, found.refine_bits) == (32, 64)
    (version,) = stub.ListVersions(pb.ListVersionsRequest()).versions
    assert (version.version, version.current, version.serving) == (1, True, True)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (pb.SearchRequest(), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.SearchRequest(embeddings=embeddings([1.0])), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.SearchRequest(id=pb.Id(number=10**9)), grpc.StatusCode.NOT_FOUND),
        (pb.SearchRequest(id=pb.Id(number=1), k=10**6), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_bad_requests_get_a_status(
    stub: SearchServiceStub, service: Service, message: pb.SearchRequest, status: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.Search(message, timeout=240)
    assert refused.value.code() is status
    assert refused.value.details()
    assert service.uri not in refused.value.details()
