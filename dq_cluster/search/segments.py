"""Blocks of files, which shards are made of, and segments, which replicas load.

A block is some consecutive files of one run: it goes to one shard as a whole. A segment is the
blocks of one run in one shard, up to a size: it is loaded, shared between versions, and scanned as
a whole. Files never change, so neither does. Which files make a block depends on their run alone,
so that appending or deleting leaves every other block, and every segment, as it was.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dq_cluster.index.manifest import FileEntry, Manifest

T = TypeVar("T", "Block", FileEntry)
# A run has about so many blocks, so that shards can be equally large.
_BLOCKS = 64
_BLOCK_ROWS = 1 << 20  # at most, where files are not larger
# Looking into a segment costs as much as scanning some thousand rows, and looking into a list as
# much as scanning some rows.
_SEGMENT_ROWS = 1 << 20
_ROWS_PER_CELL = 256


@dataclass(frozen=True)
class Block:
    """Files of one run that follow each other in a manifest."""

    files: tuple[FileEntry, ...]

    @property
    def run(self) -> str:
        return _run_of(self.files[0])

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


@dataclass(frozen=True)
class Segment:
    """Files of one run, in the order of the manifest."""

    files: tuple[FileEntry, ...]

    @property
    def name(self) -> tuple[str, ...]:
        """Names its content: of each file the path and the SHA-256."""
        return tuple(f"{file.path} {file.sha256}" for file in self.files)

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def cut(manifest: Manifest) -> tuple[Block, ...]:
    """The blocks of a version, in the order of its files."""
    blocks: list[Block] = []
    for _, run in itertools.groupby(manifest.files, _run_of):
        files = tuple(run)
        limit = min(sum(file.rows for file in files) // _BLOCKS, _BLOCK_ROWS)
        blocks += [Block(tuple(group)) for group in _grouped(files, limit)]
    return tuple(blocks)


def pack(blocks: Sequence[Block], nlist: int) -> tuple[Segment, ...]:
    """The segments of a shard that has these blocks. nlist: cells of the geometry."""
    limit = max(_SEGMENT_ROWS, nlist * _ROWS_PER_CELL)
    segments: list[Segment] = []
    for _, run in itertools.groupby(blocks, lambda block: block.run):
        for group in _grouped(tuple(run), limit):
            files = tuple(file for block in group for file in block.files)
            segments.append(Segment(files))
    return tuple(segments)


def _run_of(file: FileEntry) -> str:
    return file.path.rpartition("/")[0]


def _grouped(parts: Sequence[T], limit: int) -> Iterator[list[T]]:
    """Consecutive parts with at most so many rows together, or one part that has more."""
    group: list[T] = []
    rows = 0
    for part in parts:
        if group and rows + part.rows > limit:
            yield group
            group, rows = [], 0
        group.append(part)
        rows += part.rows
    if group:
        yield group
