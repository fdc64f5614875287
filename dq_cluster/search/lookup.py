"""Finding the row of an id without looking at every id."""

import mmap
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from dq_cluster.index.plain import PlainColumn
from dq_cluster.storage.scratch import scratch_file

Ids: TypeAlias = "PlainColumn | pa.Array"
_STEP = 1024  # ids in order need only every 1,024th in memory
_PRIME = np.uint64(0x100000001B3)  # of FNV-1a, a hash for text (Fowler, Noll, Vo, 1991)
_BASIS = np.uint64(0xCBF29CE484222325)


class IdIndex:
    """Where each id of a segment is. Ids come in pieces of consecutive rows.

    Ids are compared as keys of 64 bits: a number is its own, a text has a hash. Keys in order are
    found where they lie. Others are sorted into an unnamed local file (12 bytes for each), which
    is mapped. Raises StorageError where the folder for temporary files has no room for it.
    """

    def __init__(self, pieces: Sequence[Ids]) -> None:
        self._pieces = pieces
        self._starts = np.cumsum([0, *map(len, pieces)])
        keys = np.concatenate([np.empty(0, np.uint64), *map(_keys, pieces)])
        self._every = keys[::_STEP].copy()
        self._sorted: tuple[np.ndarray, np.ndarray] | None = None
        if not (keys[1:] >= keys[:-1]).all():
            order = np.argsort(keys, kind="stable").astype(np.uint32)
            self._sorted = _mapped(keys[order], order)

    def find(self, key: np.uint64) -> np.ndarray:
        """The rows (n,) int64 whose ids have this key, ascending. Texts may share one."""
        if self._sorted is not None:
            keys, rows = self._sorted
            first = int(keys.searchsorted(key))
            last = first
            while last < len(keys) and keys[last] == key:
                last += 1
            return rows[first:last].astype(np.int64)
        first = max(0, int(self._every.searchsorted(key)) - 1) * _STEP
        last = min(int(self._every.searchsorted(key, side="right")) * _STEP, int(self._starts[-1]))
        return first + np.flatnonzero(self._between(first, last) == key)

    def _between(self, first: int, last: int) -> np.ndarray:
        """The keys of the rows from `first` to `last`."""
        keys = [np.empty(0, np.uint64)]
        for start, piece in zip(self._starts, self._pieces, strict=False):
            a, b = max(first - start, 0), min(last - start, len(piece))
            if a < b:
                if isinstance(piece, PlainColumn):
                    keys.append(_keys_of(piece.slice(a, b - a)))
                else:
                    keys.append(_keys(piece[a:b]))
        return np.concatenate(keys)


def _mapped(keys: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with scratch_file(keys.nbytes + rows.nbytes) as file:
        file.write(keys.data)
        file.write(rows.data)
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)  # a search reads a few pages, far apart
    return (
        np.frombuffer(mapped, np.uint64, len(keys)),
        np.frombuffer(mapped, np.uint32, len(rows), keys.nbytes),
    )


def _keys(ids: Ids) -> np.ndarray:
    if isinstance(ids, PlainColumn):
        return np.concatenate([np.empty(0, np.uint64), *(_keys_of(b).copy() for b in ids.blocks())])
    if pa.types.is_integer(ids.type):
        return _keys_of(ids.to_numpy(zero_copy_only=False))
    return _hashes(ids)


def _keys_of(ids: np.ndarray) -> np.ndarray:
    return ids.view(np.uint64)


def key_of(id: int | str) -> np.uint64:
    """What `IdIndex.find` looks for."""
    if isinstance(id, str):
        return _hashes(pa.array([id]))[0]
    return np.uint64(id % (1 << 64))


def _hashes(texts: pa.Array) -> np.ndarray:
    """A hash (n,) uint64 of each text: all first bytes at once, then all second ones, and so on."""
    texts = texts.cast(pa.large_string())
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    places, lengths = ends[:-1], np.diff(ends)
    hashes = np.full(len(texts), _BASIS)
    if data is None:
        return hashes
    characters = np.frombuffer(data, np.uint8)
    order = np.argsort(-lengths, kind="stable")
    places, lengths = places[order], lengths[order]
    longer = np.searchsorted(-lengths, -np.arange(lengths[0] if len(lengths) else 0))
    for position, count in enumerate(longer):
        hashes[:count] = (hashes[:count] ^ characters[places[:count] + position]) * _PRIME
    hashes_by_row = np.empty_like(hashes)
    hashes_by_row[order] = hashes
    return hashes_by_row
