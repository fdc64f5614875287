"""Garbage collection: files no version names, once they are old enough.

A run counts as a whole: as long as its newest file is young it may be at work, and what it wrote
days ago will be named by the manifest it has not published yet. Models are never removed here.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from dq_cluster.config import Settings
from dq_cluster.errors import InputError
from dq_cluster.index.catalog import Index
from dq_cluster.index.manifest import FileEntry, Manifest
from dq_cluster.storage import FileInfo, Storage


class GcReport(Settings):
    """What was removed, or, in a dry run, would be."""

    versions: tuple[int, ...]
    files: int
    bytes: int
    dry_run: bool


def collect_garbage(
    index: Index,
    grace: timedelta = timedelta(days=3),
    *,
    keep: int | None = None,
    dry_run: bool = False,
) -> GcReport:
    """Remove what no version names and is older than `grace`.

    keep: first remove all versions but the current one and the `keep` newest.
    """
    if keep is not None and keep < 0:
        raise InputError(f"keep must be 0 versions or more, not {keep}")
    storage = index.storage
    versions, current = index.versions(), index.current()
    dropped = expired(versions, current, keep)
    live = {
        file.path
        for number in versions
        if number not in dropped
        for file in named_files(index.manifest(number))
    }
    before = datetime.now(UTC) - grace
    quiet = quiet_runs(_run_files(storage), before)
    garbage = [
        info
        for info in _run_files(storage)
        if _run_of(info) in quiet and info.path not in live and not info.path.endswith("/published")
    ]
    if not dry_run:
        # Versions before their files, ledgers before what they name: killed half-way, this
        # leaves files without a name, never names without a file.
        for number in dropped:
            storage.delete(f"versions/{number}.json")
        for info in garbage:
            storage.delete(info.path)
    return GcReport(
        versions=dropped,
        files=len(garbage),
        bytes=sum(info.size for info in garbage),
        dry_run=dry_run,
    )


def expired(versions: list[int], current: int, keep: int | None) -> tuple[int, ...]:
    """The versions to drop, oldest first: all but `current` and the `keep` newest."""
    if keep is None:
        return ()
    newest = versions[max(0, len(versions) - keep) :]
    return tuple(number for number in versions if number != current and number not in newest)


def quiet_runs(files: Iterable[FileInfo], before: datetime) -> set[str]:
    """Runs whose newest file is older than `before`: published long ago, or abandoned."""
    newest: dict[str, datetime] = {}
    for info in files:
        run = _run_of(info)
        newest[run] = max(info.modified, newest.get(run, info.modified))
    return {run for run, modified in newest.items() if modified < before}


def named_files(manifest: Manifest) -> Iterator[FileEntry]:
    """Every file the manifest names."""
    yield from manifest.files
    yield from manifest.tombstones
    yield from manifest.rejects


def _run_files(storage: Storage) -> Iterator[FileInfo]:
    yield from storage.list("runs")
    yield from storage.list("data")


def _run_of(info: FileInfo) -> str:
    return info.path.split("/")[1]
