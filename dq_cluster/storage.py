"""Storage: a URI becomes a filesystem, with the two atomic writes that the index needs.

Local paths and `s3://` are supported. Endpoint, region, and credentials of S3 come from the
standard AWS environment variables and files, never from dq_cluster's own configuration.
Nothing outside this module knows which kind of storage it is talking to.
"""

import contextlib
import errno
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow.fs as pafs

from dq_cluster.errors import InputError, NotFoundError, StorageError, StorageRefusedError
from dq_cluster.location import absolute

_LOST_RACE = {"PreconditionFailed", "ConditionalRequestConflict"}


@dataclass(frozen=True)
class FileInfo:
    """A stored file: path relative to its Storage, size in bytes, modification time (UTC)."""

    path: str
    size: int
    modified: datetime


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
        _retry_when_busy()
        return fsspec.filesystem("s3", default_cache_type="none", use_listings_cache=False)

    @property
    def arrow(self) -> pafs.FileSystem:
        """The same place as a pyarrow filesystem; paths for it come from `path`."""
        if self.is_local:
            return pafs.LocalFileSystem()
        return pafs.PyFileSystem(pafs.FSSpecHandler(self.filesystem))

    def path(self, name: str = "") -> str:
        """`name` as `filesystem` and `arrow` spell it. Raises InputError if it climbs out."""
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise InputError(f"path '{name}' leaves {self.uri}")
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
            return bool(self.filesystem.exists(self.path(name)))

    def size(self, name: str) -> int:
        """Bytes in the file `name`."""
        with translated(self, name):
            return int(self.filesystem.size(self.path(name)))

    def read(self, name: str) -> bytes:
        with translated(self, name):
            return bytes(self.filesystem.cat_file(self.path(name)))

    def open(self, name: str) -> Any:
        """A seekable binary file for reading."""
        with translated(self, name):
            return self.filesystem.open(self.path(name), "rb")

    def write(self, name: str, data: bytes) -> None:
        """Write whole; a reader sees the old content or the new, never a part."""
        with translated(self, name):
            if self.is_local:
                with _beside(self.path(name), data) as temporary:
                    os.replace(temporary, self.path(name))
            else:
                self.filesystem.pipe_file(self.path(name), data)

    def upload(self, local: str | Path, name: str) -> None:
        """Copy a local file to `name`; it appears whole or not at all."""
        with translated(self, name):
            if self.is_local:
                with _beside(self.path(name), b"") as temporary:
                    shutil.copyfile(local, temporary)
                    os.replace(temporary, self.path(name))
            else:
                self.filesystem.put_file(str(local), self.path(name))

    def create(self, name: str, data: bytes) -> bool:
        """Write `name` only if it is absent. False if it exists: the first writer wins."""
        with translated(self, name):
            if not self.is_local:
                return self._put_if(name, data, IfNoneMatch="*")
            with _beside(self.path(name), data) as temporary:
                try:
                    os.link(temporary, self.path(name))
                except FileExistsError:
                    return False
            return True

    def replace(self, name: str, data: bytes, expected: bytes | None) -> bool:
        """Compare-and-swap: write `name` only if it still holds `expected` (None: absent)."""
        if expected is None:
            return self.create(name, data)
        with translated(self, name):
            if not self.is_local:
                tag = self.filesystem.info(self.path(name))["ETag"]
                if self.filesystem.cat_file(self.path(name)) != expected:
                    return False
                return self._put_if(name, data, IfMatch=tag)
            target = Path(self.path(name))
            with open(target.with_name(f".{target.name}.lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if target.read_bytes() != expected:
                    return False
                self.write(name, data)
            return True

    def list(self, prefix: str = "") -> Iterator[FileInfo]:
        """Every file below the folder `prefix`, in the order of their paths; none if absent.

        Streams: memory does not grow with the number of files (on local disk, with the largest
        folder). Files and folders whose names start with a dot are left out: locks, partial
        files, and the books of a run.
        """
        top = self.path(prefix)
        with translated(self, prefix):
            entries = _local_files if self.is_local else self._s3_files
            for full, size, stamp in entries(top):
                if "/." not in full[len(top) :]:
                    yield FileInfo(full[len(self._root) + 1 :], size, stamp)

    def delete(self, name: str) -> None:
        """Remove one file; an absent one is no error."""
        with translated(self, name), contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self.path(name))

    def _s3_files(self, top: str) -> Iterator[tuple[str, int, datetime]]:
        bucket, _, key = top.partition("/")
        page: dict[str, Any] = {}
        while page.get("IsTruncated", True):
            token = page.get("NextContinuationToken")
            page = self.filesystem.call_s3(
                "list_objects_v2",
                Bucket=bucket,
                Prefix=f"{key}/" if key else "",
                **({"ContinuationToken": token} if token else {}),
            )
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    yield f"{bucket}/{entry['Key']}", int(entry["Size"]), entry["LastModified"]

    def _put_if(self, name: str, data: bytes, **condition: str) -> bool:
        bucket, _, key = self.path(name).partition("/")
        try:
            self.filesystem.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
        except OSError as error:
            # s3fs has no exception of its own for a failed condition; the cause has the code.
            response = getattr(error.__cause__, "response", {})
            if response.get("Error", {}).get("Code") in _LOST_RACE:
                return False
            raise
        return True


@functools.cache
def _retry_when_busy() -> None:
    import s3fs.core

    s3fs.core.set_custom_error_handler(_busy)


def _busy(error: Exception) -> bool:
    """Whether S3 had too much to do. s3fs tries again where the answer's text says so; the answer
    to a HEAD request has no text."""
    answer = getattr(error, "response", {}).get("ResponseMetadata", {})
    return answer.get("HTTPStatusCode") == 503


def _local_files(folder: str) -> Iterator[tuple[str, int, datetime]]:
    try:
        with os.scandir(folder) as found:
            # A folder sorts as its files will: by the name with the slash behind it.
            entries = sorted(found, key=lambda e: f"{e.name}/" if e.is_dir() else e.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir():
            if not _leads_back(entry):
                yield from _local_files(entry.path)
        elif entry.is_file():
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                stat = entry.stat()
                yield entry.path, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC)


def _leads_back(entry: os.DirEntry[str]) -> bool:
    """Whether a link leads to a folder that it lies in: following it would never end."""
    if not entry.is_symlink():
        return False
    target, here = Path(entry.path).resolve(), Path(entry.path).parent.resolve()
    return target == here or target in here.parents


@contextlib.contextmanager
def _beside(target: str, data: bytes) -> Iterator[str]:
    """A durable temporary file holding `data` in the folder of `target`, removed afterwards."""
    folder = os.path.dirname(target)
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def translated(storage: Storage, name: str) -> Iterator[None]:
    """Turn what filesystems raise into dq_cluster's errors, naming the place.

    Storage's methods do so themselves; reading from a file that `open` returned does not.
    """
    where = f"{storage.uri}/{name}" if name else storage.uri
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{where} does not exist") from error
    except (PermissionError, NotADirectoryError, IsADirectoryError) as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageRefusedError(
            f"{where}: {reason}; check the path and your permissions"
        ) from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise StorageRefusedError(f"{where}: the file system is read-only") from error
        raise StorageError(f"{where}: {error}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp"):
            raise StorageError(f"{where}: {error}") from error
        raise
