"""Ids keep every bit: signed, unsigned, or text, from the files to every surface."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.client import Client
from dq_cluster.encoding.publish import appended
from dq_cluster.errors import InputError, NotFoundError
from dq_cluster.evaluate.config import EvaluateSettings
from dq_cluster.evaluate.version import evaluate_version
from dq_cluster.index.catalog import Index
from dq_cluster.index.compact import compact
from dq_cluster.index.ids import common_type, joined, narrowed, to_id
from dq_cluster.index.manifest import ColumnStats, FileEntry, Manifest
from dq_cluster.index.tombstones import delete_ids, live_ids
from dq_cluster.index.verify import verify
from dq_cluster.serve.api import parse_request
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.grpc import request_of, response_message
from dq_cluster.serve.http import make_api
from dq_cluster.serve.local import LocalService
from dq_cluster.v1 import search_pb2 as pb
from tests.support import make_model, make_version

BIG = 2**63 + 5
ROWS = 400
# Of 4 files the first has no large id, the second one, the others are hashes.
IDS = [
    *range(100),
    *range(100, 199),
    BIG,
    *np.random.default_rng(0).integers(2**32, 2**64, 200, np.uint64).tolist(),
]
PARTS = st.lists(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=5), min_size=1, max_size=4)


def as_stored(values: list[int]) -> pa.Array:
    """Ids as a source gives those of one chunk."""
    return pa.array(values, pa.uint64() if max(values, default=0) >= 2**63 else pa.int64())


@given(PARTS)
def test_parts_are_joined_exactly_or_refused(parts: list[list[int]]) -> None:
    parts = [
        [value for value in part if value >= 0] if max(part, default=0) >= 2**63 else part
        for part in parts
    ]
    together = [value for part in parts for value in part]
    arrays = [as_stored(part) for part in parts]
    entries = [
        FileEntry(
            path="f",
            rows=len(part),
            size=0,
            sha256="",
            stats={"id": ColumnStats(min=min(part), max=max(part))} if part else {},
        )
        for part in parts
    ]
    types = [str(array.type) for array in arrays]
    if min(together, default=0) < 0 and max(together, default=0) >= 2**63:
        with pytest.raises(InputError, match="write them as text"):
            joined(arrays)
        with pytest.raises(InputError, match="write them as text"):
            common_type(types, entries)
        return
    found = joined(arrays)
    assert found.to_pylist() == together
    assert str(found.type) == common_type(types, entries)
    assert (found.type == pa.uint64()) == (max(together, default=0) >= 2**63)


def test_numbers_and_text_do_not_mix() -> None:
    with pytest.raises(InputError, match="int64 in one part and string"):
        common_type(["string", "int64"], [])


@pytest.mark.parametrize("bad", ["cat", "1_0", "1.0", 1.5, None, -1, 2**64])
def test_what_is_no_unsigned_id(bad: object) -> None:
    with pytest.raises(InputError, match="ids of this index"):
        to_id(bad, "uint64")


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest, np.ndarray]:
    uri = str(tmp_path_factory.mktemp("ids") / "index")
    manifest, features = make_version(uri, make_model(uri), rows=ROWS, files=4, ids=IDS)
    return uri, manifest, features


@pytest.fixture
def copy(version: tuple[str, Manifest, np.ndarray], tmp_path: Path) -> Index:
    """A version of the same that a test may change."""
    uri = str(tmp_path / "index")
    make_version(uri, make_model(uri), rows=ROWS, files=4, ids=IDS)
    return Index.at(uri)


@pytest.fixture(scope="module")
def http(version: tuple[str, Manifest, np.ndarray]) -> Iterator[TestClient]:
    service = LocalService(ServeSettings(index=version[0], shards=3, timeout_ms=10_000))
    with TestClient(make_api(service, max_body_bytes=100_000, hide="-")) as client:
        yield client


def test_files_have_8_bytes_an_id_and_the_numbers_that_others_read(
    version: tuple[str, Manifest, np.ndarray],
) -> None:
    uri, manifest, _ = version
    assert manifest.id_type == "uint64"
    columns = [pq.read_table(f"{uri}/{file.path}").column("id") for file in manifest.files]
    assert [str(column.type) for column in columns] == ["int64", "uint64", "uint64", "uint64"]
    assert [id for column in columns for id in column.to_pylist()] == IDS
    assert verify(Index.at(uri), ids=True).problems == ()


@pytest.mark.parametrize("place", [3, 199, 300])
def test_http_finds_and_shows_the_id(http: TestClient, place: int) -> None:
    for id in (IDS[place], str(IDS[place])):
        answer = http.post("/v1/search", json={"id": id, "k": 400})
        assert answer.status_code == 200, answer.text
        assert sorted(hit["id"] for hit in json.loads(answer.text)["hits"][0]) == sorted(IDS)
    only = http.post("/v1/search", json={"id": 3, "k": 9, "filter": {"id": IDS[place]}}).json()
    assert [hit["id"] for hit in only["hits"][0]] == [IDS[place]]
    above = http.post("/v1/search", json={"id": 3, "k": 400, "filter": {"id": {"ge": BIG}}}).json()
    assert {hit["id"] for hit in above["hits"][0]} == {id for id in IDS if id >= BIG}


def test_an_id_that_is_not_there(http: TestClient) -> None:
    assert http.post("/v1/search", json={"id": BIG + 1}).status_code == 404
    assert http.post("/v1/search", json={"id": -1}).status_code == 400


def test_the_client_and_grpc(version: tuple[str, Manifest, np.ndarray]) -> None:
    uri, _, _ = version
    with Client(uri) as client:
        found = client.search(id=BIG, k=ROWS)
        assert sorted(hit.id for hit in found.hits[0]) == sorted(IDS)
    (hits,) = response_message(found).hits
    kinds = {hit.id.WhichOneof("id") for hit in hits.hits}
    assert kinds == {"number", "large_number"}
    assert sorted(getattr(hit.id, hit.id.WhichOneof("id")) for hit in hits.hits) == sorted(IDS)
    asked = request_of(pb.SearchRequest(id=pb.Id(large_number=BIG)))
    assert asked == parse_request({"id": BIG})


def alive(index: Index) -> list[int]:
    return [id for _, ids in live_ids(index.storage, index.manifest()) for id in ids.to_pylist()]


def test_deleting_and_compacting(copy: Index) -> None:
    with pytest.raises(NotFoundError, match=str(BIG + 1)):
        delete_ids(copy, [BIG + 1])
    delete_ids(copy, [BIG, IDS[0], IDS[-1]])
    kept = [id for id in IDS if id not in (BIG, IDS[0], IDS[-1])]
    assert [
        i for _, ids in live_ids(copy.storage, copy.manifest()) for i in ids.to_pylist()
    ] == kept
    compact(copy)
    assert [
        i for _, ids in live_ids(copy.storage, copy.manifest()) for i in ids.to_pylist()
    ] == kept
    assert verify(copy, ids=True).problems == ()


def test_appending_widens_the_ids_of_a_version(copy: Index) -> None:
    new = copy.manifest()
    small = new.model_copy(update={"id_type": "int64", "files": new.files[:1], "rows": 100})
    assert appended(copy.storage, small, new).id_type == "uint64"
    assert appended(copy.storage, small, small).id_type == "int64"
    low = new.files[0].model_copy(update={"stats": {"id": ColumnStats(min=-1, max=5)}})
    with pytest.raises(InputError, match="below 0"):
        appended(copy.storage, small.model_copy(update={"files": (low,)}), new)


@pytest.mark.parametrize("name", ["id", "key"])
def test_evaluation_pairs_ids(
    version: tuple[str, Manifest, np.ndarray], tmp_path: Path, name: str
) -> None:
    uri, _, features = version
    lists = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    table = pa.table({name: pa.array(IDS, pa.uint64()), "feature": lists})
    pq.write_table(table, tmp_path / "features.parquet")
    pile = str(tmp_path / "features.parquet")
    asked = {"index": uri, "database": pile, "queries": pile, "k": 20, "id_column": name}
    found = evaluate_version(EvaluateSettings(**asked))
    assert found["recall@10"] > 0.2
    repeated = pa.concat_tables([table, table.slice(0, 1)])
    pq.write_table(repeated, tmp_path / "features.parquet")
    with pytest.raises(InputError, match=r"1 ids of .* came before in it"):
        evaluate_version(EvaluateSettings(**asked))


def test_ids_that_fit_stay_signed() -> None:
    assert narrowed(pa.array([1, 2**63 - 1], pa.uint64())).type == pa.int64()
