"""WebDataset: tars whose members share a key, one sample a key."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dq_cluster.images.archive import Archive, DamagedTarError, open_archive
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.decode import Reason
from dq_cluster.images.files import as_text, gather
from dq_cluster.images.formats import HEAD, identify
from dq_cluster.images.names import is_named_otherwise, is_named_picture
from dq_cluster.images.skipped import NO_SUFFIX, Skipped, list_named
from dq_cluster.images.units import Unit, as_planned
from dq_cluster.storage import FileInfo, Storage

SUFFIXES = (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst") + tuple(
    f".tar.{kind}" for kind in ("gz", "bz2", "xz", "zst", "zstd")
)
# What WebDataset's own tools pass over: `__meta__`, `__about__/x.txt`.
_META = re.compile(r"__[^/]*__($|/)")


def split_member(name: str) -> tuple[str, str]:
    """The key of a WebDataset's member, up to the first dot of its file name, and its extension
    in lower case."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def is_image(extension: str) -> bool:
    """Whether a WebDataset's member with this extension (`jpg`, `left.png`) is an image."""
    return is_named_picture(_suffix(extension))


def choose_image(images: Sequence[str]) -> str | None:
    """Which of a sample's images is its picture: `jpg` before `mask.png`, else the first."""
    return min(images, key=lambda name: (not is_image(name), "." in name), default=None)


def _suffix(extension: str) -> str:
    return f".{extension.rpartition('.')[2]}"


class WebDataset:
    """Tars of files that share a key: an image, and beside it `.json`, `.cls`, `.txt`, …

    The id is `<tar>/<key>`. A carried column is a key of the sample's `.json`, or a member's
    extension; its values are text. A sample ends where the key changes, or where an extension
    is repeated.
    """

    id_type = pa.string()

    def __init__(self, settings: SourceSettings) -> None:
        self._settings, self._storage = settings, Storage(settings.uri)
        self.skipped = Skipped()
        self._name = ""
        if settings.uri.lower().endswith(SUFFIXES) and not os.path.isdir(self._storage.uri):
            folder, _, self._name = self._storage.uri.rpartition("/")
            self._storage = Storage(folder or "/")

    def listing(self) -> Iterator[FileInfo]:
        if self._name:
            return iter([self._storage.info(self._name)])
        return list_named(self._storage, SUFFIXES, self.skipped)

    def holds(self, info: FileInfo) -> bool:
        return True

    def units(self) -> Iterator[Unit]:
        for info in self.listing():
            yield Unit(info.path, rows=0, size=info.size, stamp=info.stamp)

    def read(self, units: Iterable[Unit], rows: int) -> Iterator[pa.Table]:
        for unit in units:
            with as_planned(self._storage, unit):
                yield from gather(self._samples(unit.path), rows, self._settings.columns)

    def _samples(self, path: str) -> Iterator[dict[str, Any]]:
        max_bytes = self._settings.limits.max_bytes
        key, parts, damaged = "", dict[str, bytes | Reason](), False
        try:
            with open_archive(self._storage, path, max_bytes) as archive:
                for part_of, extension, data in self._parts(archive):
                    if parts and (part_of != key or extension in parts):
                        yield self._sample(path, key, parts)
                        parts = {}
                    key = part_of
                    parts[extension] = data
        except DamagedTarError:
            damaged = True
        if parts:
            yield self._sample(path, key, parts, cut=damaged)
        if damaged:
            # What the rest of the tar held cannot be known: one reject stands for it.
            uri = f"{self._storage.uri}/{path}"
            yield {"id": path, "uri": uri, "reason": Reason.UNREADABLE_FILE.value, "image": None}

    def _parts(self, archive: Archive) -> Iterator[tuple[str, str, bytes | Reason]]:
        """Key, extension, and bytes of the members of samples; or why there are no bytes."""
        for member in archive.members():
            if member.isdir():
                continue
            key, extension = split_member(member.name)
            if _META.match(member.name):
                self.skipped.add("tar member named __…__")
            elif not key or key.endswith("/"):
                self.skipped.add("hidden")
            elif member.issym() or member.islnk():
                if is_image(extension):
                    yield key, extension, Reason.MISSING
                else:
                    self.skipped.add("link in a tar")
            elif not member.isreg():
                self.skipped.add("not a file")
            elif member.size > self._settings.limits.max_bytes:
                yield key, extension, Reason.TOO_LARGE
            else:
                data = archive.read(member)
                if extension or _is_picture(data):
                    yield key, extension, data
                else:
                    self.skipped.add(NO_SUFFIX)

    def _sample(
        self, path: str, key: str, parts: Mapping[str, bytes | Reason], cut: bool = False
    ) -> dict[str, Any]:
        """The row of one sample; `cut` if damage may have taken some of its members."""
        uri = f"{self._storage.uri}/{path}#{key}"
        row: dict[str, Any] = {"id": f"{path}/{key}", "uri": uri, "reason": None, "image": None}
        columns = set(self._settings.columns) - {"uri"}
        row |= _columns(parts, columns)
        images = _images(parts)
        chosen = choose_image(images)
        for extension, data in parts.items():
            if extension == chosen:
                row["reason" if isinstance(data, Reason) else "image"] = data
            elif extension in images:
                self.skipped.add("further image of a sample")
            elif isinstance(data, Reason):
                self.skipped.add("large member beside an image")
        if chosen is None:
            row["reason"] = Reason.MISSING
        # What is lost could have been its picture, or its .json.
        plain = chosen is not None and is_image(chosen) and "." not in chosen
        told = not columns or ("json" in parts and columns <= row.keys())
        if cut and not (plain and told):
            row |= {"reason": Reason.UNREADABLE_FILE, "image": None}
        return row


def _columns(parts: Mapping[str, bytes | Reason], names: set[str]) -> dict[str, str | None]:
    """The carried columns that a sample has, from its `.json` or from members of their own."""
    about: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        about = json.loads(_bytes(parts.get("json")))
    columns: dict[str, str | None] = {}
    for name in names:
        if isinstance(about, dict) and name in about:
            columns[name] = None if about[name] is None else as_text(str(about[name]))
        elif isinstance(data := parts.get(name), bytes):
            columns[name] = data.decode("utf-8", "replace").strip()
    return columns


def _images(parts: Mapping[str, bytes | Reason]) -> list[str]:
    """The members that are pictures by their extension, or else by their first bytes."""
    return [
        extension
        for extension, data in parts.items()
        if is_image(extension)
        or (not is_named_otherwise(_suffix(extension)) and _is_picture(_bytes(data)))
    ]


def _is_picture(data: bytes) -> bool:
    return identify(data[:HEAD]) is not None


def _bytes(data: bytes | Reason | None) -> bytes:
    return data if isinstance(data, bytes) else b""
