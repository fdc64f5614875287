"""The HTTP surface without Ray: shards in this process, the same routes, hostile input."""

import base64
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis.core.result import Ok

from dq_cluster.errors import DoesNotFitError, NotFoundError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.images.config import ImageLimits
from dq_cluster.images.decode import decode_image
from dq_cluster.images.thumbnail import thumbnail
from dq_cluster.index.catalog import Index
from dq_cluster.search.room import check_fits
from dq_cluster.serve.config import Limits, ServeSettings
from dq_cluster.serve.http import make_api
from dq_cluster.serve.local import LocalService
from dq_cluster.serve.security import Guard
from dq_cluster.storage import Storage
from tests.support import make_model, make_pictures, make_version

LIMITS = Limits(max_body_bytes=100_000, max_k=50, max_batch=8)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> LocalService:
    uri = str(tmp_path_factory.mktemp("http") / "index")
    make_version(uri, make_model(uri), rows=600, files=4)
    return LocalService(ServeSettings(index=uri, shards=3, timeout_ms=10_000, limits=LIMITS))


@pytest.fixture(scope="module")
def api(service: LocalService) -> Any:
    return make_api(service, max_body_bytes=LIMITS.max_body_bytes, hide=service._index.storage.uri)


@pytest.fixture(scope="module")
def http(api: Any) -> Iterator[TestClient]:
    with TestClient(api) as client:
        yield client


def test_no_request_that_the_description_allows_makes_an_internal_error(api: Any) -> None:
    described = schemathesis.openapi.from_asgi("/openapi.json", api)
    checked = []
    for found in described.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()

        @settings(max_examples=40, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            answer = case.call()
            assert answer.status_code != 500, answer.text

        check()
        checked.append(operation.label)
    assert "POST /v1/search" in checked
    assert len(checked) == 8


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "JSON"),
        (b"{", 400, "JSON"),
        (b"[]", 400, "object"),
        (b'{"id": 1, "colour": 2}', 400, "colour"),
        (b'{"id": 1, "k_factor": 2}', 400, "no second code"),
        (b'{"id": 1, "k_factor": 0}', 400, "k_factor"),
        (b'{"id": 1, "decode_factor": 2}', 400, "no decoder"),
        (b'{"vector": [NaN]}', 400, "vector"),
        (b'{"vector": [1e300]}', 400, "dimensions"),
        (b'{"embedding": [' + b"1e39," * 15 + b"1]}", 400, "float32"),
        (b'{"image": "!!!"}', 400, "image"),
        (b'{"image": "aGVsbG8="}', 400, "features"),
        (b'{"id": 1, "k": 51}', 400, "50"),
        (b'{"id": 1, "k": 0}', 400, "k"),
        (b'{"id": 1, "timeout_ms": 999999}', 400, "timeout_ms"),
        (b'{"vectors": []}', 400, "vectors"),
        (b'{"id": 123456789}', 404, "no id"),
        (b'{"id": 1, "image": "' + b"A" * 200_000 + b'"}', 413, "larger"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(
    http: TestClient, body: bytes, status: int, message: str
) -> None:
    answer = http.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]


def test_a_batch_has_a_limit(http: TestClient, service: LocalService) -> None:
    answer = http.post("/v1/search", json={"embeddings": np.zeros((9, 16)).tolist()})
    assert answer.status_code == 400
    assert "queries 9" in answer.json()["error"]


def test_errors_keep_the_path_of_the_index(http: TestClient, service: LocalService) -> None:
    answer = http.post("/v1/index/refresh", json={"version": 77})
    assert answer.status_code == 404
    assert "version 77" in answer.json()["error"]
    assert service._index.storage.uri not in answer.text


def test_multipart_is_the_same_request(http: TestClient) -> None:
    answer = http.post("/v1/search", files={"image": b"hello"}, data={"k": "3"})
    assert answer.status_code == 400
    assert "made from features" in answer.json()["error"]
    by_id = http.post("/v1/search", files={"id": (None, "5"), "k": (None, "3")})
    assert by_id.status_code == 200, by_id.text
    assert by_id.json()["hits"] == http.post("/v1/search", json={"id": 5, "k": 3}).json()["hits"]
    broken = http.post("/v1/search", files={"id": (None, "5"), "k": (None, "three")})
    assert broken.status_code == 400


