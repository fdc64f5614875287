"""How the rows of a feature set are divided: held out or not, and into blocks.

Every task and worker computes the same division, however the work is distributed.
"""

from dataclasses import dataclass

import numpy as np

MAX_VALIDATION = 2000
_SMALLEST_BLOCK, _LARGEST_BLOCK = 16384, 65536


@dataclass(frozen=True)
class Split:
    """A random `fraction` of `rows`, about `MAX_VALIDATION` at most, is held out of training.

    Rows are known by their ordinal in the feature set; *training rows* are numbered anew,
    0 … n - 1, in the order of their ordinals.
    """

    rows: int
    fraction: float
    seed: int

    def held_out(self, ordinals: np.ndarray) -> np.ndarray:
        """Whether each ordinal (n,) is held out: (n,) bool.

        An ordinal's random number is its SplitMix64 hash (Steele, Lea, Flood, OOPSLA 2014).
        """
        z = ordinals.astype(np.uint64) + np.uint64((self.seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        return z < np.uint64(min(self.fraction, MAX_VALIDATION / self.rows) * 2**64)

    def training(self) -> np.ndarray:
        """Ordinals of the training rows, ascending."""
        return np.flatnonzero(~self.held_out(np.arange(self.rows)))

    def validation(self) -> np.ndarray:
        """Ordinals of the rows held out, ascending."""
        return np.flatnonzero(self.held_out(np.arange(self.rows)))


def blocks(rows: int) -> list[tuple[int, int]]:
    """Ranges [start, stop) that cover `rows`: 16 of them, but none so small that starting a task
    costs more than its work, and none too large for a worker's memory."""
    size = min(max(-(-rows // 16), _SMALLEST_BLOCK), _LARGEST_BLOCK)
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]
