"""What a row carries comes back the same over HTTP, gRPC, and from the local client."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from google.protobuf import json_format

from dq_cluster.client import AsyncClient, Client
from dq_cluster.errors import InputError
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.grpc import request_of, response_message
from dq_cluster.serve.http import make_api
from dq_cluster.serve.local import LocalService
from dq_cluster.v1 import search_pb2 as pb
from tests.carrying import publish_carrying, trained, types_of
from tests.unit.test_columns import EXAMPLES

BIG = 2**63 + 5
WANTED = {f"c{number}": wanted for number, (_, _, wanted) in enumerate(EXAMPLES)} | {"big": BIG}

FLAG = next(f"c{number}" for number, (kind, _, _) in enumerate(EXAMPLES) if kind == pa.bool_())


def example_rows() -> pa.Table:
    """A row of the examples, and one of nulls."""
    columns = {}
    for number, (kind, value, _) in enumerate(EXAMPLES):
        values = [value, None]
        if isinstance(kind, pa.BaseExtensionType):
            column = pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
        else:
            column = pa.array(values, kind)
        columns[f"c{number}"] = column
    return pa.table(columns | {"big": pa.array([BIG, None], pa.uint64())})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> LocalService:
    index, card = trained(str(tmp_path_factory.mktemp("carried") / "index"))
    rows = example_rows()
    publish_carrying(index, card, [rows, rows], types_of(rows))
    return LocalService(ServeSettings(index=index.storage.uri, shards=2, timeout_ms=10_000))


@pytest.fixture(scope="module")
def http(service: LocalService) -> Iterator[TestClient]:
    with TestClient(make_api(service, max_body_bytes=100_000, hide="nothing to hide")) as client:
        yield client


def grpc(service: LocalService, **asked: Any) -> pb.SearchResponse:
    message = json_format.ParseDict(asked, pb.SearchRequest())
    return response_message(asyncio.run(service.search(request_of(message))))


def test_every_surface_says_the_same(service: LocalService, http: TestClient) -> None:
    names, asked = list(WANTED), {"id": {"number": 0}, "k": 4, "include": list(WANTED)}
    answer = http.post("/v1/search", json={"id": 0, "k": 4, "include": names})
    assert answer.status_code == 200, answer.text
    values = json.loads(answer.text, parse_constant=pytest.fail)["hits"][0]
    by_id = {hit["id"]: hit["columns"] for hit in values}
    assert by_id == {n: dict.fromkeys(names) if n % 2 else WANTED for n in range(4)}

    with Client(service._index.storage.uri) as client:
        local = client.search(id=0, k=4, include=names).hits[0]
    assert {hit.id: hit.columns for hit in local} == by_id

    found = grpc(service, **asked).hits[0].hits
    messages = {hit.id.number: json_format.MessageToDict(hit.columns) for hit in found}
    exact = {
        name: str(value) if type(value) is int and abs(value) > 2**53 else value
        for name, value in WANTED.items()
    }
    assert messages == {n: dict.fromkeys(names) if n % 2 else exact for n in range(4)}


def test_the_client_reads_what_http_says(service: LocalService, http: TestClient) -> None:
    async def remote() -> Any:
        client = AsyncClient("http://test")
        app = make_api(service, max_body_bytes=100_000, hide="nothing to hide")
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as session:
            client._service._http = session  # type: ignore[union-attr]
            return await client.search(id=0, k=1, include=("big",), filter={"big": BIG})

    (hit,) = asyncio.run(remote()).hits[0]
    assert hit.columns == {"big": BIG}


def test_whole_numbers_beyond_doubles_are_found_exactly(
    service: LocalService, http: TestClient
) -> None:
    for value in (BIG, str(BIG)):
        answer = http.post("/v1/search", json={"id": 0, "filter": {"big": value}})
        assert [hit["id"] for hit in answer.json()["hits"][0]] == [0, 2]
    answer = http.post("/v1/search", json={"id": 0, "filter": {"big": BIG - 1}})
    assert answer.json()["hits"][0] == []
    asked = {"id": {"number": 0}}
    assert len(grpc(service, **asked, filter={"big": str(BIG)}).hits[0].hits) == 2
    with pytest.raises(InputError, match=r"may have been rounded; write it as .* text"):
        grpc(service, **asked, filter={"big": float(BIG)})
    message = pb.SearchRequest(id=pb.Id(number=0))
    message.filter.update({"big": float("nan")})
    with pytest.raises(InputError, match="filter"):
        request_of(message)


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ({"c0": "x"}, "column 'c0' is int8; it is compared with numbers, not 'x'"),
        ({"c0": {}}, "no operator"),
        ({"c0": {"in": ["1"]}}, "compared with numbers"),
        ({"big": {"lt": 1e19}}, "may have been rounded"),
        ({"id": "0"}, "column 'id' is int64"),
        ({FLAG: 1}, f"column '{FLAG}' is bool; it is compared with true or false, not 1"),
    ],
)
def test_bad_filters_are_400(http: TestClient, filter: dict[str, Any], message: str) -> None:
    answer = http.post("/v1/search", json={"id": 0, "filter": filter})
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]


def test_every_ordered_column_can_be_asked_for_by_what_it_says(
    service: LocalService, http: TestClient
) -> None:
    asked = 0
    for name, wanted in WANTED.items():
        answer = http.post("/v1/search", json={"id": 0, "k": 4, "filter": {name: wanted}})
        if answer.status_code == 400:
            kind = service._engine.served.schema.field(name).type
            assert wanted is None or pa.types.is_nested(kind) or "cannot be compared" in answer.text
            continue
        assert sorted(hit["id"] for hit in answer.json()["hits"][0]) == [0, 2], name
        asked += 1
    assert asked > 25


def test_a_column_that_is_named_twice_comes_once(http: TestClient) -> None:
    answer = http.post("/v1/search", json={"id": 0, "k": 1, "include": ["c0", "id", "c0"]})
    assert answer.json()["hits"][0][0]["columns"] == {"c0": WANTED["c0"]}