def test_a_request_id_comes_back(http: TestClient) -> None:
    answer = http.post("/v1/search", json={"id": 1}, headers={"X-Request-ID": "abc-1"})
    assert answer.headers["X-Request-ID"] == "abc-1"


def test_keys_guard_everything_but_health_and_the_page(service: LocalService, api: Any) -> None:
    key = "open sesame"
    opened = service.guard
    service.guard = Guard(frozenset({hashlib.sha256(key.encode()).hexdigest()}), LIMITS)
    try:
        with TestClient(api) as http:
            for method, path in (
                ("POST", "/v1/search"),
                ("GET", "/v1/index"),
                ("GET", "/v1/index/versions"),
                ("POST", "/v1/index/refresh"),
            ):
                refused = http.request(method, path, json={"id": 1})
                assert refused.status_code == 401, path
                assert refused.headers["WWW-Authenticate"] == "Bearer"
                allowed = http.request(
                    method,
                    path,
                    json={"id": 1} if path.endswith("search") else {},
                    headers={"Authorization": f"Bearer {key}"},
                )
                assert allowed.status_code == 200, allowed.text
            for path in ("/healthz", "/readyz", "/"):
                assert http.get(path).status_code == 200
    finally:
        service.guard = opened


def test_a_corrupt_next_version_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    card = make_model(uri)
    make_version(uri, card, rows=600, files=3)
    service = LocalService(ServeSettings(index=uri, shards=3, timeout_ms=10_000))
    with TestClient(make_api(service, max_body_bytes=10_000, hide=uri)) as http:
        second, _ = make_version(uri, card, rows=600, files=3, seed=1)
        path = Path(uri) / second.files[1].path
        path.write_bytes(path.read_bytes()[:-200])
        refused = http.post("/v1/index/refresh")
        assert refused.status_code == 409
        assert "still serving version 1" in refused.json()["error"]
        assert http.post("/v1/search", json={"id": 3}).json()["version"] == 1
        third, _ = make_version(uri, card, rows=600, files=3, seed=2)
        assert http.post("/v1/index/refresh").json()["version"] == 3
        assert http.post("/v1/search", json={"id": 2_000_003}).json()["version"] == 3
        assert http.post("/v1/index/refresh", json={"version": 1}).json()["version"] == 1
        assert http.post("/v1/search", json={"id": 3}).json()["version"] == 1
        listed = http.get("/v1/index/versions").json()
        assert [v["version"] for v in listed if v["serving"]] == [1]
        assert [v["version"] for v in listed if v["current"]] == [3] == [third.version]
        assert Index.at(uri).current() == 3


def test_an_image_in_json_is_base64(http: TestClient) -> None:
    answer = http.post("/v1/search", json={"image": base64.b64encode(b"x").decode()})
    assert "made from features" in answer.json()["error"]


def test_a_picture_is_only_ever_a_picture(tmp_path: Path) -> None:
    (png,) = make_pictures(tmp_path, 1)
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    with Image.open(io.BytesIO(thumbnail(str(png), ImageLimits()))) as small:
        assert small.format == "JPEG"
    for uri in (str(secret), str(tmp_path), "http://127.0.0.1/x.png", "s3://", "x.png", "", None):
        with pytest.raises(NotFoundError, match="no readable picture"):
            thumbnail(uri, ImageLimits())
    with pytest.raises(NotFoundError):
        thumbnail(str(png), ImageLimits(max_bytes=10))


