"""Temporary files of a process, in the folder for them (TMPDIR).

Writing to a mapped file on a full disk ends the process (SIGBUS) without a message. So disk space
is reserved before such a file is mapped, and a full disk is an error with the numbers.
"""

import contextlib
import errno
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dq_cluster.errors import StorageError
from dq_cluster.storage.failures import megabytes

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)
_BLOCK = bytes(1 << 20)


def scratch_file(size: int = 0) -> IO[bytes]:
    """An unnamed temporary file that has room for `size` bytes; it goes with its last user.

    Raises StorageError, with the numbers, where the disk has not.
    """
    with scratch_room(size or None), contextlib.ExitStack() as on_failure:
        file = on_failure.enter_context(tempfile.TemporaryFile())
        if size:
            reserve(file.fileno(), size)
        on_failure.pop_all()
        return file


def check_scratch(size: int) -> None:
    """Raise StorageError, with the numbers, where the disk has no room for `size` bytes.

    Before several files are made that take so much together.
    """
    with scratch_room(size):
        if shutil.disk_usage(tempfile.gettempdir()).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def scratch_memory(size: int) -> mmap.mmap:
    """`size` bytes of memory over an unnamed temporary file. Raises as `scratch_file`."""
    with scratch_file(size) as file:
        return mmap.mmap(file.fileno(), size)


@contextlib.contextmanager
def scratch_room(size: int | None = None, *, written: int = 0) -> Iterator[None]:
    """Say which folder has no room, and how much, when a temporary file cannot be written.

    size: of the whole file, bytes, where it is known; written: of it, so far. Raises StorageError.
    """
    folder, free = None, 0
    try:
        folder = tempfile.gettempdir()
        free = written + shutil.disk_usage(folder).free
        yield
    except OSError as error:
        if folder is None or not os.path.isdir(folder):
            raise StorageError(
                f"no temporary file can be made ({error.strerror or error}); set TMPDIR to a "
                "folder that exists and can be written"
            ) from error
        if error.errno not in _NO_ROOM:
            raise
        needed = f"{megabytes(size)} are" if size is not None else f"more than {megabytes(free)} is"
        raise StorageError(
            f"{needed} needed in {folder}, the folder for temporary files, and {megabytes(free)} "
            f"were free ({os.strerror(error.errno)}); set TMPDIR to a folder on a larger disk"
        ) from error


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for temporary files that is removed afterwards."""
    with scratch_room(), tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def reserve(handle: int, size: int) -> None:
    """Give an open file `size` bytes on its disk. Raises OSError where the disk has fewer."""
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        with open(handle, "r+b", closefd=False) as file:
            for start in range(0, size, len(_BLOCK)):
                file.write(_BLOCK[: size - start])
