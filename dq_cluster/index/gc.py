"""Garbage collection: files that no version names, once they are old and no driver uses them.

What is removed is looked at twice. Between the two looks a run may be resumed and publish, and a
version may be published or rolled back to; `dq_cluster.run` and `index.catalog` say why at least
one side always sees the other. Models are never removed, trainings only by name.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from dq_cluster.config import Settings
from dq_cluster.errors import InputError, NotFoundError
from dq_cluster.index.catalog import Index
from dq_cluster.index.garbage import RunFiles, expired, named_files, out_of_use, sort_files
from dq_cluster.run import Heartbeat, Run
from dq_cluster.storage import FileInfo


class Kept(Settings):
    """Something that no version names and that stays nevertheless, and why."""

    what: str
    why: str
    files: int
    bytes: int


class GcReport(Settings):
    """What was removed, or, in a dry run, would be; and what stays although no version names it."""

    versions: tuple[int, ...]
    files: int
    bytes: int
    dry_run: bool
    kept: tuple[Kept, ...] = ()


def collect_garbage(
    index: Index,
    grace: timedelta = timedelta(days=3),
    *,
    keep: int | None = None,
    trainings: Sequence[str] = (),
    dry_run: bool = False,
) -> GcReport:
    """Remove what no version names, of runs on which nothing was written for `grace`.

    keep: first drop all versions but the current one, the `keep` newest, and those that were
    current within `grace`. trainings: names of trainings to remove as well; one that was not
    finished cannot go on then. Raises NotFoundError where there is no index or no such training.
    """
    if keep is not None and keep < 0:
        raise InputError(f"keep must be 0 versions or more, not {keep}")
    if grace < timedelta(0):
        raise InputError(
            f"the grace period must be 0 hours or more, not {grace / timedelta(hours=1):g}"
        )
    in_index = sort_files(_list(index, "runs", "data"))
    if keep is not None or not (index.versions() or any(in_index)):
        index.manifest()  # without a version that readers use, none can be dropped
    if absent := sorted(set(trainings) - in_index[1].keys()):
        there = ", ".join(sorted(in_index[1])) or "none"
        raise NotFoundError(
            f"{index.storage.uri} has no training {', '.join(absent)}; trainings: {there}"
        )
    if dry_run:
        return _Collection(index, grace, datetime.now(UTC), dry_run=True).run(keep, trainings)
    own = Run(index.storage.child("runs/gc"))
    with own.at_work():
        return _Collection(index, grace, own.now()).run(keep, trainings)


class _Version(NamedTuple):
    """What is remembered of a manifest, which may be large."""

    parent: int | None
    paths: frozenset[str]


class _Collection:
    """One collection, and its report so far. `now` is a time by the clock that stamps files."""

    def __init__(
        self, index: Index, grace: timedelta, now: datetime, *, dry_run: bool = False
    ) -> None:
        self._index, self._storage = index, index.storage
        self._grace, self._now, self._dry_run = grace, now, dry_run
        self._known: dict[int, _Version] = {}
        self._removed: list[FileInfo] = []
        self._kept: list[Kept] = []

    def run(self, keep: int | None, trainings: Sequence[str]) -> GcReport:
        dropped = self._drop_versions(keep) if keep is not None else ()
        live = self._live(without=dropped)
        runs, train_runs = sort_files(_list(self._index, "runs", "data"))
        for name, files in runs.items():
            self._collect_run(name, files, live)
        for name, files in train_runs.items():
            if name in trainings:
                self._collect_training(name, files)
            else:
                self._keep(f"training {name}", self._state(name), files.files)
        return GcReport(
            versions=dropped,
            files=len(self._removed),
            bytes=sum(info.size for info in self._removed),
            dry_run=self._dry_run,
            kept=tuple(self._kept),
        )

    def _drop_versions(self, keep: int) -> tuple[int, ...]:
        self._live()
        current = self._index.current()
        made = dict(_numbered(self._storage.list("versions"), ".json"))
        superseded = dict(_numbered(self._storage.list("superseded")))
        parents = {number: version.parent for number, version in self._known.items()}
        dropped = []
        for number in expired(sorted(made.keys() & parents.keys()), current, keep):
            age = self._now - out_of_use(number, made, superseded, parents)
            if age < self._grace:
                self._keep(
                    f"version {number}", f"may have been current {_text(age)} ago: grace period"
                )
            elif self._dry_run or self._drop(number):
                dropped.append(number)
        for number in dropped:
            if not self._dry_run and number < max(made.keys() | superseded.keys()):
                self._storage.delete(f"superseded/{number}")
        return tuple(dropped)

    def _drop(self, number: int) -> bool:
        name = f"versions/{number}.json"
        try:
            data = self._storage.read(name)
        except NotFoundError:
            return False  # another collection was faster
        self._storage.write(f"superseded/{number}", b"")  # no other version gets its number
        self._storage.delete(name)
        if self._index.current() == number:  # somebody went back to it meanwhile
            self._storage.create(name, data)
            self._keep(f"version {number}", "became current meanwhile")
            return False
        return True

    def _live(self, without: Iterable[int] = ()) -> set[str]:
        """What the versions that there are now name."""
        numbers = set(self._index.versions()) - set(without)
        for number in numbers - self._known.keys():
            with contextlib.suppress(NotFoundError):
                manifest = self._index.manifest(number)
                paths = frozenset(file.path for file in named_files(manifest))
                self._known[number] = _Version(manifest.parent, paths)
        return set().union(*(v.paths for n, v in self._known.items() if n in numbers))

    def _collect_run(self, name: str, files: RunFiles, live: set[str]) -> None:
        what = f"run {name}"
        garbage = files.garbage(live, self._now)
        others = files.of_others(live)
        if others or (garbage and self._holds_features(name)):
            why = "its folders hold what encoding does not write"
            self._keep(what, why, others or garbage)
            return
        if not garbage:
            return
        if why := self._in_use(files):
            self._keep(what, why, garbage)
            return
        if self._dry_run:
            self._removed += garbage
            return
        run = Run(self._storage.child(f"runs/{name}"))
        with run.collecting(self._now) as mark:
            if mark is None:
                self._keep(what, "another garbage collection is at it", garbage)
                return
            # Drivers first, then versions: one that is gone by now has published before.
            again, _ = sort_files(_list(self._index, f"runs/{name}", f"data/{name}"))
            files = again.get(name, RunFiles())
            garbage = files.garbage(self._live(), self._now)
            if why := self._in_use(files):
                self._keep(what, why, garbage)
            else:
                self._remove(what, garbage, mark)

    def _collect_training(self, name: str, files: RunFiles) -> None:
        what, folder = f"training {name}", f"runs/{name}/train"
        if why := self._in_use(files):
            self._keep(what, why, files.files)
            return
        if self._dry_run:
            self._removed += files.files
            return
        with Run(self._storage.child(folder)).collecting(self._now) as mark:
            if mark is None:
                self._keep(what, "another garbage collection is at it", files.files)
                return
            _, again = sort_files(_list(self._index, folder))
            files = again.get(name, RunFiles())
            if why := self._in_use(files):
                self._keep(what, why, files.files)
                return
            # What was asked goes last: until then the name is not free for another training.
            last = f"{folder}/run.json"
            in_order = sorted(files.files, key=lambda info: (info.path == last, info.path))
            self._remove(what, [*files.signs, *in_order], mark)

    def _remove(self, what: str, garbage: list[FileInfo], mark: Heartbeat) -> None:
        for number, info in enumerate(garbage):
            if not mark.fresh:
                why = "this process stood still for too long; collect again"
                self._keep(what, why, garbage[number:])
                return
            self._storage.delete(info.path)
            self._removed.append(info)

    def _in_use(self, files: RunFiles) -> str:
        """Why nothing of a run may go yet; empty if it may."""
        heard_of = files.heard_of()
        if heard_of is not None and files.alive(self._now):
            return f"a driver was at work {_text(self._now - heard_of)} ago"
        if not files.idle(self._now, self._grace):
            return f"has files younger than the grace period of {_text(self._grace)}"
        return ""

    def _holds_features(self, name: str) -> bool:
        """Whether somebody let `featurize` write to a folder of this name."""
        folders = (f"data/{name}/.run", f"runs/{name}/.run")
        return any(next(iter(self._storage.list(folder)), None) for folder in folders)

    def _state(self, name: str) -> str:
        result = Run(self._storage.child(f"runs/{name}/train")).result()
        done = f"finished, model {result[:12]}" if isinstance(result, str) else "can be resumed"
        return f"{done}; goes only when it is named"

    def _keep(self, what: str, why: str, files: Sequence[FileInfo] = ()) -> None:
        size = sum(info.size for info in files)
        self._kept.append(Kept(what=what, why=why, files=len(files), bytes=size))


def _list(index: Index, *folders: str) -> Iterator[FileInfo]:
    for folder in folders:
        yield from index.storage.list(folder)


def _numbered(listing: Iterable[FileInfo], suffix: str = "") -> Iterator[tuple[int, datetime]]:
    """The number and the time of every file that is called by a number."""
    for info in listing:
        name = info.path.rpartition("/")[2].removesuffix(suffix)
        if name.isdecimal() and info.path.endswith(f"{name}{suffix}"):
            yield int(name), info.modified


def _text(age: timedelta) -> str:
    minutes = max(age.total_seconds(), 0) / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"
