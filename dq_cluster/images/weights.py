"""Weights on storage, as files of this machine: a local path as it is, s3:// copied once per node.

Copies lie in the cache, DQ_CACHE or ~/.cache/dq-cluster, and are named by what they were copied
from, with its stamps: weights that changed are another copy.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from dq_cluster.errors import InputError, NotFoundError, StorageRefusedError, UserError
from dq_cluster.location import absolute
from dq_cluster.storage import FileInfo, Storage

_COMPLETE = ".complete"


def local_folder(uri: str) -> Path:
    """The folder of weights at `uri`. Raises NotFoundError where it is empty or absent."""
    storage = Storage(uri)
    if storage.is_local:
        folder = Path(storage.path())
        if not folder.is_dir():
            raise NotFoundError(
                f"{uri} is no folder; name the folder that the library saved the model in"
            )
        return folder
    files = list(storage.list())
    if not files:
        raise NotFoundError(f"{uri} holds no file; name the folder that the model was saved in")
    return _copied(storage, files)


def local_file(uri: str) -> Path:
    """The file at `uri`, with what lies beside it as far as an ONNX file may name it."""
    folder, _, name = uri.rpartition("/")
    storage = Storage(folder or "/")
    if storage.is_local:
        path = Path(storage.path(name))
        if not path.is_file():
            raise NotFoundError(f"{uri} does not exist")
        return path
    info = storage.info(name)
    # Weights of more than 2 GB lie in files of their own, which begin with the name of the graph.
    beside = [each for each in storage.list() if each.path.startswith(f"{name}") and each != info]
    return _copied(storage, [info, *beside]) / name


def cache_folder() -> Path:
    """Where copies are kept: DQ_CACHE, or ~/.cache/dq-cluster, or a temporary folder without one.

    Raises StorageRefusedError for a DQ_CACHE that cannot be written.
    """
    named = os.environ.get("DQ_CACHE")
    home = Path(absolute(named or "~/.cache/dq-cluster"))
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            return home
    except OSError as error:
        if named:
            raise StorageRefusedError(
                f"DQ_CACHE={named} cannot be written: {error.strerror}; name another folder"
            ) from None
        shared = Path(tempfile.gettempdir()) / f"dq-cluster-{os.getuid()}"
        shared.mkdir(mode=0o700, exist_ok=True)
        return shared


def _copied(storage: Storage, files: list[FileInfo]) -> Path:
    named = "\n".join([storage.uri, *(f"{f.path} {f.size} {f.stamp}" for f in files)])
    home = cache_folder() / "weights"
    target = home / hashlib.sha256(named.encode()).hexdigest()[:32]

    def copy(folder: Path) -> None:
        for file in files:
            place = folder / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            _download(storage, file.path, place)

    once(target, copy)
    return target


def once(target: Path, make: Callable[[Path], None]) -> None:
    """Have `make` fill the folder `target` if no process of this node has done so.

    Others that want it wait for the one that makes it. What was left half made is made again.
    """
    if (target / _COMPLETE).exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.with_name(f"{target.name}.lock")):
        if (target / _COMPLETE).exists():
            return
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        try:
            make(target)
            (target / _COMPLETE).touch()
        except OSError as error:
            raise StorageRefusedError(
                f"weights cannot be kept in {target}: {error.strerror or error}; free space there, "
                "or set DQ_CACHE to another folder"
            ) from error


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(storage: Storage, name: str, place: Path) -> None:
    with storage.open(name) as source, place.open("wb") as sink:
        shutil.copyfileobj(source, sink, 16 << 20)


def required(path: Path, what: str) -> Path:
    """`path`, which holds `what`. Raises NotFoundError where it is absent."""
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist: {what}")
    return path


def advice(kind: str, error: Exception) -> UserError:
    """What a library says when it cannot load a model, as one line."""
    why = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"backbone '{kind}' cannot be loaded: {why[:400]}")
