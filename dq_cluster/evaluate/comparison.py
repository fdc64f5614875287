"""The comparison of methods on your own features: a table, and a report."""

import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from dq_cluster.evaluate.baselines import BASELINES, SEEDLESS
from dq_cluster.evaluate.compare import EXACT, compare
from dq_cluster.evaluate.config import CompareSettings
from dq_cluster.evaluate.figures import over_length, precision_over_recall
from dq_cluster.evaluate.grids import Located, rivals, wins_and_failures
from dq_cluster.evaluate.inputs import read_inputs
from dq_cluster.evaluate.metrics import labelled
from dq_cluster.evaluate.origin import code_digest
from dq_cluster.evaluate.report import GridRow, Report
from dq_cluster.evaluate.rows import Row, RowFiles
from dq_cluster.evaluate.tables import by_length, lines
from dq_cluster.storage import Storage

log = logging.getLogger(__name__)

# What decides the figures of a row, with everything that these import.
_MEASURING = ("dq_cluster.evaluate.compare", "dq_cluster.evaluate.inputs")


def run_comparison(settings: CompareSettings) -> dict[str, Any]:
    """Compare the methods on the features that `settings` names; write the report if asked for.

    With a report, every row is kept in its folder as soon as it is measured, and a repeated
    command measures only the rows that are missing.

    Raises InputError for features without labels or an unknown method.
    """
    inputs = read_inputs(settings)
    database, queries, labels = inputs.database, inputs.query_set, inputs.labels
    files = None
    if settings.report is not None:
        decided_by = settings.model_dump(
            exclude={"methods", "bits", "report", "feature_column"}
        ) | {"fingerprints": (database.fingerprint, queries.fingerprint)}
        files = RowFiles(Storage(settings.report), decided_by, code_digest(*_MEASURING))
    began = time.monotonic()
    finished = files.read() if files is not None else {}
    todo = [
        (name, length)
        for name in settings.methods
        for length in ((0,) if name == EXACT else settings.bits)
        if (name, length) not in finished
    ]
    measured = itertools.count(1)

    def on_row(row: Row) -> None:
        if files is not None:
            files.write(row)
        log.info(
            "%s",
            lines([row], settings.k)[0]
            | {"row": f"{next(measured)}/{len(todo)}", "elapsed": round(time.monotonic() - began)},
        )

    rows = compare(
        inputs.features,
        labels,
        inputs.queries,
        inputs.query_labels,
        methods=settings.methods,
        bits=settings.bits,
        seeds=settings.seeds,
        settings=settings.model,
        views=inputs.views,
        k=settings.k,
        finished=finished,
        on_row=on_row,
    )
    if settings.report is not None:
        grids: dict[str, list[GridRow]] = {}
        pair = rivals(rows, max(settings.bits))
        if pair and database.located and queries.located:
            grids = wins_and_failures(
                *pair,
                Located(queries.uris(0, queries.rows)[inputs.sample], inputs.query_labels),
                Located(database.uris(0, database.rows), labels),
            )
        summary = _summary(settings, rows, labels, inputs.query_labels)
        if pair and not grids:
            summary += (
                " There are no pictures of wins and failures: the features name no readable image "
                "in a column 'uri'."
            )
        report(rows, settings, summary, grids).write(Storage(settings.report))
    return {"methods": lines(rows, settings.k)}


def report(
    rows: Sequence[Row],
    settings: CompareSettings,
    summary: str,
    grids: dict[str, list[GridRow]],
) -> Report:
    """Everything that was measured, for people."""
    k, bits = settings.k, max(settings.bits)
    score = f"mAP@{k}"
    tables = {"Search": by_length(rows, (score, "recall@10"), k)}
    if trained := [row for row in rows if row.training]:
        tables["Training"] = by_length(trained, tuple(trained[0].training), k)
    classical = any(row.method in BASELINES for row in rows)
    return Report(
        title="DeepQuan and the classical codes" if classical else "Variants of DeepQuan",
        summary=summary,
        tables=tables,
        figures={
            f"{score} by code length": over_length(rows, score, k),
            "recall@10 by code length": over_length(rows, "recall@10", k),
            f"Precision over recall, {bits} bits, up to {k} results": precision_over_recall(
                rows, bits
            ),
        },
        grids=grids,
    )


def _summary(
    settings: CompareSettings, rows: Sequence[Row], labels: np.ndarray, query_labels: np.ndarray
) -> str:
    k = settings.k
    sentences = [
        f"{len(labels):,} images searched by {len(query_labels):,} others; mean and standard "
        f"deviation over {len(settings.seeds)} seeds.",
        f"AP@{k} is divided by the hits among the first {k}; recall@10 is of the ten nearest "
        "features.",
    ]
    if once := [name for name in SEEDLESS if any(row.method == name for row in rows)]:
        sentences.append(f"Nothing is random in {' and '.join(once)}: one run each.")
    if any(row.training for row in rows):
        sentences.append(
            "Training ends with this variance of the embedding, which has unit length, and this "
            "many centroids per sub-space in use (perplexity)."
        )
    missing = [int((~labelled(side)).sum()) for side in (query_labels, labels)]
    if any(missing):
        sentences.append(
            f"{missing[0]:,} queries without a label are left out of mAP; {missing[1]:,} images "
            "without one are never right."
        )
    return " ".join(sentences)
