"""What of an index may go: decisions only, on listings and clocks that are given.

`index.gc` carries them out.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dq_cluster.index.manifest import FileEntry, Manifest
from dq_cluster.run import ALIVE_FOR
from dq_cluster.storage import FileInfo

# What encoding, deleting and compacting write, in the order in which it may go: a ledger before
# the plan that it counts for, both before the files that it names. Killed half-way, this leaves
# files without a name, never names without a file.
_ORDER = (
    re.compile(r"runs/[^/]+/ledger/[^/]+\.json"),
    re.compile(r"runs/[^/]+/plan\.json"),
    re.compile(r"runs/[^/]+/plan-[^/]+\.parquet"),
    re.compile(r"runs/[^/]+/run\.json"),
    re.compile(r"data/[^/]+/(part|rejects|thumbnails|tombstones)-[^/]+\.parquet"),
)
_SIGN = re.compile(r"(runs/[^/]+|runs/[^/]+/train)/alive/[^/]+")
_MARK = re.compile(r"(runs/[^/]+|runs/[^/]+/train)/collecting/[^/]+")
_PUBLISHED = re.compile(r"runs/[^/]+/published")
_TRAINING = re.compile(r"runs/[^/]+/train/.+")


@dataclass
class RunFiles:
    """What a run has on storage.

    files: what may go when the run is over, unless a version names it; signs: of life, of its
    drivers; others: what is not called as a run calls its files; published: whether it has
    become something.
    """

    files: list[FileInfo] = field(default_factory=list)
    signs: list[FileInfo] = field(default_factory=list)
    others: list[FileInfo] = field(default_factory=list)
    published: bool = False

    def heard_of(self) -> datetime | None:
        """When a driver last wrote a sign of life."""
        return max((sign.modified for sign in self.signs), default=None)

    def alive(self, now: datetime) -> bool:
        """Whether a driver works on the run, whatever the age of the files."""
        heard_of = self.heard_of()
        return heard_of is not None and now - heard_of < ALIVE_FOR

    def idle(self, now: datetime, grace: timedelta) -> bool:
        """Whether no driver works on the run and nothing was written within the grace period.

        A run counts as a whole: what it wrote days ago will be named by the manifest that it has
        not published yet.
        """
        newest = max((info.modified for info in (*self.files, *self.signs)), default=now)
        return not self.alive(now) and now - newest >= grace

    def of_others(self, live: Collection[str]) -> list[FileInfo]:
        """Files that neither a version names nor a run of this kind writes."""
        return [info for info in self.others if info.path not in live]

    def garbage(self, live: Collection[str], now: datetime) -> list[FileInfo]:
        """Files of an idle run that no version names, in the order in which they may be removed.

        Empty if files of others are among them: then it is unknown to whom the files belong. The
        request of a published run stays, with the mark that it is published.
        """
        if self.of_others(live):
            return []
        unnamed = [
            info
            for info in self.files
            if info.path not in live and not (self.published and info.path.endswith("/run.json"))
        ]
        dead = [sign for sign in self.signs if now - sign.modified >= ALIVE_FOR]
        return [*sorted(unnamed, key=lambda info: (_place(info.path), info.path)), *dead]


def sort_files(
    listing: Iterable[FileInfo],
) -> tuple[dict[str, RunFiles], dict[str, RunFiles]]:
    """Everything below `runs/` and `data/` by the names of the runs, and of the trainings."""
    runs: dict[str, RunFiles] = {}
    trainings: dict[str, RunFiles] = {}
    for info in listing:
        path = info.path
        name = path.split("/")[1]
        training = _TRAINING.fullmatch(path) is not None
        run = (trainings if training else runs).setdefault(name, RunFiles())
        if _SIGN.fullmatch(path):
            run.signs.append(info)
        elif _MARK.fullmatch(path):
            continue
        elif _PUBLISHED.fullmatch(path):
            run.published = True
        elif training or _place(path) is not None:
            run.files.append(info)
        else:
            run.others.append(info)
    return runs, trainings


def expired(versions: list[int], current: int, keep: int | None) -> tuple[int, ...]:
    """The versions to drop, oldest first: all but `current` and the `keep` newest."""
    if keep is None:
        return ()
    newest = versions[max(0, len(versions) - keep) :]
    return tuple(number for number in versions if number != current and number not in newest)


def out_of_use(
    version: int,
    made: Mapping[int, datetime],
    superseded: Mapping[int, datetime],
    parents: Mapping[int, int | None],
) -> datetime:
    """The last moment at which the version may have been current.

    made: when each version was; superseded: when CURRENT left a version, where that is known;
    parents: of each version. A version was current when another was built on it.
    """
    children = [made[n] for n, parent in parents.items() if parent == version and n in made]
    return max([made[version], *children, *filter(None, [superseded.get(version)])])


def named_files(manifest: Manifest) -> Iterator[FileEntry]:
    """Every file the manifest names."""
    yield from manifest.files
    yield from manifest.thumbnails.values()
    yield from manifest.tombstones
    yield from manifest.rejects


def _place(path: str) -> int | None:
    return next((n for n, pattern in enumerate(_ORDER) if pattern.fullmatch(path)), None)
