"""Storage: the same promises on a local folder and on a real S3 server."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dq_cluster.errors import InputError, NotFoundError, StorageRefusedError, UserError
from dq_cluster.storage import Storage


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "store"))
    return Storage(request.getfixturevalue("s3") + "/store")


def test_write_read_list_delete(storage: Storage) -> None:
    storage.write("a/b.bin", b"one")
    storage.write("a/b.bin", b"three")
    storage.write("c", b"")
    assert storage.read("a/b.bin") == b"three"
    assert storage.size("a/b.bin") == 5
    assert [(f.path, f.size) for f in storage.list()] == [("a/b.bin", 5), ("c", 0)]
    assert [f.path for f in storage.child("a").list()] == ["b.bin"]
    assert list(storage.list("nothing")) == []
    storage.delete("c")
    storage.delete("c")
    assert not storage.exists("c")
    assert storage.exists("a/b.bin")


def test_listing_has_a_time_in_utc(storage: Storage) -> None:
    storage.write("x", b"1")
    (info,) = storage.list()
    assert info.modified.utcoffset() is not None


def test_absent_is_not_found(storage: Storage) -> None:
    with pytest.raises(NotFoundError, match="nope"):
        storage.read("nope")
    with pytest.raises(NotFoundError):
        storage.size("nope")


def test_create_lets_exactly_one_writer_win(storage: Storage) -> None:
    barrier = threading.Barrier(8)

    def attempt(number: int) -> bool:
        barrier.wait()
        return storage.create("once", str(number).encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))
    assert sum(won) == 1
    assert storage.read("once") == str(won.index(True)).encode()


def test_replace_is_compare_and_swap(storage: Storage) -> None:
    assert storage.replace("p", b"1", None)
    assert not storage.replace("p", b"2", None)
    assert not storage.replace("p", b"2", b"0")
    assert storage.replace("p", b"2", b"1")
    assert storage.read("p") == b"2"


def test_concurrent_swaps_lose_no_increment(storage: Storage) -> None:
    storage.write("n", b"0")

    def increment(_: int) -> None:
        while True:
            seen = storage.read("n")
            if storage.replace("n", str(int(seen) + 1).encode(), seen):
                return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(increment, range(12)))
    assert storage.read("n") == b"12"


def test_upload_and_open(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")
    storage.upload(source, "up/loaded")
    with storage.open("up/loaded") as file:
        file.seek(4)
        assert file.read(3) == b"456"


def test_arrow_reads_the_same_place(storage: Storage) -> None:
    storage.write("a/x", b"abc")
    with storage.arrow.open_input_file(storage.path("a/x")) as file:
        assert file.read() == b"abc"


def test_pickles_as_its_uri(storage: Storage) -> None:
    storage.write("x", b"1")
    again = pickle.loads(pickle.dumps(storage))
    assert again == storage
    assert again.read("x") == b"1"
    arrow = pickle.loads(pickle.dumps(storage.arrow))
    with arrow.open_input_file(storage.path("x")) as file:
        assert file.read() == b"1"


def test_paths_cannot_climb_out(storage: Storage) -> None:
    with pytest.raises(InputError, match="leaves"):
        storage.read("../secret")


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(InputError, match="ftp"):
        Storage("ftp://host/x")


def test_unwritable_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageRefusedError, match="permissions") as caught:
        Storage(str(tmp_path / "file" / "index")).write("x", b"1")
    assert isinstance(caught.value, UserError)


def test_wrong_secret_is_a_user_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(StorageRefusedError):
            Storage(s3).write("x", b"1")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_missing_bucket_is_not_found(s3: str) -> None:
    with pytest.raises(NotFoundError):
        Storage("s3://dq-no-such-bucket-here").read("x")


def test_local_leftovers_of_a_crash_are_not_seen(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.replace("x", b"1", None)
    storage.replace("x", b"2", b"1")
    (tmp_path / ".partial-of-a-crash").write_bytes(b"1")
    assert [info.path for info in storage.list()] == ["x"]
