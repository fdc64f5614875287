"""Sources that are files: folders of images, and WebDataset tars."""

import contextlib
import io
import itertools
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa

from dq_cluster.errors import InputError, NotFoundError
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.decode import Reason
from dq_cluster.images.units import Unit
from dq_cluster.storage import Storage

A = TypeVar("A")
B = TypeVar("B")

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".ppm",
)
# A table stays below this many bytes of images, or holds one row.
_TABLE_BYTES = 64 << 20
# Concurrent reads of small objects: all waiting, little work.
_READERS = 16


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
    """Image files below a folder. The id is the path, `label` the folder a file lies in."""

    id_type = pa.string()

    def __init__(self, settings: SourceSettings) -> None:
        self._settings, self._storage = settings, Storage(settings.uri)
        unknown = set(settings.columns) - {"uri", "label"}
        if unknown:
            raise InputError(f"a folder of images has columns uri and label, not {sorted(unknown)}")

    def units(self) -> Iterator[Unit]:
        for info in self._storage.list():
            if info.path.lower().endswith(IMAGE_SUFFIXES):
                if not _is_text(info.path):
                    raise InputError(f"the file name {info.path!a} is not UTF-8; rename it")
                yield Unit(info.path)

    def read(self, units: Iterable[Unit], rows: int) -> Iterator[pa.Table]:
        read = map if self._storage.is_local else map_ahead
        yield from gather(read(self._row, units), rows, self._settings.columns)

    def _row(self, unit: Unit) -> dict[str, Any]:
        folder = unit.path.rpartition("/")[0].rpartition("/")[2]
        row = {"id": unit.path, "uri": f"{self._storage.uri}/{unit.path}", "label": folder or None}
        return row | read_image(self._storage, unit.path, self._settings.limits.max_bytes)


def split_member(name: str) -> tuple[str, str]:
    """The key of a WebDataset's member, up to the first dot of its file name, and its extension
    in lower case."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def is_image(extension: str) -> bool:
    """Whether a WebDataset's member with this extension (`jpg`, `left.png`) is an image."""
    return f".{extension.rpartition('.')[2]}" in IMAGE_SUFFIXES


def read_image(storage: Storage, path: str, max_bytes: int) -> dict[str, Any]:
    """`image` and `reason` of an image that is a file of its own."""
    try:
        with storage.open(path) as file:
            data = file.read(max_bytes + 1)
    except NotFoundError:
        return {"image": None, "reason": Reason.MISSING.value}
    if len(data) > max_bytes:
        return {"image": None, "reason": Reason.TOO_LARGE.value}
    return {"image": data, "reason": None}


class WebDataset:
    """Tars of files that share a key: an image, and beside it `.json`, `.cls`, `.txt`, …

    The id is `<tar>/<key>`. A carried column is a key of the sample's `.json`, or a member's
    extension; its values are text.
    """

    id_type = pa.string()

    def __init__(self, settings: SourceSettings) -> None:
        self._settings, self._storage = settings, Storage(settings.uri)

    def units(self) -> Iterator[Unit]:
        for info in self._storage.list():
            if info.path.lower().endswith((".tar", ".tar.gz", ".tgz")):
                yield Unit(info.path, rows=0)

    def read(self, units: Iterable[Unit], rows: int) -> Iterator[pa.Table]:
        samples = itertools.chain.from_iterable(self._samples(unit.path) for unit in units)
        yield from gather(samples, rows, self._settings.columns)

    def _samples(self, path: str) -> Iterator[dict[str, Any]]:
        try:
            with (
                self._storage.open(path) as file,
                tarfile.open(
                    fileobj=io.BufferedReader(file, 1 << 20),
                    mode="r|*",
                    errorlevel=2,
                    errors="replace",
                ) as tar,
            ):
                for key, members in itertools.groupby(self._members(tar), lambda m: m[0]):
                    yield self._sample(path, key, {ext: data for _, ext, data in members})
        except (tarfile.TarError, zlib.error, EOFError, NotFoundError):
            # What the rest of the tar held cannot be known: one reject stands for it.
            uri = f"{self._storage.uri}/{path}"
            yield {"id": path, "uri": uri, "reason": Reason.UNREADABLE_FILE.value, "image": None}

    def _members(self, tar: tarfile.TarFile) -> Iterator[tuple[str, str, bytes | None]]:
        for member in tar:
            if not member.isfile():
                continue
            key, extension = split_member(member.name)
            if not key or key.endswith("/"):
                continue
            content = tar.extractfile(member)
            small = member.size <= self._settings.limits.max_bytes
            data = content.read() if content is not None and small else None
            if data is not None and len(data) != member.size:
                raise tarfile.ReadError("unexpected end of data")
            yield key, extension, data

    def _sample(self, path: str, key: str, members: dict[str, bytes | None]) -> dict[str, Any]:
        uri = f"{self._storage.uri}/{path}#{key}"
        row: dict[str, Any] = {"id": f"{path}/{key}", "uri": uri, "reason": None, "image": None}
        images = [extension for extension in members if is_image(extension)]
        if not images:
            row["reason"] = Reason.MISSING.value
        elif members[images[0]] is None:
            row["reason"] = Reason.TOO_LARGE.value
        else:
            row["image"] = members[images[0]]
        about: Any = {}
        with contextlib.suppress(ValueError):
            about = json.loads(members.get("json") or b"{}")
        for name in set(self._settings.columns) - {"uri"}:
            if isinstance(about, dict) and name in about:
                row[name] = None if about[name] is None else _as_text(str(about[name]))
            elif members.get(name) is not None:
                row[name] = (members[name] or b"").decode("utf-8", "replace").strip()
        return row


def _is_text(name: str) -> bool:
    """Whether a name from the file system, or a string from JSON, can be written as UTF-8."""
    return _as_text(name) == name


def _as_text(value: str) -> str:
    return value.encode("utf-8", "replace").decode()
