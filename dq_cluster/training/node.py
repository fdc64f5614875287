"""A node's own copy of what training looks up by row, as memory-mapped matrices.

A step needs the rows of its batch and of their positives, which lie anywhere. Each node copies
features and positives to its local disk once; its workers share the copy, and the operating
system keeps in memory what is in use. docs/decisions/0006-training-data-by-row.md says why.
"""

import contextlib
import fcntl
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from dq_cluster.errors import StorageError
from dq_cluster.storage.local import locked
from dq_cluster.storage.scratch import reserve, scratch_room


@contextlib.contextmanager
def node_folder(job: str) -> Iterator[Path]:
    """Where this node keeps its copy of what `job` trains on; any difference is another job.

    Copies that no process of the node uses any longer, of jobs that failed or were killed, are
    removed first: not this job's own, it goes on with it.
    """
    copies = Path(tempfile.gettempdir()) / f"dq-cluster-{os.getuid()}"
    copies.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = copies / hashlib.sha256(job.encode()).hexdigest()[:32]
    # Shared among the workers of the job; the kernel frees it however they end.
    with open(_lock_of(folder), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        folder.mkdir(exist_ok=True, mode=0o700)
        for other in copies.iterdir():
            if other.is_dir() and other != folder:
                _remove_unused(other)
        yield folder


def _remove_unused(folder: Path) -> None:
    with open(_lock_of(folder), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        forget(folder)


def _lock_of(folder: Path) -> Path:
    # Beside the folder and never removed, so that all workers lock the same file.
    return folder.with_suffix(".in-use")


Part = tuple[slice | np.ndarray, np.ndarray]
"""Some rows of a matrix, and their values."""


def mapped(
    path: Path, shape: tuple[int, ...], dtype: str, parts: Callable[[], Iterable[Part]]
) -> np.ndarray:
    """The matrix at `path`, read-only; the first caller fills it with `parts()`.

    Others on the node wait meanwhile. A process killed half-way leaves no `path`. Raises
    StorageError where the disk has no room for it.
    """
    with locked(str(path.with_suffix(".lock")), patience=math.inf):
        if not path.exists():
            partial = path.with_suffix(".partial")
            matrix = _new_matrix(partial, shape, dtype)
            for rows, values in parts():
                matrix[rows] = values
            matrix.flush()
            os.replace(partial, path)
    return np.asarray(np.load(path, mmap_mode="r"))


def _new_matrix(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    try:
        with scratch_room(math.prod(shape) * np.dtype(dtype).itemsize):
            matrix = np.lib.format.open_memmap(path, "w+", dtype, shape)
            with open(path, "r+b") as file:
                reserve(file.fileno(), os.path.getsize(path))
            return matrix
    except StorageError:
        path.unlink(missing_ok=True)  # others may need what it took of the disk
        raise


def forget(folder: Path) -> None:
    """Remove a node's copy; processes that have it mapped may go on using it."""
    shutil.rmtree(folder, ignore_errors=True)
