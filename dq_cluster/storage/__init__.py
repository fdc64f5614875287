"""Storage: a URI becomes a filesystem, with the two atomic writes that the index needs.

Local paths and `s3://` are supported. Endpoint, region, and credentials of S3 come from the
environment (see `storage.s3`), never from dq_cluster's own configuration. Nothing outside this
package knows which kind of storage it is talking to.
"""

import contextlib
import functools
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs

from dq_cluster.errors import InputError
from dq_cluster.location import absolute
from dq_cluster.storage import local, s3
from dq_cluster.storage.failures import translated
from dq_cluster.storage.listing import FileInfo, LeftOut

__all__ = ["FileInfo", "LeftOut", "Storage", "translated"]


@dataclass(frozen=True)
class Storage:
    """A folder on local disk or object storage; paths given to its methods are relative to it.

    Cheap to pickle (only the URI travels), so Ray tasks may carry one. Every method raises
    NotFoundError for an absent path, StorageRefusedError where access is denied or the place
    cannot be written, and StorageError for any other failure of the storage.
    """

    uri: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", absolute(self.uri))

    @property
    def is_local(self) -> bool:
        return not self.uri.startswith("s3://")

    @functools.cached_property
    def _root(self) -> str:
        return self.uri.removeprefix("s3://")

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem; paths for it come from `path`."""
        if self.is_local:
            return fsspec.filesystem("file")
        return s3.filesystem(self._root.partition("/")[0])

    @property
    def arrow(self) -> pafs.FileSystem:
        """The same place as a pyarrow filesystem; paths for it come from `path`."""
        if self.is_local:
            return pafs.LocalFileSystem()
        return pafs.PyFileSystem(_Handler(self))

    def path(self, name: str = "") -> str:
        """`name` as `filesystem` and `arrow` spell it. Raises InputError if it climbs out."""
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise InputError(f"path '{name}' leaves {self.uri}")
        if "\0" in name:
            raise InputError(f"path {name!a} holds a zero byte, which no name may")
        return f"{self._root}/{name}" if name else self._root

    def child(self, name: str) -> "Storage":
        """The Storage of a sub-folder."""
        self.path(name)
        return Storage(f"{self.uri}/{name}")

    def local(self, name: str) -> Path | None:
        """Where the file `name` lies on a disk of this machine, if it does."""
        return Path(self.path(name)) if self.is_local else None

    def exists(self, name: str = "") -> bool:
        with translated(self, name):
            if self.is_local:
                return local.exists(self.path(name))
            return bool(self.filesystem.exists(self.path(name)))

    def size(self, name: str) -> int:
        """Bytes in the file `name`."""
        with translated(self, name):
            return int(self.filesystem.size(self.path(name)))

    def info(self, name: str, opened: io.RawIOBase | None = None) -> FileInfo:
        """What is stored as `name` now; of a file that `open` returned, what it reads from."""
        file = opened._file if isinstance(opened, _Reader) else None
        with translated(self, name):
            if self.is_local:
                stat = os.fstat(file.fileno()) if file else os.stat(self.path(name))
                return local.info(name, stat)
            details = file.details if file else self.filesystem.info(self.path(name))
            return s3.info(name, details["size"], details["LastModified"], details["ETag"])

    def read(self, name: str) -> bytes:
        with translated(self, name):
            return bytes(self.filesystem.cat_file(self.path(name)))

    def head(self, name: str, size: int) -> bytes:
        """The first `size` bytes of a file that is not empty, in one request."""
        with translated(self, name):
            return bytes(self.filesystem.cat_file(self.path(name), start=0, end=size))

    def open(self, name: str) -> io.RawIOBase:
        """A seekable binary file for reading; reading from it raises as the methods here do."""
        with translated(self, name):
            return _Reader(self, name, self.filesystem.open(self.path(name), "rb"))

    def write(self, name: str, data: bytes) -> None:
        """Write whole; a reader sees the old content or the new, never a part."""
        with translated(self, name):
            if self.is_local:
                local.write(self.path(name), lambda file: file.write(data))
            else:
                self.filesystem.pipe_file(self.path(name), data)

    def upload(self, source: str | Path, name: str) -> None:
        """Copy a local file to `name`; it appears whole or not at all."""
        with translated(self, name):
            if self.is_local:
                local.copy(source, self.path(name))
            else:
                self.filesystem.put_file(str(source), self.path(name))

    def create(self, name: str, data: bytes) -> bool:
        """Write `name` only if it is absent. False if it exists: the first writer wins."""
        with translated(self, name):
            if self.is_local:
                return local.create(self.path(name), data)
            return s3.create(self.filesystem, self.path(name), data)

    def replace(self, name: str, data: bytes, expected: bytes | None) -> bool:
        """Compare-and-swap: write `name` only if it still holds `expected` (None: absent)."""
        if expected is None:
            return self.create(name, data)
        with translated(self, name):
            if self.is_local:
                return local.replace(self.path(name), data, expected)
            return s3.replace(self.filesystem, self.path(name), data, expected)

    def check_replace(self) -> None:
        """Raise what `replace` would for want of locks or rights, before anything is replaced."""
        with translated(self, ""):
            if self.is_local:
                local.check_locks(self._root)

    def list(self, prefix: str = "", left_out: LeftOut | None = None) -> Iterator[FileInfo]:
        """Every file below the folder `prefix`, in the order of their paths; none if absent.

        Streams: memory does not grow with the number of files (on local disk, with the largest
        folder). Files and folders whose names start with a dot are left out: locks, partial
        files, and the records of a run; so are broken links, links to a parent, and anything
        that is not a file. `left_out` is called for each. Raises StorageRefusedError, naming it,
        for a folder that cannot be listed.
        """
        top = self.path(prefix)

        def tell(full: str, why: str) -> None:
            if left_out is not None:
                left_out(full[len(self._root) + 1 :], why)

        with translated(self, prefix):
            infos = local.files(top, tell) if self.is_local else s3.files(self.filesystem, top)
            for info in infos:
                if "/." in info.path[len(top) :]:
                    tell(info.path, "hidden")
                else:
                    path = info.path[len(self._root) + 1 :]
                    yield FileInfo(path, info.size, info.modified, info.stamp)

    def delete(self, name: str) -> None:
        """Remove one file; an absent one is no error."""
        with translated(self, name), contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self.path(name))


class _Reader(io.RawIOBase):
    """An open file whose failures are dq_cluster's errors."""

    def __init__(self, storage: Storage, name: str, file: Any) -> None:
        self._storage, self._name, self._file = storage, name, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        """All of the `size` bytes, where the file has as many left."""
        with translated(self._storage, self._name):
            return bytes(self._file.read(-1 if size is None else size))

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with translated(self._storage, self._name):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            super().close()


class _Handler(pafs.FSSpecHandler):
    """A filesystem for Arrow whose open files raise as those of a Storage."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage.filesystem)
        self._storage = storage

    def open_input_file(self, path: str) -> pa.PythonFile:
        name = path.removeprefix(f"{self._storage.path()}/")
        with translated(self._storage, name):
            file = self.fs.open(path, "rb")
        return pa.PythonFile(_Reader(self._storage, name, file), mode="r")

    open_input_stream = open_input_file
