"""Files are read ahead in order, never more at once than their sizes allow."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.index.ahead import read_ahead, readers
from dq_cluster.index.manifest import FileEntry


def entries(sizes: list[int]) -> list[FileEntry]:
    return [
        FileEntry(path=f"{number}", rows=1, size=size, sha256="", stats={})
        for number, size in enumerate(sizes)
    ]


@given(st.lists(st.integers(0, 1 << 30), max_size=40))
def test_in_order_and_within_bounds(sizes: list[int]) -> None:
    files, lock = entries(sizes), threading.Lock()
    begun, used = 0, 0

    def parts(file: FileEntry) -> Iterator[tuple[str, int]]:
        nonlocal begun
        with lock:
            begun += 1
            assert begun - used <= readers(files) + 2  # one is being used, one is next
        yield from ((file.path, part) for part in range(3))

    expected = [(file.path, part) for file in files for part in range(3)]
    for number, found in enumerate(read_ahead(parts, files, readers(files))):
        with lock:
            used = number // 3
        assert found == expected.pop(0)
    assert not expected
    assert 1 <= readers(files) <= 16
    assert readers(files) == 1 or readers(files) * max(sizes, default=0) <= 32 << 20


def test_of_a_large_file_only_what_is_asked_for_is_read() -> None:
    read = []

    def parts(file: FileEntry) -> Iterator[int]:
        for part in range(3):
            read.append(part)
            yield part

    files = entries([1 << 30])
    coming = read_ahead(parts, files, readers(files))
    assert next(coming) == 0
    assert read == [0]


def test_an_error_is_that_of_the_file() -> None:
    def parts(file: FileEntry) -> list[str]:
        if file.path == "2":
            raise OSError("gone")
        return [file.path]

    files = entries([1, 1, 1, 1])
    coming = read_ahead(parts, files, readers(files))
    assert [next(coming), next(coming)] == ["0", "1"]
    with pytest.raises(OSError, match="gone"):
        next(coming)
