"""Every failure of storage is one line that says what, where, and what to do."""

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.errors import (
    DqError,
    InputError,
    NotFoundError,
    StorageError,
    StorageRefusedError,
    UserError,
)
from dq_cluster.storage import Storage, translated
from tests.seaweed import PUBLIC_BUCKET, S3Server


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Changes the environment, and lets s3fs look at it anew."""
    import s3fs

    def change(**values: str | None) -> None:
        for name, value in values.items():
            if value is None:
                monkeypatch.delenv(name)
            else:
                monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()

    yield change
    monkeypatch.undo()
    s3fs.S3FileSystem.clear_instance_cache()


NOBODY: dict[str, str | None] = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}


@pytest.mark.parametrize(
    ("environment", "kind", "words"),
    [
        (NOBODY, StorageRefusedError, "no S3 credentials were found; set AWS_ACCESS_KEY_ID"),
        (NOBODY | {"DQ_S3_ANONYMOUS": "*"}, StorageRefusedError, "S3 denies access at http"),
        (NOBODY | {"AWS_PROFILE": "nope"}, StorageRefusedError, "check AWS_PROFILE"),
        ({"AWS_ACCESS_KEY_ID": "nope"}, StorageRefusedError, "check AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": "nope"}, StorageRefusedError, "check AWS_ACCESS_KEY_ID"),
        ({"AWS_DEFAULT_REGION": "a b"}, StorageRefusedError, "set AWS_DEFAULT_REGION"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, StorageRefusedError, "check AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://h:99999"}, StorageRefusedError, "check AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, StorageError, "does not answer at http"),
    ],
)
def test_a_bucket_that_cannot_be_reached(
    s3: str,
    changed: Callable[..., None],
    environment: dict[str, str | None],
    kind: type[DqError],
    words: str,
) -> None:
    Storage(s3).write("x", b"1")
    changed(**environment, AWS_MAX_ATTEMPTS="2")
    calls: list[Callable[[], object]] = [
        lambda: Storage(s3).read("x"),
        lambda: list(Storage(s3).list()),
        lambda: Storage(s3).write("y", b"1"),
        lambda: Storage(s3).create("z", b"1"),
        lambda: Storage(s3).open("x").read(),
    ]
    for call in calls:
        with pytest.raises(kind) as caught:
            call()
        assert str(caught.value).startswith(s3)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_buckets_and_names_that_cannot_be(s3: str) -> None:
    with pytest.raises(NotFoundError, match="the bucket 'dq-none-here' does not exist at http"):
        Storage("s3://dq-none-here").read("x")
    with pytest.raises(StorageRefusedError, match="malformed"):
        Storage("s3://A B").read("x")
    for uri in ("s3://", "s3:///x"):
        with pytest.raises(InputError, match="names no bucket"):
            Storage(uri)


def test_a_public_bucket_beside_a_private_one(
    s3: str, s3_server: S3Server, changed: Callable[..., None]
) -> None:
    if PUBLIC_BUCKET not in [b["Name"] for b in s3_server.client().list_buckets()["Buckets"]]:
        s3_server.client().create_bucket(Bucket=PUBLIC_BUCKET)
    public = Storage(f"s3://{PUBLIC_BUCKET}/photos")
    public.write("1.jpg", b"open")
    changed(DQ_S3_ANONYMOUS=f"another, {PUBLIC_BUCKET}")
    assert public.read("1.jpg") == b"open"
    assert [info.path for info in public.list()] == ["1.jpg"]
    Storage(s3).write("x", b"1")
    assert Storage(s3).read("x") == b"1"
    with pytest.raises(StorageRefusedError, match="denies access"):
        public.write("2.jpg", b"")
    changed(**NOBODY)
    assert public.read("1.jpg") == b"open"


def test_requester_pays_goes_along_with_every_request(changed: Callable[..., None]) -> None:
    payers: Counter[tuple[str, str | None]] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # whose clients wait for "100 Continue"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            payers[self.command, self.headers.get("x-amz-request-payer")] += 1
            body = b"abc" if self.command != "PUT" else b""
            if "list-type" in self.path:
                body = b"<ListBucketResult/>"
            self.send_response(200)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        changed(
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.server_port}",
            AWS_ACCESS_KEY_ID="a",
            AWS_SECRET_ACCESS_KEY="b",
            AWS_DEFAULT_REGION="us-east-1",
            DQ_S3_REQUESTER_PAYS="dq-paid",
        )
        for storage in (Storage("s3://dq-paid/x"), Storage("s3://dq-other/x")):
            assert storage.read("a") == storage.open("a").read() == b"abc"
            assert storage.size("a") == 3
            assert not list(storage.list())
            storage.write("a", b"abc")
            storage.create("a", b"abc")
        server.shutdown()
        thread.join()
    paid = {command: count for (command, payer), count in payers.items() if payer == "requester"}
    free = {command: count for (command, payer), count in payers.items() if payer is None}
    assert paid == free
    assert paid.keys() == {"GET", "HEAD", "PUT"}


def test_a_server_that_dies_while_files_are_read(
    s3: str, s3_server: S3Server, changed: Callable[..., None]
) -> None:
    rows, sink = 400_000, BytesIO()
    pq.write_table(pa.table({"x": np.random.default_rng(0).random(rows)}), sink, row_group_size=999)
    storage = Storage(s3)
    storage.write("x", sink.getvalue())
    changed(AWS_MAX_ATTEMPTS="1")
    reading = []
    for file in (storage.open("x"), storage.arrow.open_input_file(storage.path("x"))):
        reading.append(pq.ParquetFile(file, pre_buffer=False).iter_batches(1000))
        next(reading[-1])
    s3_server.kill()
    try:
        for batches in reading:
            with pytest.raises(StorageError, match=rf"^{s3}/x: the S3 server does not answer"):
                list(batches)
    finally:
        s3_server.start()


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, StorageError, r"no space is left .*MB free of .*MB\); free some"),
        (errno.EDQUOT, StorageError, "quota of the file system is used up; free some"),
        (errno.EROFS, StorageRefusedError, "Read-only file system; .*mount it for writing"),
        (errno.EACCES, StorageRefusedError, "Permission denied; check the path"),
        (errno.EPERM, StorageRefusedError, "not permitted; check the path and your permissions"),
        (errno.ENAMETOOLONG, StorageRefusedError, "File name too long; use shorter names"),
        (errno.ELOOP, StorageRefusedError, "circle"),
        (errno.EIO, StorageError, "Input/output error; the disk"),
        (errno.ESTALE, StorageError, "[Ss]tale.*; the network file system"),
        (errno.ENOTCONN, StorageError, "not connected; .*mount it anew"),
        (errno.EMFILE, StorageError, "Too many open files; .*ulimit"),
        (errno.EXDEV, StorageError, "mount point"),
        (errno.ENOENT, NotFoundError, "does not exist"),
        (errno.EPROTO, StorageError, "Protocol error"),
    ],
)
def test_what_a_file_system_says(
    tmp_path: Path, number: int, kind: type[DqError], words: str
) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(kind, match=f"^{tmp_path}/x.*{words}") as caught, translated(storage, "x"):
        raise OSError(number, os.strerror(number), "secret-temporary-name")
    assert isinstance(caught.value, UserError) == (kind is not StorageError)


def test_names_and_folders_that_cannot_be_written(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for name in ("x" * 300, "a\0b"):
        for call in (storage.read, storage.size, lambda n: storage.write(n, b""), storage.delete):
            with pytest.raises(UserError):
                call(name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageRefusedError, match="Is a directory"):
        storage.write("folder", b"x")
    with pytest.raises(StorageRefusedError, match="Is a directory"):
        storage.read("folder")
    assert not list(tmp_path.glob(".partial-*"))
