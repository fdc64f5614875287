"""What can go wrong with storage, in one line each: what, where, and what to do about it."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dq_cluster.errors import DqError, NotFoundError, StorageError, StorageRefusedError
from dq_cluster.storage import s3

if TYPE_CHECKING:
    from dq_cluster.storage import Storage

_PERMISSIONS = "check the path and your permissions"
# What asking again unchanged will not mend, and what to do instead.
_REFUSED = {
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.ENOTDIR: _PERMISSIONS,
    errno.EISDIR: _PERMISSIONS,
    errno.EROFS: "write to another place, or mount it for writing",
    errno.ENAMETOOLONG: "use shorter names",
    errno.EILSEQ: "this file system cannot hold such a name; use plain ones",
    errno.ELOOP: "its links lead in a circle; remove one",
}
# What may pass, or what somebody may mend while we wait.
_ADVICE = {
    errno.EIO: "the disk, or the way to it, fails; look at the system's log (dmesg)",
    errno.ESTALE: "the network file system lost it; try again, or mount it anew",
    errno.ENOTCONN: "the file system's server is gone; mount it anew",
    errno.ETIMEDOUT: "the file system's server does not answer; try again",
    errno.EHOSTDOWN: "the file system's server does not answer; try again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine; close some",
    errno.EBUSY: "something else uses it; try again",
    errno.ETXTBSY: "something else uses it; try again",
    errno.EXDEV: "it is a mount point of its own; give a folder of one file system",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or use another file system",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "urllib3")


@contextlib.contextmanager
def translated(storage: "Storage", name: str) -> Iterator[None]:
    """Turn what filesystems raise into dq_cluster's errors, naming the place.

    Storage's methods do so themselves, and so do the files that `open` and `arrow` give.
    """
    where = f"{storage.uri}/{name}" if name else storage.uri
    try:
        yield
    except DqError:
        raise
    except OSError as error:
        raise s3.explained(where, error) or _of_system(where, error) from error
    except Exception as error:
        if failure := s3.explained(where, error):
            raise failure from error
        if type(error).__module__.partition(".")[0] in _CLIENTS:
            raise StorageError(f"{where}: {error}") from error
        raise


def _of_system(where: str, error: OSError) -> DqError:
    number = error.errno
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{where} does not exist")
    if number is None:
        refused = isinstance(error, PermissionError | NotADirectoryError | IsADirectoryError)
        return _refused(where, str(error), _PERMISSIONS) if refused else _failed(where, str(error))
    if number in _FULL:
        return StorageError(f"{where}: {full(where, number)}; free some, or use another place")
    if number in _REFUSED:
        return _refused(where, os.strerror(number), _REFUSED[number])
    if number in _ADVICE:
        return _failed(where, f"{os.strerror(number)}; {_ADVICE[number]}")
    return _failed(where, str(error))


def _refused(where: str, reason: str, advice: str) -> StorageRefusedError:
    return StorageRefusedError(f"{where}: {reason}; {advice}")


def _failed(where: str, reason: str) -> StorageError:
    return StorageError(f"{where}: {reason}")


def full(path: str, number: int) -> str:
    """That a disk is full, or a quota used up, with what is free where `path` would lie."""
    if number == errno.EDQUOT:
        return "your quota of the file system is used up"
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    try:
        room = shutil.disk_usage(path)
    except OSError:
        return "no space is left on the file system"
    return (
        f"no space is left on the file system ({megabytes(room.free)} free of "
        f"{megabytes(room.total)})"
    )


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
