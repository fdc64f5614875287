"""Queries that DeepQuan answers much better, or much worse, than the best classical code."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dq_cluster.errors import NotFoundError
from dq_cluster.evaluate.baselines import BASELINES
from dq_cluster.evaluate.report import THUMBNAIL, GridRow, Picture
from dq_cluster.evaluate.rows import Row
from dq_cluster.evaluate.variants import OURS
from dq_cluster.images.config import ImageLimits
from dq_cluster.images.thumbnail import thumbnail

_QUERIES = 6  # shown in a grid
_TRIED = 30  # before giving up on finding that many with pictures


class Located(NamedTuple):
    """Where the images of a feature set lie (n,), and their labels (n,)."""

    uris: np.ndarray
    labels: np.ndarray


def rivals(rows: Sequence[Row], bits: int) -> tuple[Row, Row] | None:
    """DeepQuan and the best classical code of as many bits, if both were measured."""
    rows = [row for row in rows if row.bits == bits]
    ours = [row for row in rows if row.method == OURS]
    theirs = [row for row in rows if row.method in BASELINES]
    if not ours or not theirs:
        return None
    return ours[0], max(theirs, key=lambda row: statistics.mean(row.map))


def wins_and_failures(
    ours: Row, theirs: Row, queries: Located, database: Located
) -> dict[str, list[GridRow]]:
    """By title, the queries whose AP differs most, each with the first neighbours of both.

    Queries without a readable picture, or with such neighbours, are passed over.
    """
    gain = np.array(ours.ap) - np.array(theirs.ap)
    grids = {}
    for sign, title in (
        (1, f"Where {ours.method} gains most on {theirs.method}"),
        (-1, f"Where {ours.method} loses most to {theirs.method}"),
    ):
        grid: list[GridRow] = []
        for query in np.argsort(-sign * gain, kind="stable")[:_TRIED]:
            if len(grid) == 2 * _QUERIES or sign * gain[query] <= 0:
                break
            try:
                grid += [_answer(row, query, queries, database) for row in (ours, theirs)]
            except NotFoundError:
                continue
        if grid:
            grids[f"{title}, {ours.bits} bits"] = grid
    return grids


def _answer(row: Row, query: int, queries: Located, database: Located) -> GridRow:
    label = queries.labels[query]
    return GridRow(
        Picture(_picture(queries.uris[query]), f"{label}: {row.method}, AP {row.ap[query]:.2f}"),
        [
            Picture(_picture(database.uris[hit]), str(database.labels[hit]), bool(same))
            for hit, same in zip(
                row.first[query], database.labels[list(row.first[query])] == label, strict=True
            )
        ],
    )


def _picture(uri: str | None) -> bytes:
    return thumbnail(uri, ImageLimits(), THUMBNAIL)
