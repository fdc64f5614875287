"""The comparison of methods on a pile of one's own: features in, a table and a report out."""

import io
import logging
import statistics
import time
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dq_cluster.errors import InputError
from dq_cluster.evaluate.compare import EXACT, METHODS, compare, to_markdown
from dq_cluster.evaluate.config import CompareSettings
from dq_cluster.evaluate.report import Report
from dq_cluster.evaluate.rows import Row, RowFiles
from dq_cluster.images.features import open_features
from dq_cluster.storage import Storage

log = logging.getLogger(__name__)


def run_comparison(settings: CompareSettings) -> dict[str, Any]:
    """Compare the methods on the features that `settings` names; write the report if asked for.

    With a report, every row is kept in its folder as soon as it is measured, and a repeated
    command measures only the rows that are missing.
    Raises InputError for features without labels or an unknown method.
    """
    database, queries = open_features(settings.database), open_features(settings.queries)
    if not (database.labelled and queries.labelled):
        raise InputError("a comparison needs a column 'label' in both feature sets")
    features = database.read(0, database.rows).astype(np.float32)
    views = None
    if database.viewed:
        chosen, others = database.views(0, database.rows)
        views = features[chosen], others.astype(np.float32)
    inputs = settings.model_dump(exclude={"methods", "bits", "report"}) | {
        "fingerprints": (database.fingerprint, queries.fingerprint)
    }
    files = None if settings.report is None else RowFiles(Storage(settings.report), inputs)
    began = time.monotonic()

    def on_row(row: Row) -> None:
        if files is not None:
            files.write(row)
        log.info("%s, %.0f s since the start", _line(row, settings.k), time.monotonic() - began)

    asked = np.random.default_rng(0).permutation(queries.rows)[: settings.max_queries]
    rows = compare(
        features,
        database.labels(0, database.rows),
        queries.read(0, queries.rows)[asked].astype(np.float32),
        queries.labels(0, queries.rows)[asked],
        methods=settings.methods or METHODS,
        bits=settings.bits,
        seeds=settings.seeds,
        settings=settings.model,
        views=views,
        k=settings.k,
        known=files.read() if files is not None else None,
        on_row=on_row,
    )
    table = [_line(row, settings.k) for row in rows]
    if settings.report is not None:
        summary = (
            f"{len(features):,} images searched by {len(asked):,} others; mean and standard "
            f"deviation over {len(settings.seeds)} seeds. AP@{settings.k} is divided by the hits "
            f"among the first {settings.k}; recall@10 is of the ten nearest features."
        )
        report = Report(
            title="DeepQuan and the classical codes",
            summary=summary,
            tables={"Methods": table},
            figures={f"mAP@{settings.k} by code length": _curves(rows, settings.k)},
        )
        folder = Storage(settings.report)
        folder.write("report.html", report.to_html().encode())
        markdown = f"# {report.title}\n\n{summary}\n\n{to_markdown(rows, settings.k)}\n"
        folder.write("report.md", markdown.encode())
    return {"methods": table}


def _line(row: Row, k: int) -> dict[str, Any]:
    line: dict[str, Any] = {"method": row.method, "bits": row.bits}
    for name, values in ((f"mAP@{k}", row.map), ("recall@10", row.recall)):
        line[name] = round(statistics.mean(values), 4)
        line[f"{name} sd"] = round(statistics.stdev(values), 4) if len(values) > 1 else 0.0
    line |= {"seconds": row.seconds}
    return line


def _curves(rows: list[Row], k: int) -> str:
    """SVG: a line per method, mAP over bits; exact search is level."""
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for method in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == method]
        means = [statistics.mean(row.map) for row in mine]
        if method == EXACT:
            axes.axhline(means[0], linestyle="--", color="grey", label=method)
        else:
            axes.plot([row.bits for row in mine], means, marker="o", label=method)
    axes.set(xlabel="bits per image", ylabel=f"mAP@{k}", xscale="log")
    lengths = sorted({row.bits for row in rows if row.bits})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.legend(fontsize="small")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
