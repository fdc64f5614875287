"""Files on a local disk, or on a network file system mounted like one.

Two writes have to be atomic among processes: creating a file that must not exist, and replacing
one that still holds what the writer read. docs/decisions/0012-atomic-writes.md says how, and what
happens on file systems without hard links or without locks.
"""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from dq_cluster.errors import StorageError, StorageRefusedError
from dq_cluster.storage.listing import FileInfo, LeftOut

_log = logging.getLogger(__name__)

Fill = Callable[[IO[bytes]], Any]

# What `link` says where there are no hard links: exFAT, SMB, gcsfuse, and what lies over them.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL}
_NO_LINKS |= {errno.EMLINK, errno.ENOTTY}
# What `flock`, `fcntl`, and `fsync` say where a file system knows nothing of them.
_UNKNOWN = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.ENOTTY}
_TAKEN = {errno.EAGAIN, errno.EACCES}
_FOLDER_LOCK = ".create.lock"
_PATIENCE = 60.0  # seconds for a lock that is otherwise held for milliseconds
_SILENCE = 5.0  # seconds of waiting without a message
_SHORTEST_NAP, _LONGEST_NAP = 0.001, 0.1
_WHOLE_FILE = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock


def exists(path: str) -> bool:
    """Whether `path` exists; what cannot be checked is an error, not an absence."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def write(path: str, fill: Fill) -> None:
    """Write whole: a reader sees the old content or the new, never a part."""
    with _beside(path, fill) as temporary:
        os.replace(temporary, path)


def copy(source: str | Path, path: str) -> None:
    """Copy a file; it appears whole or not at all."""
    with open(source, "rb") as file:
        write(path, lambda target: shutil.copyfileobj(file, target, 1 << 20))


def create(path: str, data: bytes) -> bool:
    """Write only if `path` is absent. False if it exists: the first writer wins."""
    with _beside(path, lambda file: file.write(data)) as temporary:
        try:
            os.link(temporary, path)
            return True
        except FileExistsError:
            # A network file system that repeats a request whose answer was lost finds our own.
            return os.stat(temporary).st_nlink > 1
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        with locked(os.path.join(os.path.dirname(path), _FOLDER_LOCK)):
            if os.path.lexists(path):
                return False
            os.replace(temporary, path)
            return True


def replace(path: str, data: bytes, expected: bytes) -> bool:
    """Write only if `path` still holds `expected`."""
    target = Path(path)
    with locked(str(target.with_name(f".{target.name}.lock"))):
        if target.read_bytes() != expected:
            return False
        write(path, lambda file: file.write(data))
        return True


def check_locks(folder: str) -> None:
    """Raise as `locked` does where `folder` cannot be written or its file system has no locks."""
    os.makedirs(folder, exist_ok=True)
    with locked(os.path.join(folder, _FOLDER_LOCK)):
        pass


@contextlib.contextmanager
def locked(path: str, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold a lock that the file `path` stands for; the system frees it when the process dies.

    Raises StorageError when it is not free within `patience` seconds, and StorageRefusedError
    where the file system has no locks.
    """
    begin, nap, silent = time.monotonic(), _SHORTEST_NAP, True
    with open(path, "w") as file:
        while not _lock(file.fileno(), path):
            waited = time.monotonic() - begin
            if silent and waited > _SILENCE:
                _log.warning("waiting for another process that has locked %s", path)
                silent = False
            if waited > patience:
                raise StorageError(
                    f"{path} was locked by another process for {patience:.0f} s; "
                    "find it with 'lslocks', end it, and try again"
                )
            time.sleep(nap)
            nap = min(2 * nap, _LONGEST_NAP)
        yield


def _lock(handle: int, path: str) -> bool:
    """Try to lock an open file: as a whole, else as a range of bytes, which some servers prefer."""
    for attempt in (
        lambda: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB),
        lambda: fcntl.fcntl(handle, fcntl.F_OFD_SETLK, _WHOLE_FILE),
    ):
        try:
            attempt()
            return True
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            if error.errno not in _UNKNOWN:
                raise
            reason = os.strerror(error.errno)
    raise StorageRefusedError(
        f"the file system of {os.path.dirname(path)} has no file locks ({reason}), without which "
        "two writers could undo each other's work; mount it with them (Lustre: -o flock), or use "
        "another place"
    )


def files(
    folder: str, left_out: LeftOut, above: frozenset[str] = frozenset()
) -> Iterator[FileInfo]:
    """Every file below `folder`, in the order of paths; `above` are the folders that it was
    reached through, without links."""
    try:
        with os.scandir(folder) as scan:
            # A folder sorts as its files will: by the name with the slash behind it.
            entries = sorted(scan, key=lambda e: f"{e.name}/" if _is_folder(e) else e.name)
    except FileNotFoundError:
        return
    except PermissionError:
        raise _unlisted(folder) from None
    above |= {os.path.realpath(folder)}
    for entry in entries:
        if _is_folder(entry):
            # Following a link to a folder that it lies in would never end.
            if entry.is_symlink() and os.path.realpath(entry.path) in above:
                left_out(entry.path, "link back")
            else:
                yield from files(entry.path, left_out, above)
            continue
        try:
            found_here = info(entry.path, entry.stat())
        except PermissionError:
            raise _unlisted(folder) from None
        except OSError:  # it leads nowhere, or was removed since it was listed
            if entry.is_symlink():
                left_out(entry.path, "broken link")
            continue
        if entry.is_file():
            yield found_here
        else:
            left_out(entry.path, "not a file")


def info(path: str, stat: os.stat_result) -> FileInfo:
    modified = datetime.fromtimestamp(stat.st_mtime, UTC)
    return FileInfo(path, stat.st_size, modified, stat.st_mtime_ns)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _unlisted(folder: str) -> StorageRefusedError:
    return StorageRefusedError(
        f"{folder}: permission denied to list this folder; make it readable, or move it away"
    )


@contextlib.contextmanager
def _beside(target: str, fill: Fill) -> Iterator[str]:
    """A durable temporary file in the folder of `target`, filled by `fill`, removed afterwards."""
    folder = os.path.dirname(target)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".partial-{uuid.uuid4().hex}")
    # The mode is asked for here: exFAT and SMB refuse to change it later.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(handle, "wb") as file:
            fill(file)
            file.flush()
            try:
                os.fsync(handle)
            except OSError as error:
                if error.errno not in _UNKNOWN:
                    raise
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
