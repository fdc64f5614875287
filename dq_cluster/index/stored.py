"""Whether files lie on storage as their entries say."""

from collections.abc import Iterable

from dq_cluster.errors import IntegrityError
from dq_cluster.index.manifest import FileEntry
from dq_cluster.storage import Storage


def stored_sizes(storage: Storage, *folders: str) -> dict[str, int]:
    """Bytes of every file below the folders, by path."""
    return {info.path: info.size for folder in folders for info in storage.list(folder)}


def check_stored(storage: Storage, folder: str, files: Iterable[FileEntry], advice: str) -> None:
    """Raise IntegrityError, ending in `advice`, unless all `files` lie in `folder`, whole."""
    sizes = stored_sizes(storage, folder)
    for file in files:
        if sizes.get(file.path) != file.size:
            stored = f"{sizes[file.path]}" if file.path in sizes else "no file"
            raise IntegrityError(
                f"{storage.uri}/{file.path}: {file.size} bytes were written, storage has {stored}; "
                f"{advice}"
            )
