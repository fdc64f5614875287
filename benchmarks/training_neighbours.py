"""What the neighbours of training rows cost: by cells, against comparing each row with all others.

    python -m benchmarks.training_neighbours [--rows 50000 500000]

Random rows of 128 dimensions around 24 hidden directions, of unit length. Cost is time on all CPUs
of the machine, of finding the cells, of the search, and of positives by shared neighbours. The
exact search is timed on 1,000 queries and scaled up, for it costs the same for each. Recall: of the
50 exact neighbours of these rows, how many the cells found.
"""

import argparse
import json
import time

import numpy as np
import torch

from dq_cluster.model.candidates import PROBED, nearest_cells, nearest_in_cells
from dq_cluster.model.cells import learn_cells
from dq_cluster.model.neighbours import (
    Ranked,
    inverse,
    manifold_positives,
    merge_top_k,
    nearest,
)

K = 50
_PIECE = 65536
_POINTS_PER_CELL = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 500_000])
    arguments = parser.parse_args()
    print(json.dumps([measured(count) for count in arguments.rows], indent=1))


def measured(count: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    turn = rng.normal(size=(24, 128)).astype("f4")
    rows = np.empty((count, 128), "f4")
    for start in range(0, count, _PIECE):
        part = rows[start : start + _PIECE]
        part[:] = rng.normal(size=(len(part), 24)).astype("f4") @ turn
        part += 0.5 * rng.normal(size=part.shape).astype("f4")
        part /= np.linalg.norm(part, axis=1, keepdims=True)

    asked = np.sort(rng.choice(count, 1000, replace=False))
    started = time.perf_counter()
    exact = nearest(torch.from_numpy(rows[asked]), torch.from_numpy(rows), K + 1).rows.numpy()
    exact_s = (time.perf_counter() - started) * count / len(asked)

    nlist = int(4 * count**0.5)
    started = time.perf_counter()
    sample = np.sort(rng.choice(count, min(count, nlist * _POINTS_PER_CELL), replace=False))
    centroids = learn_cells(rows[sample], nlist, "ip")
    cells = nearest_cells(rows, centroids)
    cells_s = time.perf_counter() - started

    started = time.perf_counter()
    pieces = [slice(start, start + _PIECE) for start in range(0, count, _PIECE)]
    graph = np.empty((count, K), np.int64)
    for own in pieces:
        best: Ranked | None = None
        for piece in pieces:
            near = nearest_in_cells(
                rows[own], cells[own], rows[piece], cells[piece, 0], centroids, K + 1
            )
            near = Ranked(near.scores, near.rows + piece.start)
            best = near if best is None else merge_top_k(best, near, K + 1)
        assert best is not None
        # One's own row is the first but for duplicates, which these rows have not.
        graph[own] = best.rows[:, 1:].numpy()
    search_s = time.perf_counter() - started
    hits = [len(np.intersect1d(a[1:], b)) for a, b in zip(exact, graph[asked], strict=True)]

    started = time.perf_counter()
    turned = inverse(graph)
    inverse_s = time.perf_counter() - started
    started = time.perf_counter()
    refined = min(count, 20_000)
    manifold_positives(graph[:refined], K, turned)
    positives_s = (time.perf_counter() - started) * count / refined
    return {
        "rows": count,
        "cells": nlist,
        "probed": PROBED,
        "exact_s": round(exact_s, 1),
        "cells_s": round(cells_s, 1),
        "search_s": round(search_s, 1),
        "recall": round(float(np.mean(hits)) / K, 4),
        "inverse_s": round(inverse_s, 1),
        "positives_s_on_one_cpu": round(positives_s, 1),
        "exact_to_cells": round(exact_s / (cells_s + search_s), 2),
    }


if __name__ == "__main__":
    main()
