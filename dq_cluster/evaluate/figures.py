"""The rows of a comparison as figures, in SVG."""

import io
import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dq_cluster.evaluate.rows import Row
from dq_cluster.evaluate.tables import figures
from dq_cluster.evaluate.variants import OURS


def over_length(rows: Sequence[Row], name: str, k: int) -> str:
    """A line per method: a figure's mean over bits; exact search is level."""
    figure, axes = _axes()
    for method, mine in _by_method(rows).items():
        means = [statistics.mean(figures(row, k)[name]) for row in mine]
        if mine[0].bits == 0:
            axes.axhline(means[0], linestyle="--", color="grey", label=method)
        else:
            lengths = [row.bits for row in mine]
            axes.plot(lengths, means, marker="o", label=method, **_style(method))
    axes.set(xlabel="bits per image", ylabel=name, xscale="log")
    lengths = sorted({row.bits for row in rows if row.bits})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    return _svg(figure, axes)


def precision_over_recall(rows: Sequence[Row], bits: int) -> str:
    """A line per method with codes of `bits`, and exact search: precision over recall after
    more and more results."""
    figure, axes = _axes()
    for method, mine in _by_method([row for row in rows if row.bits in (0, bits)]).items():
        recall, precision = zip(*mine[0].curve, strict=True)
        if mine[0].bits == 0:
            axes.plot(recall, precision, linestyle="--", color="grey", label=method)
        else:
            axes.plot(recall, precision, label=method, **_style(method))
    axes.set(xlabel="recall", ylabel="precision")
    return _svg(figure, axes)


def _by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    methods = dict.fromkeys(row.method for row in rows)
    return {method: [row for row in rows if row.method == method] for method in methods}


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    axes.set_prop_cycle(color=matplotlib.colormaps["tab20"].colors)  # there are many methods
    return figure, axes


def _style(method: str) -> dict[str, Any]:
    return {"color": "black", "linewidth": 3} if method == OURS else {}


def _svg(figure: Figure, axes: Axes) -> str:
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5))
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
