"""Groups of near-duplicates from lists of neighbours, without chains. No storage here.

Leader clustering (Hartigan, "Clustering Algorithms", 1975, chapter 3): rows are taken in order; a
row that is near a leader joins it, any other becomes a leader, and takes the rows near it that
have none yet. So every member is near its leader, and a group cannot creep from one picture to
quite another, as connected components do. One pass, and 12 bytes for each row of the version.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NONE = -1


class Leaders:
    """The leader of each row (its ordinal, its own for a leader), NONE for what is alone.

    scores: of each member with its leader; NaN for leaders and what is alone.
    """

    def __init__(self, rows: int) -> None:
        self.of = np.full(rows, NONE, np.int64)
        self.scores = np.full(rows, np.nan, np.float32)

    def add(self, rows: np.ndarray, offsets: np.ndarray, near: np.ndarray, to: np.ndarray) -> None:
        """The next rows (n,), ascending; those near row i are `to[offsets[i] : offsets[i + 1]]`,
        with scores `near`, best first."""
        for place in np.flatnonzero(np.diff(offsets)).tolist():
            row = int(rows[place])
            if self.of[row] != NONE:
                continue
            here = slice(offsets[place], offsets[place + 1])
            others, scores = to[here], near[here]
            leaders = np.flatnonzero(self.of[others] == others)
            if len(leaders):
                self.of[row], self.scores[row] = others[leaders[0]], scores[leaders[0]]
                continue
            self.of[row] = row
            free = self.of[others] == NONE
            self.of[others[free]], self.scores[others[free]] = row, scores[free]

    def members(self) -> np.ndarray:
        """The rows (m,) of groups of at least two, group by group, each in order of its rows."""
        rows = np.flatnonzero(self.of != NONE)
        _, group, sizes = np.unique(self.of[rows], return_inverse=True, return_counts=True)
        rows, group = rows[sizes[group] > 1], group[sizes[group] > 1]
        return rows[np.argsort(group, kind="stable")]


def kept(groups: np.ndarray, values: pa.Array | None, *, largest: bool) -> np.ndarray:
    """Which row of each group stays: (m,) bool.

    groups (m,): the group of each row, equal ones together. values (m,): what decides, nulls last;
    None, or equal values: the first row of the group.
    """
    order = np.arange(len(groups))
    if values is not None:
        how = "descending" if largest else "ascending"
        ranks = pc.rank(values, how, tiebreaker="dense").to_numpy()
        order = np.lexsort((order, ranks, groups))
    firsts = np.ones(len(groups), bool)
    firsts[1:] = groups[order][1:] != groups[order][:-1]
    keep = np.zeros(len(groups), bool)
    keep[order[firsts]] = True
    return keep
