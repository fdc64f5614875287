"""A source of image files in folders; and rows gathered into tables."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa

from dq_cluster.errors import InputError, NotFoundError, StorageRefusedError
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.decode import Reason
from dq_cluster.images.formats import HEAD, READABLE, identify, is_readable
from dq_cluster.images.names import (
    CAMERA_RAW,
    is_camera_raw,
    is_named_otherwise,
    is_named_picture,
    suffix_of,
    system_folder,
)
from dq_cluster.images.skipped import Skipped
from dq_cluster.images.units import Unit, check_unchanged
from dq_cluster.storage import FileInfo, Storage

A = TypeVar("A")
B = TypeVar("B")

# A table stays below this many bytes of images, or holds one row.
_TABLE_BYTES = 64 << 20
# Concurrent reads of small objects: all waiting, little work.
_READERS = 16
# Files of a listing whose first bytes are asked for at once.
_BATCH = 1000


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> pa.Table:
    schema = pa.schema(
        [("id", pa.string()), ("uri", pa.string())]
        + [(name, pa.string()) for name in columns if name != "uri"]
        + [("reason", pa.string()), ("image", pa.binary())]
    )
    return pa.Table.from_pylist(list(rows), schema=schema)


def gather(
    rows: Iterable[dict[str, Any]], limit: int, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Gather rows into tables, each within `limit` rows and the limit of bytes."""
    gathered: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        bytes_here = len(row["image"] or b"")
        if gathered and (len(gathered) == limit or size + bytes_here > _TABLE_BYTES):
            yield _table(gathered, columns)
            gathered, size = [], 0
        gathered.append(row)
        size += bytes_here
    if gathered:
        yield _table(gathered, columns)


def map_ahead(read: Callable[[A], B], items: Iterable[A], ahead: int = 32) -> Iterator[B]:
    """`map` in order and concurrently, with at most `ahead` results waiting."""
    waiting: list[Future[B]] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) == ahead:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


class Folder:
    """Image files below a folder. The id is the path, `label` the folder a file lies in.

    A clear suffix says what a file is; where there is none, its first bytes do.
    """

    id_type = pa.string()

    def __init__(self, settings: SourceSettings) -> None:
        self._settings, self._storage = settings, Storage(settings.uri)
        self.skipped = Skipped()
        unknown = set(settings.columns) - {"uri", "label"}
        if unknown:
            raise InputError(f"a folder of images has columns uri and label, not {sorted(unknown)}")

    def units(self) -> Iterator[Unit]:
        with ThreadPoolExecutor(_READERS) as pool:
            listed = self.listing()
            while batch := list(itertools.islice(listed, _BATCH)):
                looks = {
                    info.path: pool.submit(self._look, info)
                    for info in batch
                    if not is_named_picture(suffix_of(info.path))
                }
                for info in batch:
                    if info.path in looks and not self._accepts(info, looks[info.path].result()):
                        continue
                    if not is_text(info.path):
                        raise InputError(f"the file name {info.path!a} is not UTF-8; rename it")
                    yield Unit(info.path, size=info.size, stamp=info.stamp)

    def listing(self) -> Iterator[FileInfo]:
        for info in self._storage.list(left_out=self.skipped.add_listed):
            suffix = suffix_of(info.path)
            if folder := system_folder(info.path):
                self.skipped.add(folder)
            elif is_named_picture(suffix) or not is_named_otherwise(suffix):
                yield info
            else:
                self.skipped.add_file(info.path)
                if is_camera_raw(suffix):
                    self.skipped.formats[CAMERA_RAW] += 1

    def holds(self, info: FileInfo) -> bool:
        named = is_named_picture(suffix_of(info.path))
        return named or self._accepts(info, self._look(info))

    def _look(self, info: FileInfo) -> str | None:
        """The format that the first bytes of a file tell, if any."""
        if not info.size:
            return None
        try:
            return identify(self._storage.head(info.path, HEAD))
        except StorageRefusedError:
            return READABLE[0]  # it may well be a picture, and will be a reject with this reason
        except NotFoundError:
            return None

    def _accepts(self, info: FileInfo, format: str | None) -> bool:
        if format is not None and is_readable(format):
            return True
        self.skipped.add_file(info.path)
        if format is not None:
            self.skipped.formats[format] += 1
        return False

    def read(self, units: Iterable[Unit], rows: int) -> Iterator[pa.Table]:
        read = map if self._storage.is_local else map_ahead
        yield from gather(read(self._row, units), rows, self._settings.columns)

    def _row(self, unit: Unit) -> dict[str, Any]:
        folder = unit.path.rpartition("/")[0].rpartition("/")[2]
        row = {"id": unit.path, "uri": f"{self._storage.uri}/{unit.path}", "label": folder or None}
        return row | read_image(self._storage, unit, self._settings.limits.max_bytes)


def read_image(storage: Storage, unit: Unit, max_bytes: int) -> dict[str, Any]:
    """`image` and `reason` of an image that is a file of its own.

    Raises InputError where the file is not the one that was planned.
    """
    try:
        with storage.open(unit.path) as file:
            data = file.read(max_bytes + 1)
            check_unchanged(storage, unit, storage.info(unit.path, file))
    except NotFoundError:
        return {"image": None, "reason": Reason.MISSING.value}
    except StorageRefusedError:
        return {"image": None, "reason": Reason.FORBIDDEN.value}
    if len(data) > max_bytes:
        return {"image": None, "reason": Reason.TOO_LARGE.value}
    return {"image": data, "reason": None}


def is_text(name: str) -> bool:
    """Whether a name from the file system, or a string from JSON, can be written as UTF-8."""
    return as_text(name) == name


def as_text(value: str) -> str:
    """`value` with a question mark for each character that cannot be written as UTF-8."""
    return value.encode("utf-8", "replace").decode()