def test_a_row_of_a_parquet_file_is_a_picture(tmp_path: Path) -> None:
    images = [png.read_bytes() for png in make_pictures(tmp_path / "png", 5)]
    path = tmp_path / "pile.parquet"
    pq.write_table(pa.table({"image": [*images, b"secret"]}), path, row_group_size=2)
    for row, data in enumerate(images):
        expected = decode_image(data, 160)
        shown = np.asarray(Image.open(io.BytesIO(thumbnail(f"{path}#{row}", ImageLimits()))))
        assert np.abs(shown.astype(int) - expected).mean() < 8
    for place in ("5", "6", "-1", "x", ""):
        with pytest.raises(NotFoundError, match="no readable picture"):
            thumbnail(f"{path}#{place}", ImageLimits())
    structs = [{"bytes": data, "path": None} for data in images]
    for column in (images, structs):  # as Hugging Face writes them, and the only one it can be
        for name in ("pile.parquet", "pile.PQ", "pile.parquet.gzip"):
            pq.write_table(pa.table({"picture": column}), tmp_path / name)
            assert thumbnail(f"{tmp_path}/{name}#3", ImageLimits())
    pq.write_table(pa.table({"picture": images, "mask": images}), path)
    with pytest.raises(NotFoundError):
        thumbnail(f"{path}#0", ImageLimits())


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_sample_of_a_webdataset_is_a_picture(tmp_path: Path, s3: str, suffix: str) -> None:
    pngs = make_pictures(tmp_path / "png", 3)
    path = tmp_path / f"pile.{suffix}"
    with tarfile.open(path, "w:gz" if suffix == "tar.gz" else "w") as tar:
        tar.add(tmp_path / "png", "some")  # a folder, which is no sample
        for png in pngs:
            tar.add(png, f"of/{png.stem}.left.png")
            tar.add(png, f"of/{png.stem}.txt")
    Storage(s3).upload(path, f"tars/{path.name}")
    for pile in (str(tmp_path), f"{s3}/tars"):
        for png in pngs:
            shown = thumbnail(f"{pile}/{path.name}#of/{png.stem}", ImageLimits())
            assert shown == thumbnail(str(png), ImageLimits())
        for key in ("of/nobody", "of", "some", pngs[0].stem, f"of/{pngs[0].stem}.txt"):
            with pytest.raises(NotFoundError, match="no readable picture"):
                thumbnail(f"{pile}/{path.name}#{key}", ImageLimits())
        with pytest.raises(NotFoundError):
            thumbnail(f"{pile}/absent.{suffix}#of/{pngs[0].stem}", ImageLimits())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(NotFoundError):
        thumbnail(f"{path}#of/{pngs[2].stem}", ImageLimits())


def test_a_picture_in_a_bucket(tmp_path: Path, s3: str) -> None:
    (png,) = make_pictures(tmp_path, 1)
    pq.write_table(pa.table({"image": [png.read_bytes()]}), tmp_path / "pile.parquet")
    for name in (png.name, "pile.parquet"):
        Storage(s3).upload(tmp_path / name, name)
    expected = thumbnail(str(png), ImageLimits())
    assert thumbnail(f"{s3}/{png.name}", ImageLimits()) == expected
    assert thumbnail(f"{s3}/pile.parquet#0", ImageLimits()) == expected


def test_a_row_without_a_readable_picture_has_none(http: TestClient) -> None:
    assert http.get("/v1/items/3/image").status_code == 404
    assert http.get("/v1/items/999999/image").status_code == 404
    assert http.get("/v1/items/cat/3.png/image").status_code == 400


def test_a_version_that_does_not_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    make_version(uri, make_model(uri), rows=1000, files=2)
    with pytest.raises(DoesNotFitError, match=r"500 codes of 4 bytes need 0\.000 GB"):
        LocalService(ServeSettings(index=uri, shards=2, memory_gb=1e-9))
    flat, fast = CodeGeometry(dim=16, m=8), CodeGeometry(dim=16, m=16, nbits=4)
    check_fits(10**9, flat, 10 * 10**9)
    with pytest.raises(DoesNotFitError, match=r"10\.000 GB, 9\.999 GB are allowed"):
        check_fits(10**9, flat, 9_999_000_000)
    with pytest.raises(DoesNotFitError, match=r"18\.000 GB"):
        check_fits(10**9, fast, 10 * 10**9)
    with pytest.raises(DoesNotFitError, match=r"26\.000 GB"):
        check_fits(10**9, flat, 10 * 10**9, gpu=True)
