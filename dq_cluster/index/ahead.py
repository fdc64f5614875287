"""Files read ahead of use: from object storage it is the waiting for each that loading costs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from dq_cluster.index.manifest import FileEntry

T = TypeVar("T")
_MOST = 16
_BYTES = 32 << 20  # of the files under way, as stored; in memory they may be several times larger


def readers(files: Sequence[FileEntry]) -> int:
    """How many of the files to read at once: the larger they are, the fewer, at least one."""
    largest = max((file.size for file in files), default=0)
    return max(1, min(_MOST, _BYTES // max(largest, 1)))


def read_ahead(
    work: Callable[[FileEntry], Iterable[T]], files: Sequence[FileEntry], count: int
) -> Iterator[T]:
    """What `work` yields for every file, in order, read ahead by `count` threads, each file whole.

    One thread reads nothing ahead: only what is asked for, of large files too.
    """
    if count == 1:
        for file in files:
            yield from work(file)
        return
    coming = iter(files)
    with ThreadPoolExecutor(count) as pool:
        pending = deque(pool.submit(_whole, work, file) for file in islice(coming, count))
        while pending:
            parts = pending.popleft().result()
            pending.extend(pool.submit(_whole, work, file) for file in islice(coming, 1))
            yield from parts


def _whole(work: Callable[[FileEntry], Iterable[T]], file: FileEntry) -> list[T]:
    return list(work(file))
