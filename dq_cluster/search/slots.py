"""Numbers of codes for fast-scan in inverted lists, which would be eight bytes for each code.

faiss' fast-scan reports a code by the 64-bit number that the list has for it. Here all lists read
their numbers from one array that repeats itself, each list from another place of it on. So a
number may mean a code in several lists. Of these, only those that the query looked into count,
usually one. A search scores all of them exactly: more than faiss found does no harm.
"""

import functools

import numpy as np

from dq_cluster.search.merge import MISSING

_PERIOD = 1 << 22  # numbers that differ: 32 MB, once in a process
_COMPARED = 1 << 22  # pairs of a number and a list at once


class Slots:
    """sizes (l,): the rows of each list."""

    def __init__(self, sizes: np.ndarray, period: int = _PERIOD) -> None:
        self._sizes, self._period = sizes, period
        self._starts = np.cumsum(sizes) - sizes
        self._total = int(sizes.sum())
        self._numbers = _numbers(period, int(sizes.max(initial=0)))

    @property
    def addresses(self) -> np.ndarray:
        """Where in memory the numbers of each list begin: (l,) uint64."""
        first = self._numbers.ctypes.data
        return (first + 8 * (self._starts % self._period)).astype(np.uint64)

    def resolved(self, found: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lists and the offsets, both (n, c), that the numbers `found` (n, depth) may mean.

        keys (n, p): the lists that each query looked into. A list of MISSING means none. The last
        column is MISSING where faiss found fewer than `depth`, and only there.
        """
        pairs = [
            self._resolved(numbers[numbers != MISSING], lists)
            for numbers, lists in zip(found, keys, strict=True)
        ]
        width = 1 + max((len(lists) for lists, _ in pairs), default=0)
        lists = np.full((len(found), width), MISSING, np.int64)
        offsets = np.zeros((len(found), width), np.int64)
        for row, ((of_row, at), short) in enumerate(
            zip(pairs, found[:, -1] == MISSING, strict=True)
        ):
            here = slice(0, len(of_row)) if short else slice(width - len(of_row), width)
            lists[row, here], offsets[row, here] = of_row, at
        return lists, offsets

    def _resolved(self, numbers: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.unique(numbers)
        repeats = -(-self._total // self._period)
        if len(keys) <= repeats and len(keys) * len(numbers) <= _COMPARED:
            offsets = (numbers[:, None] - self._starts[keys]) % self._period
            lists = np.broadcast_to(keys, offsets.shape)
            real = offsets < self._sizes[lists]
            # A list that is longer than the period has a number more than once.
            if self._sizes[keys].max(initial=0) <= self._period:
                return lists[real], offsets[real]
        places = (numbers[:, None] + self._period * np.arange(repeats)).ravel()
        places = places[places < self._total]
        lists = self._starts.searchsorted(places, side="right") - 1
        probed = np.zeros(len(self._sizes), bool)
        probed[keys] = True
        real = probed[lists]
        return lists[real], (places - self._starts[lists])[real]


def _numbers(period: int, longest: int) -> np.ndarray:
    """Numbers from 0 to `period`, and again, for the longest list to begin anywhere."""
    room = 1 << (longest + 64).bit_length()  # few sizes, so that processes keep few arrays
    return _repeating(period, room)


@functools.lru_cache(maxsize=2)
def _repeating(period: int, more: int) -> np.ndarray:
    return np.arange(period + more, dtype=np.int64) % period
