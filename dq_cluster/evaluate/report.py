"""Reports people read: tables, figures, and picture grids in one self-contained HTML file."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from io import BytesIO

import jinja2
from PIL import Image

THUMBNAIL = 96  # pixels a side; enough to judge a neighbour, small enough to embed hundreds


@dataclass(frozen=True)
class Picture:
    """One picture of a grid: encoded image bytes, a caption, and whether it is a right answer.

    `relevant` is None where nothing says so (a query, or pictures without labels).
    """

    data: bytes
    caption: str
    relevant: bool | None = None

    @property
    def source(self) -> str:
        """A data URI of the thumbnail."""
        with Image.open(BytesIO(self.data)) as opened:
            image = opened.convert("RGB")
            scale = THUMBNAIL / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            buffer = BytesIO()
            image.resize(size).save(buffer, "PNG")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class GridRow:
    """A query and its neighbours, best first."""

    query: Picture
    neighbours: Sequence[Picture]


@dataclass(frozen=True)
class Report:
    """A title, what was measured and how, and what it looks like.

    tables: title to rows, each a mapping with the same keys; figures: title to SVG markup;
    grids: title to rows.
    """

    title: str
    summary: str
    tables: dict[str, Sequence[dict[str, object]]] = field(default_factory=dict)
    figures: dict[str, str] = field(default_factory=dict)
    grids: dict[str, Sequence[GridRow]] = field(default_factory=dict)

    def to_html(self) -> str:
        """The whole report as one HTML document that needs nothing else."""
        return _template().render(report=self)


def _template() -> jinja2.Template:
    text = files("dq_cluster.evaluate").joinpath("templates/report.html").read_text()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = _cell
    return environment.from_string(text)


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
