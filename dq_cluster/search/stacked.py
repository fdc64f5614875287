"""Arrays one after the other, read as one without being copied."""

from collections.abc import Sequence

import numpy as np

from dq_cluster.search.cells import CellCodes


class Stacked:
    """Arrays (n_i, width) of one dtype, indexed like the array (sum n_i, width) that they make."""

    def __init__(self, arrays: Sequence[np.ndarray | CellCodes], width: int) -> None:
        self._arrays, self._width = arrays, width
        self._starts = np.cumsum([0, *map(len, arrays)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The rows (…, width) at `rows` (…); a negative one gives any row."""
        if len(self._arrays) == 1:
            return self._arrays[0][rows]
        flat = np.maximum(rows, 0).ravel()
        taken = np.empty((flat.size, self._width), np.uint8)
        numbers = self._starts.searchsorted(flat, side="right") - 1
        for number in np.unique(numbers):
            here = np.flatnonzero(numbers == number)
            taken[here] = self._arrays[number][flat[here] - self._starts[number]]
        return taken.reshape(*np.shape(rows), self._width)
