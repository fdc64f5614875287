"""Some rows of a shard, as bits, and the selections that are kept for the next queries."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import numpy as np


class Selection:
    """Which rows of a shard take part in a search. Immutable.

    keep: (rows,) bool of each segment. Bits of a segment start at a byte of their own.
    """

    def __init__(self, keep: Sequence[np.ndarray]) -> None:
        parts = [np.packbits(part, bitorder="little") for part in keep]
        self._starts = np.cumsum([0, *map(len, keep)])
        self._bytes = np.cumsum([0, *map(len, parts)])
        self._bits = np.concatenate([*parts, np.zeros(1, np.uint8)])
        self.count = int(sum(np.count_nonzero(part) for part in keep))

    @property
    def rows(self) -> int:
        """Rows of the shard, selected or not."""
        return int(self._starts[-1])

    @property
    def nbytes(self) -> int:
        return self._bits.nbytes

    def holds(self, rows: np.ndarray) -> np.ndarray:
        """Whether each of `rows` (…) is selected: bool of the same shape."""
        parts = self._starts.searchsorted(rows, side="right") - 1
        places = rows - self._starts[parts]
        return (self._bits[self._bytes[parts] + (places >> 3)] >> (places & 7) & 1).astype(bool)

    def bits(self, segment: int) -> np.ndarray:
        """The rows of a segment as faiss.IDSelectorBitmap reads them: uint8, lowest bit first."""
        return self._bits[self._bytes[segment] : self._bytes[segment + 1]]

    def keeps(self, segment: int) -> np.ndarray:
        """Which rows of a segment are selected: (rows,) bool."""
        rows = int(self._starts[segment + 1] - self._starts[segment])
        return np.unpackbits(self.bits(segment), count=rows, bitorder="little").view(bool)

    def every(self) -> np.ndarray:
        """All selected rows (count,) of the shard, ascending."""
        segments = range(len(self._starts) - 1)
        parts = [self._starts[n] + np.flatnonzero(self.keeps(n)) for n in segments]
        return np.concatenate([np.empty(0, np.int64), *parts])


class Selections:
    """The selections that were used last, by what was asked for, within `room` bytes."""

    def __init__(self, room: int, weigh: Callable[[Selection], int]) -> None:
        self._room, self._weigh = room, weigh
        self._kept: OrderedDict[Hashable, Selection] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Selection]) -> Selection:
        """The selection of `key`, made unless it is kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        selection = make()
        with self._lock:
            self._kept[key] = selection
            while sum(map(self._weigh, self._kept.values())) > self._room:
                self._kept.popitem(last=False)
        return selection
