"""Segments: the unit that a replica loads, shares between versions, and searches.

A segment is one code file, or several small files of one run together. Files never change, so a
segment never does. Which files make a segment depends on their run alone: appending, deleting, or
changing the number of shards leaves every other segment as it was.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from dq_cluster.index.manifest import FileEntry, Manifest

# A run is cut into about so many segments, so that shards can be equally large...
_PER_RUN = 64
# ... while a segment need not have more rows, nor fewer than so many for each cell: scanning a
# list, and looking into a segment, each cost as much as some rows.
_MOST_ROWS = 1 << 20
_ROWS_PER_CELL = 64


@dataclass(frozen=True)
class Segment:
    """Files of one run that follow each other in a manifest."""

    files: tuple[FileEntry, ...]

    @property
    def name(self) -> tuple[str, ...]:
        """Names its content: of each file the path and the SHA-256."""
        return tuple(f"{file.path} {file.sha256}" for file in self.files)

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def cut(manifest: Manifest) -> tuple[Segment, ...]:
    """The segments of a version, in the order of its files."""
    segments: list[Segment] = []
    for _, run in itertools.groupby(manifest.files, lambda file: file.path.rpartition("/")[0]):
        segments += _cut_run(tuple(run), manifest.geometry.nlist)
    return tuple(segments)


def _cut_run(files: tuple[FileEntry, ...], nlist: int) -> Iterator[Segment]:
    share = sum(file.rows for file in files) // _PER_RUN
    most = max(min(share, _MOST_ROWS), nlist * _ROWS_PER_CELL)
    part: list[FileEntry] = []
    rows = 0
    for file in files:
        if part and rows + file.rows > most:
            yield Segment(tuple(part))
            part, rows = [], 0
        part.append(file)
        rows += file.rows
    yield Segment(tuple(part))
